"""A 32-bit guest, or one of its processes, written as Windows writes them: others read in the files what there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import coldframe
from builder.compact import NT52, SEVEN_PAE, write_isf
from coldframe.images import open_image
from coldframe.images.crashheader import FORM32, CrashHeader
from coldframe.images.write import write_crash_dump
from coldframe.memory import PhysicalMemory, Run
from x86.conftest import PDBS, Built, symbols_of
from x86.test_states import VALID, Scene

PAGE = 4096
USER = {
    "SegCs": 0x1B,
    "Eip": 0x7C90_1234,
    "HardwareEsp": 0x0006_FF00,
    "HardwareSegSs": 0x23,
    "Eax": 0x1B7,
    "EFlags": 0x246,
}


@dataclass
class Dumped:
    """`ram` is the guest's memory as a raw image, `whole` a crash dump made of it, `symbols` the kernel's ISF file."""

    built: Built
    ram: Path
    whole: Path
    symbols: Path


@pytest.fixture(params=[NT52, SEVEN_PAE], ids=lambda path: path.stem)
def dumped(request, folder, tmp_path) -> Dumped:
    built = Built(symbols_of(request.param, folder))
    image = built.image
    frame = image.allocate_struct("_KTRAP_FRAME", USER)
    image.write_struct("_ETHREAD", built.thread.address, {"Tcb.TrapFrame": frame})
    Scene(built)
    made = Dumped(built, tmp_path / "ram.raw", tmp_path / "whole.dmp", tmp_path / "kernel.json")
    made.ram.write_bytes(bytes(image.ram[0].data))
    write_isf(made.symbols, request.param, pdb=PDBS[request.param])
    coldframe.dump(made.ram, made.whole, symbols=[made.symbols])
    return made


def test_a_crash_dump_leads_to_the_same_guest(dumped):
    with coldframe.open(dumped.whole, symbols=[dumped.symbols]) as guest:
        assert guest.resolver.format.name == dumped.built.image.format
        assert [process.name for process in guest.processes] == ["System", "smss.exe", "notepad.exe"]
        assert guest.process(812).memory.read(VALID, PAGE) == dumped.built.open().process(812).memory.read(VALID, PAGE)


def test_a_crash_dump_of_a_crash_dump_is_the_same(dumped, tmp_path):
    coldframe.dump(dumped.whole, tmp_path / "again.dmp")
    assert (tmp_path / "again.dmp").read_bytes() == dumped.whole.read_bytes()


def volatility_layer(path: Path):
    from volatility3.framework import contexts
    from volatility3.framework.layers import crash, physical

    context = contexts.Context()
    context.config["file.location"] = path.as_uri()
    context.layers.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["dump.base_layer"] = "file"
    return crash.WindowsCrashDump32Layer(context, "dump", "dump")


def test_volatility_reads_the_crash_dump(dumped):
    pytest.importorskip("volatility3", reason="needs the extra `volatility`")
    theirs, built = volatility_layer(dumped.whole), dumped.built
    header = theirs.get_header()
    assert header.PaeEnabled == (built.image.format == "pae")
    assert (header.MachineImageType, header.MinorVersion, header.DirectoryTableBase) == (
        0x14C,
        3790,
        built.image.kernel_dtb,
    )
    assert header.PsActiveProcessHead == built.image.variable("PsActiveProcessHead")
    assert header.PsLoadedModuleList == built.image.variable("PsLoadedModuleList")
    ram = dumped.ram.read_bytes()
    for start in range(0, len(ram), 61 * PAGE):
        if any(ram[start : start + PAGE]):
            assert theirs.read(start, PAGE) == ram[start : start + PAGE], hex(start)


def test_more_runs_than_the_header_holds_become_a_bitmap(tmp_path):
    """86 runs stand in a 32-bit header; of one more a bitmap tells."""
    data = bytes(range(1, 88))
    for count, kind in ((86, "32-bit crash dump (complete)"), (87, "32-bit crash dump (bitmap)")):
        pages = {2 * PAGE * number: bytes([data[number]]) * PAGE for number in range(count)}
        path = tmp_path / f"{count}.dmp"
        write_crash_dump(
            path,
            PhysicalMemory([Run(start, PAGE, memoryview(content)) for start, content in pages.items()]),
            CrashHeader(0x39000, FORM32).pack(),
        )
        with open_image(path) as image:
            assert image.format == kind
            assert all(image.physical.read(start, PAGE) == content for start, content in pages.items())
        theirs = volatility_layer(path)
        assert all(theirs.read(start, PAGE) == content for start, content in pages.items())


def test_registers_survive(tmp_path):
    names = (
        "rax",
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rbp",
        "rsp",
        "rip",
        "cs",
        "ds",
        "es",
        "fs",
        "gs",
        "ss",
        "eflags",
    )
    registers = {name: 0x1001 * number for number, name in enumerate(names, 1)}
    header = CrashHeader(0x39000, FORM32, pae=True, loaded_modules=0x8055_0000, registers=registers).pack()
    found = dict(FORM32.registers(header))
    assert found == {**registers, "cr3": 0x39000, "pae": 1, "nt_address": 0x8055_0000}


def test_a_process_is_written_for_its_machine(dumped, tmp_path):
    minidumpfile = pytest.importorskip("minidump.minidumpfile", reason="needs the dependency group `outside`")
    path = tmp_path / "notepad.dmp"
    coldframe.dump(dumped.ram, path, symbols=[dumped.symbols], pid=812)
    theirs = minidumpfile.MinidumpFile.parse(str(path))
    assert theirs.sysinfo.ProcessorArchitecture.name == "INTEL"
    (thread,) = theirs.threads.threads
    context = thread.ContextObject
    assert (context.Eip, context.Esp, context.Eax) == (USER["Eip"], USER["HardwareEsp"], USER["Eax"])
    assert (context.SegCs, context.SegSs, context.EFlags) == (0x1B, 0x23, 0x246)
    assert {module.name.rpartition("\\")[2] for module in theirs.modules.modules} == {"notepad.exe", "ntdll.dll"}
    expected = dumped.built.open().process(812).memory.read(VALID, PAGE)
    assert theirs.get_reader().read(VALID, PAGE) == expected
