"""Pages that left RAM, in a guest whose memory is short: every page of every process against the guest's own log.

The guest has 64 MB and a program that works on more, so that its pages go to the compressed store and to three
fragmented paging files and come back all the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import coldframe
from coldframe.cli.main import run
from coldframe.disk import NtfsVolume, open_image, volumes
from coldframe.errors import CapabilityError
from coldframe.minint import Truth, TruthPage, start
from coldframe.minint.machine import read_file
from coldframe.paging import State

pytestmark = pytest.mark.minint

PAGE = 4096
OPTIONS = "STRESS=64 STRESSTHREADS=2 PAGEFILES=3 PAGEFILE=16"
LAYOUTS = os.environ.get("COLDFRAME_PAGED_LAYOUTS", "22000").split()
ROUNDS = int(os.environ.get("COLDFRAME_PAGED_ROUNDS", "2"))


@pytest.fixture(scope="module", params=LAYOUTS)
def machine(request):
    with start(layout=request.param, memory="64M", options=OPTIONS) as made:
        yield made


def paged_out(machine) -> Truth:
    """The guest's account of itself, frozen, with pages in its paging files."""
    for _ in range(10):
        time.sleep(4)
        truth = machine.truth()
        if sum(page.state == State.PAGEFILE for page in truth.pages) > 50:
            return truth
        machine.go()
    raise AssertionError("no pages went out within 40 s")


def space_of(guest, page: TruthPage):
    return guest.memory if page.address >> 63 else guest.process(page.pid).memory


def check_every_page(guest, truth: Truth) -> Counter[str]:
    """Every page that the guest names reads, and reads right."""
    seen: Counter[str] = Counter()
    spaces = {process.pid: process.memory for process in guest.processes}
    for page in truth.pages:
        if page.sha256 is not None:
            space = guest.memory if page.address >> 63 else spaces[page.pid]
            assert hashlib.sha256(space.read(page.address, PAGE)).hexdigest() == page.sha256, page
            seen[page.state] += 1
    return seen


@pytest.fixture(scope="module")
def dumped(machine, tmp_path_factory):
    """Memory, disk and truth of one moment, and what a live look at that moment saw."""
    folder = tmp_path_factory.mktemp("paged")
    truth = paged_out(machine)
    machine.control("stop")
    machine.control("dump-guest-memory", paging=False, protocol=f"file:{folder / 'memory.elf'}")
    shutil.copyfile(machine.disk, folder / "disk.qcow2")
    before = hashlib.sha256(machine.disk.read_bytes()).hexdigest()
    with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        seen = check_every_page(guest, truth)
        assert machine.control("query-block-exports")
    assert machine.control("query-block-exports") == []
    assert hashlib.sha256(machine.disk.read_bytes()).hexdigest() == before
    assert seen[State.PAGEFILE] > 50
    machine.control("cont")
    machine.go()
    return folder, truth, (str(folder / "memory.elf"), "--symbols", str(machine.symbols_folder))


def test_every_page_reads_right_from_a_dump_and_the_disk(machine, dumped):
    folder, truth, _ = dumped
    before = hashlib.sha256((folder / "disk.qcow2").read_bytes()).hexdigest()
    symbols = [machine.symbols_folder]
    with coldframe.open(folder / "memory.elf", symbols=symbols, disk=folder / "disk.qcow2") as guest:
        check_every_page(guest, truth)
        for process in guest.processes:
            census = process.memory.pages().census()
            assert not census.unreadable, f"{process}: {census}"
        assert not [warning for warning in guest.warnings if "paging file" in warning]
    assert hashlib.sha256((folder / "disk.qcow2").read_bytes()).hexdigest() == before


def test_reads_in_bulk_and_of_single_pages_agree(machine, dumped):
    folder, _, _ = dumped
    with coldframe.open(folder / "memory.elf", symbols=[machine.symbols_folder], disk=folder / "disk.qcow2") as guest:
        process = guest.process("states.exe")
        vad = max((vad for vad in process.vads if vad.private), key=lambda vad: vad.size)
        whole = process.memory.read(vad.start, vad.size)
        for at in range(0, vad.size, 37 * PAGE):
            assert process.memory.read(vad.start + at, PAGE) == whole[at : at + PAGE]


def test_paging_files_that_were_copied_out_do_as_well(machine, dumped, tmp_path, capsys):
    folder, truth, words = dumped
    given = []
    for number, name in enumerate(("pagefile.sys", "pagefile1.sys", "pagefile2.sys")):
        (tmp_path / name).write_bytes(read_file(folder / "disk.qcow2", f"\\{name}"))
        given += ["--pagefile", f"{number}={tmp_path / name}"]
    page = next(page for page in truth.pages if page.state == State.PAGEFILE and page.sha256 and not page.address >> 63)
    place = [hex(page.address), "--pid", str(page.pid)]
    assert run(["read", words[0], place[0], "4096", *place[1:], *words[1:], *given, "-o", str(tmp_path / "page")]) == 0
    assert hashlib.sha256((tmp_path / "page").read_bytes()).hexdigest() == page.sha256
    number, offset = page.pagefile
    assert run(["read", words[0], place[0], "4096", *place[1:], *words[1:], *given, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["sources"]
    assert told == {"address": place[0], "source": f"pagefile:pagefile{number or ''}.sys@{offset:#x}"}
    assert run(["pte", words[0], *place, *words[1:], *given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == f"pagefile:pagefile{number or ''}.sys@{offset:#x}"
    assert told["readable"] is True
    assert run(["read", words[0], place[0], "4096", *place[1:], *words[1:]]) == 1
    said = capsys.readouterr().err
    assert f"page is in paging file {number}" in said
    assert f"at {offset:#x}: give --disk or --pagefile" in said
    assert said.count("\n") == 1
    (tmp_path / "pagefile.sys").write_bytes(b"short")
    (tmp_path / "pagefile1.sys").write_bytes(b"short")
    (tmp_path / "pagefile2.sys").write_bytes(b"short")
    assert run(["read", words[0], place[0], "4096", *place[1:], *words[1:], *given]) == 1
    assert "ends at 0x5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pagefile", "pagefile.sys"], "expected --pagefile N=FILE"),
        (["--pagefile", "16=pagefile.sys"], "N from 0 to 15"),
        (["--pagefile", "0=nowhere"], "expected a paging file at nowhere"),
        (["--disk", "nowhere"], "expected a virtual disk at nowhere"),
        (["--no-disk", "--disk", "DISK"], "--no-disk leaves nothing to read"),
    ],
)
def test_wrong_words_are_one_line(dumped, words, said, capsys):
    folder, _, opening = dumped
    words = [word.replace("DISK", str(folder / "disk.qcow2")) for word in words]
    assert run(["read", opening[0], "0x10000", "16", *opening[1:], *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_disk_that_is_another_guests_is_told(machine, dumped, tmp_path, capsys):
    """The volume's serial number is not the one that the kernel mounted."""
    folder, truth, words = dumped
    raw = tmp_path / "other.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(folder / "disk.qcow2"), str(raw)], check=True)
    with raw.open("r+b") as file:
        file.seek((1 << 20) + 0x48)
        file.write(b"\1\2\3\4\5\6\7\x08")
    page = next(page for page in truth.pages if page.state == State.PAGEFILE and page.sha256 and not page.address >> 63)
    place = [hex(page.address), "16", "--pid", str(page.pid)]
    assert run(["read", words[0], *place, *words[1:], "--disk", str(raw)]) == 1
    assert "0 volumes of the disks fit \\Device\\HarddiskVolume1 (serial number" in capsys.readouterr().err


def test_a_replaced_image_is_told_and_not_read(machine, dumped, tmp_path, capsys):
    """states.exe on the disk becomes another program: its header's page may be out of RAM, some of its pages are in."""
    folder, truth, words = dumped
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(folder / "disk.qcow2"), str(raw)], check=True)
    page = next(page for page in truth.pages if page.state == State.SUBSECTION and str(page.file).endswith("tes.exe"))
    volume = NtfsVolume(volumes(open_image(raw))[0])
    file = volume.open(str(page.file))
    stamp = struct.unpack_from("<I", file.read(0x3C, 4))[0] + 8
    with raw.open("r+b") as changed:
        for offset in (stamp, *range(0x600, file.size // 2, 0x200)):
            at = file.place(offset)
            assert at is not None
            changed.seek((1 << 20) + at)
            changed.write(b"\x99\x88\x77\x66")
    assert run(["read", words[0], hex(page.address), "16", "--pid", str(page.pid), *words[1:], "--disk", str(raw)]) == 1
    said = capsys.readouterr().err
    assert "states.exe on the disk is not the image in RAM, it was replaced: its " in said
    assert said.count("\n") == 1


def test_pages_are_right_between_runs_and_while_it_runs(machine, dumped):
    """One attachment: the guest runs, its pages move, every page is looked at again; then pages of a running guest."""
    with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        for _ in range(ROUNDS - 1):
            guest.resume()
            time.sleep(1)
            truth = paged_out(machine)
            guest.pause()
            check_every_page(guest, truth)
            guest.resume()
            machine.go()
        process = guest.process("states.exe")
        memory = process.memory
        vads = [(vad.start, vad.size) for vad in process.vads if vad.private and vad.size > 8 << 20]
        guest.resume()
        known, states = random.Random(5), Counter()
        end = time.monotonic() + 60
        while states[State.PAGEFILE] + states[State.COMPRESSED] <= 20 and time.monotonic() < end:
            start_of, size = known.choice(vads)
            address = start_of + known.randrange(size // PAGE) * PAGE
            states[memory.resolve(address).state] += 1
            assert rounds_of(address, memory.read(address, PAGE)) is not None, hex(address)
        guest.pause()
    assert states[State.PAGEFILE] + states[State.COMPRESSED] > 20, states


def rounds_of(page: int, data: bytes) -> set[int] | None:
    """How often states.exe has written the page, by what it writes there (`Word` in guest/user/states.c); None for what
    it never writes: bytes of another page."""
    mask = (1 << 64) - 1
    found = set()
    for index in range(0, 512, 73):
        value = struct.unpack_from("<Q", data, index * 8)[0]
        for times in range(251):
            word = ((page ^ (times * 0x9E3779B97F4A7C15 & mask)) * 0xD1B54A32D192ED03 & mask) + index & mask
            if value == (word if times else 0):
                found.add(times)
                break
        else:
            return None
    return found


def test_a_reader_that_is_killed_leaves_no_export(machine, dumped):
    script = f"""
import sys, time, coldframe
with coldframe.attach({str(machine.qmp)!r}, symbols=[{str(machine.symbols_folder)!r}]) as guest:
    guest.pages.volumes.all()
    print("reads", flush=True)
    time.sleep(100)
"""
    reader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert reader.stdout.readline() == b"reads\n"
    assert machine.control("query-block-exports")
    reader.kill()
    reader.wait()
    end = time.monotonic() + 10
    while machine.control("query-block-exports") or machine.control("query-status")["status"] != "running":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not list(Path("/tmp").glob("coldframe-nbd-*/nbd"))


def test_somebody_elses_nbd_server_is_left_alone(machine, dumped, tmp_path):
    machine.control("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "theirs")}})
    with (
        coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest,
        pytest.raises(CapabilityError, match=r"give --disk.*NBD server already running"),
    ):
        guest.pages.volumes.all()
    machine.control("nbd-server-stop")  # which QEMU would refuse, were it gone
