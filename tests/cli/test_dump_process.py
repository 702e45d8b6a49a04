"""`dump --pid`: what is in the file is what the guest says of its pages, and what is not is in the manifest."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import coldframe
from coldframe.errors import NotFoundError, UsageError
from coldframe.minint import Minint, start
from coldframe.minint.truth import Truth

pytestmark = pytest.mark.minint
PAGE = 4096
USER_SHARED_DATA = 0x7FFE0000
FORMATS = ("elf", "mdmp")


@dataclass(frozen=True)
class Dumped:
    """The dumps of two processes of a frozen minint, and what the guest itself said of its pages."""

    folder: Path
    image: Path
    symbols: Path
    truth: Truth
    pids: dict[str, int]


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=2, memory="256M") as running:
        yield running


@pytest.fixture(scope="module")
def dumped(machine: Minint, tmp_path_factory: pytest.TempPathFactory) -> Dumped:
    folder = tmp_path_factory.mktemp("process")
    truth = machine.write_dump(folder / "minint.image", disk=folder / "disk.qcow2")
    with coldframe.open(folder / "minint.image", symbols=[machine.symbols_folder]) as guest:
        pids = {name: guest.process(name).pid for name in ("notepad.exe", "states.exe")}
    for name, pid in pids.items():
        for suffix in FORMATS:
            output = folder / f"{name}.{suffix}"
            assert not coldframe.dump(folder / "minint.image", output, symbols=[machine.symbols_folder], pid=pid)
    return Dumped(folder, folder / "minint.image", machine.symbols_folder, truth, pids)


def elf_pages(path: Path) -> dict[int, bytes]:
    """What is at each page, by readelf's list of the segments."""
    listed = subprocess.run(["readelf", "-lW", str(path)], capture_output=True, text=True, check=True).stdout
    data, pages = path.read_bytes(), {}
    for offset, address, size in re.findall(r"LOAD\s+0x(\w+) 0x(\w+) 0x\w+ 0x(\w+)", listed):
        for at in range(0, int(size, 16), PAGE):
            pages[int(address, 16) + at] = data[int(offset, 16) + at : int(offset, 16) + at + PAGE]
    return pages


def minidump_pages(path: Path) -> dict[int, bytes]:
    """What is at each page, by skelsec's minidump."""
    minidumpfile = pytest.importorskip("minidump.minidumpfile", reason="needs the dependency group `outside`")
    theirs = minidumpfile.MinidumpFile.parse(str(path))
    reader = theirs.get_reader()
    return {
        segment.start_virtual_address + at: reader.read(segment.start_virtual_address + at, PAGE)
        for segment in theirs.memory_segments_64.memory_segments
        for at in range(0, segment.size, PAGE)
    }


def manifest(path: Path) -> dict:
    return json.loads(path.with_name(f"{path.name}.manifest.json").read_text())


def test_pages_that_left_ram_come_from_the_disk(dumped, tmp_path):
    pid = dumped.pids["states.exe"]
    coldframe.dump(
        dumped.image, tmp_path / "x.elf", symbols=[dumped.symbols], pid=pid, disk=dumped.folder / "disk.qcow2"
    )
    held, told = elf_pages(tmp_path / "x.elf"), manifest(tmp_path / "x.elf")
    assert {run["state"] for run in told["runs"] if run["readable"]} >= {"pagefile", "subsection"}
    mine = [page for page in dumped.truth.pages if page.pid == pid and page.address < 1 << 47]
    assert all("not committed" in run["reason"] for run in told["runs"] if run["file_offset"] is None)
    for page in mine:
        if page.address in held and page.address != USER_SHARED_DATA:
            assert hashlib.sha256(held[page.address]).hexdigest() == page.sha256, page
    assert sum(page.state in ("pagefile", "subsection", "compressed") for page in mine if page.address in held) > 10


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["notepad.exe", "states.exe"])
def test_every_page_that_the_guest_tells_of_is_in_the_file_or_in_the_manifest(dumped, name, suffix):
    path = dumped.folder / f"{name}.{suffix}"
    held = elf_pages(path) if suffix == "elf" else minidump_pages(path)
    told = manifest(path)
    starts = [int(run["address"], 16) for run in told["runs"]]
    assert all(
        low + run["count"] * PAGE <= high for low, run, high in zip(starts, told["runs"], starts[1:], strict=False)
    )
    mine = [page for page in dumped.truth.pages if page.pid == dumped.pids[name] and page.address < 1 << 47]
    assert len(mine) > 20
    data = path.read_bytes()
    for page in mine:
        which = bisect_right(starts, page.address) - 1
        run, number = told["runs"][which], (page.address - starts[which]) // PAGE
        assert number < run["count"]
        # a table on the disk is out of reach without it; other tables are in the compressed store
        if "paged-table" not in page.via or (run["state"], run["readable"]) != ("pagefile", False):
            assert (run["state"], set(run["via"])) == (page.state, set(page.via))
        if page.address in held:
            assert run["readable"]
            if page.address != USER_SHARED_DATA:  # it tells the time
                assert hashlib.sha256(held[page.address]).hexdigest() == page.sha256
            offset = int(run["file_offset"], 16) + number * PAGE
            assert data[offset : offset + PAGE] == held[page.address]
        else:
            assert run["file_offset"] is None
            assert run["reason"]
            assert not run["readable"] or "not committed" in run["reason"]
    assert told["totals"]["written"] == len(held)
    assert told["totals"]["pages"] == sum(run["count"] for run in told["runs"])
    assert told["totals"]["pages"] == told["totals"]["readable"] + told["totals"]["unreadable"]
    if name == "states.exe":
        assert {run["state"] for run in told["runs"] if not run["readable"]} >= {"pagefile", "subsection"}


def test_what_is_in_the_file_is_what_the_process_memory_reads(dumped):
    with coldframe.open(dumped.image, symbols=[dumped.symbols]) as guest:
        for name in dumped.pids:
            memory = guest.process(name).memory
            for address, data in elf_pages(dumped.folder / f"{name}.elf").items():
                assert memory.read(address, PAGE) == data


def test_others_find_threads_and_modules_in_the_minidump(dumped):
    minidumpfile = pytest.importorskip("minidump.minidumpfile", reason="needs the dependency group `outside`")
    theirs = minidumpfile.MinidumpFile.parse(str(dumped.folder / "notepad.exe.mdmp"))
    with coldframe.open(dumped.image, symbols=[dumped.symbols]) as guest:
        notepad = guest.process("notepad.exe")
        assert theirs.sysinfo.BuildNumber == 19041
        assert theirs.misc_info.ProcessId == notepad.pid
        assert [thread.ThreadId for thread in theirs.threads.threads] == [thread.tid for thread in notepad.threads]
        for found, thread in zip(theirs.threads.threads, notepad.threads, strict=True):
            assert found.Teb == thread.teb
            assert found.ContextObject.Rip == thread.trap_frame.integer("Rip")
        assert [(found.name, found.baseaddress, found.size) for found in theirs.modules.modules] == [
            (module.path, module.base, module.size) for module in notepad.modules
        ]
        regions = [(info.BaseAddress, info.RegionSize) for info in theirs.memory_info.infos]
        assert sum(size for _, size in regions) == sum(vad.size for vad in notepad.vads)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_finds_threads_and_files_in_the_core(dumped):
    words = ["-ex", "info threads", "-ex", "x/2xb 0x{:x}", "-ex", "info proc mappings"]
    with coldframe.open(dumped.image, symbols=[dumped.symbols]) as guest:
        notepad = guest.process("notepad.exe")
        words = [word.format(notepad.modules[0].base) for word in words]
        core = str(dumped.folder / "notepad.exe.elf")
        done = subprocess.run(
            ["gdb", "-batch", "-nx", "-core", core, *words], capture_output=True, text=True, check=True
        )
        for thread in notepad.threads:
            assert f"LWP {thread.tid} " in done.stdout
    assert re.search(r"0x4d\s+0x5a", done.stdout)
    assert r"\Windows\System32\notepad.exe" in done.stdout


def test_a_running_guest_is_paused_while_it_is_written(machine, tmp_path):
    with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        pid = guest.process("notepad.exe").pid
    output, folder = tmp_path / "live.dmp", str(machine.symbols_folder)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "coldframe",
            "dump",
            str(machine.qmp),
            "--pid",
            str(pid),
            "-o",
            str(output),
            "-s",
            folder,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "live.dmp").read_bytes()[:4] == b"MDMP"
    assert manifest(tmp_path / "live.dmp")["totals"]["written"] > 20
    assert machine.control("query-status")["running"] is True
    assert {path.name for path in tmp_path.iterdir()} == {"live.dmp", "live.dmp.manifest.json"}


def test_wrong_words(dumped, tmp_path):
    with pytest.raises(UsageError, match="elf, minidump"):
        coldframe.dump(dumped.image, tmp_path / "x.elf", symbols=[dumped.symbols], format="raw", pid=4)
    with pytest.raises(UsageError, match=r"\.mdmp"):
        coldframe.dump(dumped.image, tmp_path / "x.raw", symbols=[dumped.symbols], pid=4)
    with pytest.raises(NotFoundError, match="5"):
        coldframe.dump(dumped.image, tmp_path / "x.elf", symbols=[dumped.symbols], pid=5)
    assert list(tmp_path.iterdir()) == []
