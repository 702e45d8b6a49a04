"""Whole address spaces of a real guest as arrays: every page as the single resolver, and the guest itself, says."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import coldframe
from coldframe.cli.main import run
from coldframe.minint import start
from coldframe.minint.truth import TruthPage
from coldframe.paging import State
from coldframe.paging.arrays import NOWHERE, STATES, VIAS

sys.path.insert(0, str(Path(__file__).parents[1] / "paging"))
from scenes import bulk_difference, row_of

pytestmark = pytest.mark.minint

PAGE = 4096


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """An opened dump of minint, and the pages that the guest named as it was dumped."""
    folder = tmp_path_factory.mktemp("pages")
    with start(vcpus=2) as machine:
        machine.write_dump(folder / "memory.elf", log=folder / "log")
        lines = (folder / "log").read_text().splitlines()
        with coldframe.open(folder / "memory.elf", symbols=[machine.symbols_folder]) as guest:
            events = [json.loads(line) for line in lines if line.startswith('{"event":"page"')]
            guest.words = (str(folder / "memory.elf"), "--symbols", str(machine.symbols_folder))
            yield guest, [TruthPage.of(event) for event in events]


def test_every_page_of_every_process_and_of_the_kernel_is_what_the_single_resolver_says(dumped):
    guest, _ = dumped
    compared = set()
    for space in (*(process.memory for process in guest.processes), guest.memory):
        pages = space.pages()
        for start_of, size in zip(pages.address.tolist(), pages.size.tolist(), strict=True):
            few = range(start_of, start_of + size, PAGE) if size <= 64 * PAGE else (start_of, start_of + size - PAGE)
            around = (start_of - PAGE, start_of + size)
            for address in {*few, *around}:
                if not 0 <= address < 1 << 64:
                    continue
                page = space.resolve(address)
                if address in around and row_of(pages, address) is None:
                    assert not page.readable or address >> 63 != start_of >> 63
                    continue
                assert not bulk_difference(page, pages)
                compared.add(page.state)
    assert compared >= {State.VALID, State.TRANSITION, State.PAGEFILE, State.DEMAND_ZERO, State.SUBSECTION}


def test_every_page_is_in_the_state_that_the_guest_says(dumped):
    guest, truth = dumped
    lists = {process.pid: process.memory.pages() for process in guest.processes}
    kernel = guest.memory.pages()
    assert len(truth) > 500
    for page in truth:
        pages = kernel if page.address >> 63 else lists[page.pid]
        row = row_of(pages, page.address)
        assert row is not None, page
        physical = int(pages.physical[row]) + page.address - int(pages.address[row])
        seen = (
            STATES[pages.state[row]],
            {via for number, via in enumerate(VIAS) if pages.via[row] >> number & 1},
            None if int(pages.physical[row]) == NOWHERE else physical,
        )
        if "paged-table" in page.via and seen == (State.PAGEFILE, {"paged-table"}, None):
            continue  # its PTE is on the disk, and out of reach without it; other tables are in the compressed store
        assert seen == (page.state, set(page.via), page.physical), page


def test_vads_are_listed_as_ranges_with_their_prototype_ptes(dumped):
    guest, _ = dumped
    for process in guest.processes:
        ranges = process.vads.vad_ranges()
        assert [(vad.start, vad.end) for vad in ranges] == [(vad.start, vad.end) for vad in process.vads]
        for told in ranges:
            where = {
                start_of + index * PAGE: first + index * 8
                for start_of, first, count in told.prototypes
                for index in range(count)
            }
            for address in range(told.start, told.end, PAGE)[:2048]:
                assert process.vads.vad_page(address).prototype_pte == where.get(address)


def test_census_counts_every_row(dumped, capsys):
    guest, _ = dumped
    assert run(["census", *guest.words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["pid"] for row in told] == [*(process.pid for process in guest.processes), None]
    for row in told:
        space = guest.memory if row["pid"] is None else guest.process(row["pid"]).memory
        pages = space.mapped_pages()
        assert set(row) == {"pid", "name", "pages", "via", "readable", "unreadable"}
        assert sum(row["pages"].values()) == row["readable"] + row["unreadable"] == int(pages.size.sum()) // PAGE
    assert run(["census", *guest.words, "--pid", str(guest.process("states.exe").pid)]) == 0
    assert "transition" in capsys.readouterr().out


def test_search_finds_what_is_there(dumped, capsys):
    guest, _ = dumped
    ntdll = guest.process("notepad.exe").module("ntdll.dll")
    pid = ("--pid", str(guest.process("notepad.exe").pid), "--json")
    for words in (["--hex", "4d 5a ?? 00"], ["--regex", r"MZ.\x00"]):
        assert run(["search", *guest.words, words[1], words[0], *pid]) == 0
        found = json.loads(capsys.readouterr().out)
        assert hex(ntdll.base) in {match["address"] for match in found}
        assert all(match["data"].startswith("4d5a") for match in found)
    assert run(["search", *guest.words, "NOTES", "-i", *pid]) == 0
    assert {match["text"] for match in json.loads(capsys.readouterr().out)} == {"notes"}
    for wrong in (["--hex", "4d5"], ["--regex", "("], ["--hex", "--regex", "41"], [""]):
        assert run(["search", *guest.words, *wrong]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_figures_are_drawn_of_a_real_guest(dumped, tmp_path, capsys):
    guest, _ = dumped
    pid = ("--pid", str(guest.process("states.exe").pid))
    for number, words in enumerate((["nt!NtWriteFile"], ["--map", *pid], ["--map"], ["--census"])):
        picture = tmp_path / f"{number}.svg"
        assert run(["figure", *guest.words, *words, "-o", str(picture)]) == 0
        ET.parse(picture)
    assert run(["figure", *guest.words, "--map", "--census", "-o", "a.svg"]) == 2
    assert run(["figure", *guest.words, "--map", "-o", "a.gif"]) == 2


def test_padded_reads_to_a_file_leave_holes_in_it(dumped, tmp_path, capsys):
    guest, _ = dumped
    process = guest.process("notepad.exe")
    vad = next(vad for vad in process.vads if vad.kind == "Image")
    target, size = tmp_path / "bytes", 1 << 36
    words = [hex(vad.start), hex(size), "--padded", "-o", str(target), "--pid", str(process.pid)]
    assert run(["read", *guest.words[:1], *words, *guest.words[1:]]) == 0
    assert target.stat().st_size == size
    assert target.stat().st_blocks * 512 < 1 << 24
    expected, _ = process.memory.read_padded(vad.start, 1 << 20)
    with target.open("rb") as file:
        assert file.read(1 << 20) == expected
    capsys.readouterr()
