"""A running guest written into each format: the guest runs on, and others find the same in the files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coldframe
from coldframe.images import open_image
from coldframe.minint import Minint, start
from coldframe.symbols import load_pdb, write_isf

pytestmark = pytest.mark.minint
PAGE = 4096


@pytest.fixture(scope="module")
def guest() -> Iterator[Minint]:
    with start(vcpus=2, memory="256M") as running:
        yield running


@pytest.fixture(scope="module")
def folder(guest, tmp_path_factory) -> Path:
    """`live.dmp`, `live.elf` and `live.raw` of the running guest, each of another moment, and the others from them."""
    made = tmp_path_factory.mktemp("dumps")
    for name in ("live.dmp", "live.elf", "live.raw"):
        assert coldframe.dump(guest.qmp, made / name, symbols=[guest.symbols_folder]) == ()
        assert guest.control("query-status")["running"] is True
    assert coldframe.dump(made / "live.elf", made / "elf.dmp", symbols=[guest.symbols_folder]) == ()
    coldframe.dump(made / "live.dmp", made / "dmp.elf")
    coldframe.dump(made / "dmp.elf", made / "dmp.raw")
    return made


NAMES = ("live.dmp", "live.elf", "live.raw", "elf.dmp", "dmp.elf", "dmp.raw")


@pytest.mark.parametrize("name", NAMES)
def test_the_guest_is_found_in_every_file(guest, folder, name):
    with coldframe.open(folder / name, symbols=[guest.symbols_folder]) as found:
        assert [process.name for process in found.processes][:3] == ["System", "smss.exe", "csrss.exe"]
        assert found.process("notepad.exe").memory.read(found.process("notepad.exe").modules[0].base, 2) == b"MZ"
        assert found.build == 19041


def test_registers_of_the_running_guest_are_in_the_core(folder):
    with open_image(folder / "live.elf") as image:
        assert len(image.registers) == 2
        for registers in image.registers:
            assert registers["cr0"] >> 31
            assert registers["idt_base"] >> 47
            assert registers["rip"]


def test_kdmp_parser_finds_what_the_guest_has(guest, folder):
    kdmp_parser = pytest.importorskip("kdmp_parser", reason="needs the dependency group `outside`")
    for name in ("live.dmp", "elf.dmp"):
        theirs = kdmp_parser.KernelDumpParser(folder / name)
        with coldframe.open(folder / name, symbols=[guest.symbols_folder]) as ours:
            assert theirs.directory_table_base == ours.dtb
            assert theirs.context.Rip == ours.registers(0)["rip"]
            assert theirs.header.NumberProcessors == 2
            assert theirs.header.MinorVersion == 19041
            assert theirs.header.PsActiveProcessHead == ours.symbol("nt!PsActiveProcessHead")
            assert theirs.header.KdDebuggerDataBlock == ours.symbol("nt!KdDebuggerDataBlock")
            for address in (ours.kernel.base, ours.symbol("nt!PsActiveProcessHead") & ~0xFFF):
                assert bytes(theirs.read_virtual_page(address)) == ours.memory.read(address, PAGE)
                assert theirs.translate_virtual(address) == ours.memory.translate(address)
            for start in range(0, 256 << 20, 1009 * PAGE):
                assert bytes(theirs.read_physical_page(start)) == ours.physical.read(start, PAGE)


def volatility(folder: Path, plugin: str, name: str) -> list[dict[str, object]]:
    main = "import sys; from volatility3.cli import main; sys.argv[0] = 'vol'; main()"
    words = ["-q", "--offline", "-s", str(folder / "isf"), "-r", "json", "-f", str(folder / name), plugin]
    done = subprocess.run([sys.executable, "-c", main, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("[") :])


def test_volatility_lists_the_same_processes(guest, folder):
    pytest.importorskip("volatility3", reason="needs the extra `volatility`")
    symbols = load_pdb(guest.symbols_folder / "ntkrnlmp.pdb")
    place = folder / "isf" / "windows" / "ntkrnlmp.pdb"
    place.mkdir(parents=True)
    write_isf(symbols, place / f"{symbols.identity.guid}-{symbols.identity.age}.json.xz")
    for name in ("live.dmp", "dmp.elf", "live.raw"):
        rows = volatility(folder, "windows.pslist", name)
        with coldframe.open(folder / name, symbols=[guest.symbols_folder]) as ours:
            assert [(row["PID"], row["PPID"], row["ImageFileName"]) for row in rows] == [
                (process.pid, process.ppid, process.name) for process in ours.processes
            ]
    (told,) = volatility(folder, "windows.crashinfo", "live.dmp")
    assert told["DumpType"] == "Full Dump (0x1)"
    assert told["NumberProcessors"] == 2
    assert told["SystemTime"].startswith("20")


def test_memprocfs_reads_the_dump_and_its_header(guest, folder):
    """LeechCore is what MemProcFS opens files with."""
    pytest.importorskip("memprocfs", reason="needs the dependency group `outside`")
    import leechcorepyc

    theirs = leechcorepyc.LeechCore(f"file://{folder / 'live.dmp'}")
    with coldframe.open(folder / "live.dmp", symbols=[guest.symbols_folder]) as ours:
        assert theirs.get_option(leechcorepyc.LC_OPT_MEMORYINFO_OS_DTB) == ours.dtb
        head = ours.symbol("nt!PsActiveProcessHead")
        assert theirs.get_option(leechcorepyc.LC_OPT_MEMORYINFO_OS_PsActiveProcessHead) == head
        for start in range(0, 256 << 20, 1009 * PAGE):
            assert theirs.read(start, PAGE) == ours.physical.read(start, PAGE)
    theirs.close()
