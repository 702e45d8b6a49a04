"""Whole address spaces of a real guest as arrays: every page as the single resolver, and the guest itself, says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import coldframe
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
