"""Small things that one asks of a guest that stands still: registers, memory as files and slices, arguments, places."""

from __future__ import annotations

import io
import re
import threading
import time

import numpy as np
import pytest

from coldframe.debug import LiveGuest
from coldframe.debug.events import decode_driver_unload, decode_image
from coldframe.errors import NotFoundError, SymbolNotFoundError, UnreadableMemoryError, UsageError
from coldframe.memory import PhysicalMemory, Run
from coldframe.memoryfile import MemoryFile
from debug.test_trace import Call

pytestmark = pytest.mark.minint

OPTIONS = "PACE=5 THREADS=3 STATES=0"
READY = "write"


def test_registers_are_read_and_written_by_name(guest: LiveGuest) -> None:
    before = guest.registers(1)["r11"]
    guest.write_registers(1, {"r11": before ^ 0xFF})
    assert guest.registers(1)["r11"] == before ^ 0xFF
    assert "R11=" + f"{before ^ 0xFF:016x}" in guest.vm.monitor("info registers -a")
    guest.write_registers(1, {"r11": before})
    assert {"cr0", "cr3", "fs_base", "k_gs_base", "mxcsr", "st0", "xmm0"} <= set(guest.registers(0))


def test_what_no_register_holds_is_refused_and_nothing_is_written(guest: LiveGuest) -> None:
    before = dict(guest.registers(0))
    for name, value in (("rax", 1 << 64), ("rax", -(1 << 63) - 1), ("cs", 1 << 32), ("xmm0", 1 << 128)):
        with pytest.raises(UsageError, match=f"register {name} cannot be"):
            guest.write_registers(0, {name: value})
    assert dict(guest.registers(0)) == before
    guest.write_registers(0, {"r11": -1})
    assert guest.registers(0)["r11"] == (1 << 64) - 1
    guest.write_registers(0, {"r11": before["r11"]})
    with pytest.raises(NotFoundError, match="did you mean rax"):
        guest.registers(0)["raxx"]
    assert guest.registers(0).get("raxx") is None
    assert "raxx" not in guest.registers(0)


def test_vector_registers_of_each_vcpu_are_as_the_monitor_shows_them(guest: LiveGuest) -> None:
    for vcpu in range(guest.vcpus):
        before = guest.registers(vcpu)["xmm7"]
        value = 0x0123456789ABCDEF_FEDCBA98_76543210 + vcpu
        guest.write_registers(vcpu, {"xmm7": value})
        vectors = guest.vector_registers(vcpu)
        assert vectors["xmm7"] == guest.registers(vcpu)["xmm7"] == value
        assert {f"xmm{number}" for number in range(16)} <= set(vectors)
        guest.write_registers(vcpu, {"xmm7": before})


def test_registers_of_the_x87_are_read_and_written(guest: LiveGuest) -> None:
    before = guest.registers(0)["st0"]
    pi = 0x4000_C90FDAA22168C235  # 80-bit: sign and exponent, then the significand with its leading one
    guest.write_registers(0, {"st0": pi})
    shown = re.search(r"FPR0=([0-9a-f]{16}) ([0-9a-f]{4})", guest.vm.monitor("info registers"))
    assert shown is not None
    assert int(shown[2] + shown[1], 16) == guest.registers(0)["st0"] == pi
    guest.write_registers(0, {"st0": before})


def test_a_structure_of_any_modules_types_is_read_and_written(guest: LiveGuest) -> None:
    process = guest.process("notepad.exe")
    peb = process.module("ntdll").struct("_PEB", process.eprocess.Peb)
    base = process.module("notepad").base
    assert peb.ImageBaseAddress == base
    loader = peb.Ldr.struct()
    entry = next(loader.InLoadOrderModuleList.entries("_LDR_DATA_TABLE_ENTRY", "InLoadOrderLinks"))
    assert (entry.DllBase, entry.BaseDllName.text) == (base, "notepad.exe")
    peb.ImageBaseAddress = base + 5
    assert process.memory.u64(peb.address_of("ImageBaseAddress")) == base + 5
    peb.ImageBaseAddress = base
    assert guest.kernel.struct("_EPROCESS", process.eprocess.address) == process.eprocess


def test_model_specific_registers_are_those_that_the_kernel_set(guest: LiveGuest) -> None:
    for vcpu in range(guest.vcpus):
        before = dict(guest.registers(vcpu))
        assert guest.symbolize(guest.msr("lstar", vcpu)) == "nt!KiSystemCall64"
        assert guest.msr("star", vcpu) >> 32 & 0xFFFF == before["cs"] & 0xFFFC or before["cs"] & 3
        assert guest.msr("efer", vcpu) & 0x501 == 0x501
        block = max(guest.msr("gs_base", vcpu), guest.msr("kernel_gs_base", vcpu))
        assert guest.struct("_KPCR", block).integer("Prcb.Number") == vcpu
        assert dict(guest.registers(vcpu)) == before
    with pytest.raises(UsageError, match="lstar"):
        guest.msr("lstart")


def test_a_model_specific_register_is_written_and_the_guest_runs_on(guest: LiveGuest) -> None:
    old = guest.msr("cstar")
    guest.write_msr("cstar", guest.symbol("nt!KiSystemCall64"))
    assert guest.msr("cstar") == guest.symbol("nt!KiSystemCall64")
    guest.write_msr("cstar", old)
    assert guest.msr("cstar") == old
    assert guest.run_to("NtWriteFile", timeout=20) is not None
    with pytest.raises(UsageError, match="address"):
        guest.write_msr("lstar", 1 << 60)
    with pytest.raises(UsageError, match="not written"):
        guest.write_msr("pat", 0)


def test_reading_registers_at_a_hit_makes_no_second_hit_of_it(guest: LiveGuest) -> None:
    seen = []
    with guest.break_on("NtWriteFile", "notepad.exe") as point:
        for hit, _ in zip(point, range(12), strict=False):
            position = int.from_bytes(hit.memory.read(hit.args[7], 8), "little") if hit.args[7] else -1
            seen.append((hit.ethread, hit.args[0], position))
            assert guest.msr("lstar", hit.vcpu) == guest.symbol("nt!KiSystemCall64")
    assert len(set(seen)) == len(seen)


def test_arguments_and_words_of_stack_are_read_and_written(guest: LiveGuest) -> None:
    hit = guest.run_to("NtWriteFile", "notepad.exe", timeout=20)
    assert hit is not None
    assert hit.args[0:9] == [hit.args[number] for number in range(9)]
    assert hit.stack[0] == hit.return_address
    assert guest.symbolize(hit.stack[0]).startswith("nt!KiSystemServiceCopyEnd")
    assert hit.stack[6] & 0xFFFF_FFFF_FFFF == hit.args[5]  # the sixth is behind the return address and home space
    old = hit.stack[6]
    hit.stack[6] = old + 1
    assert hit.args[5] == old + 1
    hit.args[5] = old
    assert hit.stack[6] == old
    before = hit.args[4:7]
    hit.args[4:7] = [before[0], old + 2, before[2]]
    assert hit.args[4:7] == [before[0], old + 2, before[2]]
    hit.args[4:7] = before
    assert hit.stack[6] == old
    with pytest.raises(UsageError, match="2 arguments are not set by 3"):
        hit.args[0:2] = [1, 2, 3]
    assert hit.stack[0:9] == [hit.stack[number] for number in range(9)]
    with pytest.raises(UsageError, match="slot 3 cannot be"):
        hit.stack[3] = 1 << 64
    with pytest.raises(UsageError, match="name the end"):
        hit.args[0:]
    with pytest.raises(IndexError):
        hit.stack[-1]


def test_what_a_function_returns_is_changed(guest: LiveGuest) -> None:
    with guest.calls("NtDelayExecution", "notepad.exe") as calls:
        call = calls.wait(20)
        assert call is not None
        assert call.returned.result == call.result == 0
        call.returned.result = 0x102
        assert call.returned.result == 0x102
        assert guest.registers(call.returned.vcpu)["rax"] == 0x102


def test_a_breakpoint_on_a_physical_address_is_hit_in_every_process_that_runs_it(guest: LiveGuest) -> None:
    process = guest.process("notepad.exe")
    virtual = guest.locate("ntdll!NtDelayExecution", process)[0]
    physical = process.memory.translate(virtual)
    assert physical is not None
    seen = set()
    with guest.break_on_physical(physical) as point:
        for hit, _ in zip(point, range(30), strict=False):
            assert hit.memory.translate(hit.address) == physical
            assert hit.address == virtual
            seen.add(hit.process.name)
    assert len(seen) >= 2
    with guest.break_on_physical(physical, process, condition="registers['rcx'] == 0") as point:
        hit = point.wait(20)
        assert hit is not None
        assert hit.process == process
    assert not guest.active
    with pytest.raises(NotFoundError):
        guest.break_on_physical(1 << 45)


def test_a_wait_is_ended_from_another_thread(guest: LiveGuest) -> None:
    with guest.break_on("KeBugCheckEx") as never:
        timer = threading.Timer(0.3, guest.interrupt)
        timer.start()
        began = time.monotonic()
        assert never.wait(60) is None
        assert time.monotonic() - began < 30
        timer.join(10)
        assert not timer.is_alive()
    guest.interrupt()  # where nothing waits, the next wait is the one
    with guest.break_on("NtWriteFile") as writes:
        assert writes.wait(60) is None
        assert writes.wait(20) is not None


def test_a_thread_that_waits_goes_on_where_its_trap_frame_says(guest: LiveGuest) -> None:
    process = guest.process("notepad.exe")
    hit = guest.run_to("nt!NtDelayExecution", process, timeout=20)
    assert hit is not None
    waiting = [thread for thread in process.threads if thread.state == "Waiting"]
    for thread in (*waiting, hit.thread):
        counter = thread.program_counter
        assert counter is not None
        assert guest.symbolize(counter, process).startswith("ntdll!Nt"), guest.symbolize(counter, process)


def test_memory_is_sliced_written_and_seen_as_an_array(guest: LiveGuest) -> None:
    process = guest.process("notepad.exe")
    base = process.module("ntdll").base
    physical = process.memory.translate(base)
    assert physical is not None
    assert process.memory[base : base + 2] == guest.physical[physical : physical + 2] == b"MZ"
    view = guest.physical.view(physical, 4096)
    assert view.shape == (4096,) and bytes(view[:2]) == b"MZ"
    try:
        guest.physical[physical + 2 : physical + 4] = b"ab"
        assert process.memory[base + 2 : base + 4] == view[2:4].tobytes() == b"ab"
        process.memory[base + 2 : base + 4] = b"cd"
        assert guest.physical[physical + 2 : physical + 4] == b"cd"
    finally:
        guest.physical[physical + 2 : physical + 4] = b"\x90\x00"
    with pytest.raises(UsageError, match="not filled"):
        process.memory[base : base + 4] = b"MZ"
    with pytest.raises(ValueError, match="start and an end"):
        guest.physical[4:]  # type: ignore[misc]


def test_an_address_space_is_a_file(guest: LiveGuest) -> None:
    process = guest.process("notepad.exe")
    module = process.module("ntdll")
    with MemoryFile(process.memory, module.base, module.size) as file:
        assert file.read(2) == b"MZ"
        file.seek(0x3C)
        header = int.from_bytes(file.read(4), "little")
        file.seek(header)
        assert file.read(4) == b"PE\0\0"
        file.seek(0)
        assert io.BufferedReader(file).peek(2)[:2] == b"MZ"


def test_a_file_of_memory_is_a_raw_file_with_holes_and_an_end() -> None:
    held = bytearray(np.arange(64, dtype=np.uint8).tobytes())
    memory = PhysicalMemory([Run(0x1000, 64, memoryview(held))])
    file = MemoryFile(memory, 0x1000, 100)
    assert isinstance(file, io.RawIOBase) and file.seekable() and file.readable() and file.writable()
    assert file.read(4) == bytes(range(4))
    assert file.read(200) == bytes(range(4, 64))  # up to the hole
    with pytest.raises(UnreadableMemoryError):
        file.read(1)
    assert file.seek(-2, io.SEEK_END) == 98
    assert file.seek(0) == 0
    assert file.write(b"\xff\xfe") == 2
    assert held[:2] == b"\xff\xfe" and file.tell() == 2
    small = MemoryFile(memory, 0x1000, 4)
    assert small.seek(3) == 3
    assert small.write(b"abc") == 1
    assert small.read(8) == b""
    assert held[3:5] == b"a\x04"
    with pytest.raises(UsageError):
        small.seek(-1)
    with pytest.raises(UsageError):
        MemoryFile(memory, -1, 4)
    assert np.frombuffer(io.BufferedReader(MemoryFile(memory, 0x1010, 16)).read(), np.uint8).tolist() == list(
        range(16, 32)
    )


def test_types_of_a_module_are_listed_and_told(guest: LiveGuest) -> None:
    types = guest.kernel.symbols.types
    names = set(types.names())
    assert {"_EPROCESS", "_KPCR", "_KTHREAD"} <= names
    record = types.record("_EPROCESS")
    assert record.size > 0
    links = record.fields["ActiveProcessLinks"]
    assert (
        guest.process(4).eprocess.address_of("ActiveProcessLinks") == guest.process(4).eprocess.address + links.offset
    )
    with pytest.raises(SymbolNotFoundError):
        guest.symbol("nt!NtWriteFiles")


def test_a_driver_that_is_loaded_or_unloaded_is_told() -> None:
    call = Call()
    image, path = call.image, "\\SystemRoot\\System32\\drivers\\null.sys"
    place = image.allocate_pool(0x1000)
    image.write(place + 0x800, path.encode("utf-16-le"))
    image.write_struct("_UNICODE_STRING", place, {"Length": 2 * len(path), "Buffer": place + 0x800})
    info = (0x100, 0xFFFFF806_12340000, 0, 0x9000, 0, 0)  # IMAGE_INFO: properties, base, selector, size
    image.write(place + 0x100, b"".join(value.to_bytes(8, "little") for value in info))
    image.write_struct(
        "_KLDR_DATA_TABLE_ENTRY",
        place + 0x200,
        {
            "DllBase": info[1],
            "SizeOfImage": info[3],
            "FullDllName.Length": 2 * len(path),
            "FullDllName.Buffer": place + 0x800,
        },
    )
    call.values[:3] = [place, 0, place + 0x100]
    loaded = decode_image(call.hit("NtWriteFile"))
    assert (loaded.kind, loaded.name, loaded.base, loaded.size) == ("driver", path, info[1], info[3])
    call.values[0] = place + 0x200
    gone = decode_driver_unload(call.hit("NtWriteFile"))
    assert (gone.kind, gone.name, gone.base, gone.size) == ("driver-unload", path, info[1], info[3])
