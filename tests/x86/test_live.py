"""A 32-bit guest that runs: under either QEMU, with PAE or without, it is attached to, broken into and traced."""

from __future__ import annotations

import shutil
import time

import pytest

from coldframe.debug import attach
from coldframe.debug.callstack import vcpu_callstack
from coldframe.images import open_image as open_physical
from coldframe.trace import trace
from coldframe.windows import Guest
from x86.conftest import Built
from x86.running import ARGUMENTS, RAM, TEXT, Running, start

BINARIES = ("qemu-system-x86_64", "qemu-system-i386")


@pytest.fixture(params=BINARIES)
def running(request, symbol_file, tmp_path) -> Running:
    if shutil.which(request.param) is None or shutil.which("clang") is None:
        pytest.skip(f"{request.param} or clang is not installed")
    built = Built(symbol_file, ram=RAM)
    running = start(built, tmp_path, request.param)
    deadline = time.monotonic() + 30
    while not running.written:
        assert time.monotonic() < deadline, "the guest did not come up"
        time.sleep(0.02)
    yield running
    running.vm.close()


def test_it_is_attached_to_and_each_call_is_one_hit_with_its_arguments_and_stack(running):
    built, calls = running.built, 25
    with attach(running.qmp, built.store) as guest:
        assert guest.location.format == built.image.format
        assert [process.name for process in guest.processes] == ["System", "smss.exe", "notepad.exe"]
        with guest.break_on("nt!NtWriteFile") as point:
            before = running.written
            for _ in range(calls):
                hit = point.wait(20)
                assert (hit.process.pid, hit.thread.tid) == (812, 1204)
                assert tuple(hit.args[number] for number in range(9)) == ARGUMENTS
            assert running.written - before == calls - 1, "the last one has not begun yet"
            assert hit.memory.read(hit.args[5], hit.args[6]) == TEXT
            assert hit.memory.read(hit.return_address - 5, 1) == b"\xe8"
            frames = hit.callstack()
            assert [str(frame).split("+")[0] for frame in frames] == ["nt!NtWriteFile", "nt!KiTrap0E"]
            assert [frame.how for frame in frames] == ["entry", "end of stack"]
            hit.args[6] = 7
            assert hit.args[6] == 7
            returned = hit.wait_return(20)
            assert returned.registers["rax"] == 0
            assert returned.address == hit.return_address if not hit.late else True


def test_a_call_is_traced_with_the_file_the_bytes_and_the_result(running):
    with attach(running.qmp, running.built.store) as guest:
        assert guest.vm.vcpus == 1
        (event,) = trace(guest, "NtWriteFile", process="notepad.exe", limit=1, duration=20, results=True)
        told = event["arguments"]
        assert (event["pid"], event["tid"], event["function"], event["result"]) == (812, 1204, "nt!NtWriteFile", "0x0")
        assert told["FileHandle"] == {"handle": "0x4", "type": "File", "name": "\\Users\\b.txt"}
        assert bytes.fromhex(told["Buffer"]["data"]) == TEXT
        assert told["Length"] == len(TEXT)
        assert list(trace(guest, "NtWriteFile", process="smss.exe", limit=1, duration=0.5)) == []
        assert guest.facts()["page_tables"] == running.built.image.format
    before = running.written
    time.sleep(0.3)
    assert running.written > before, "it runs on when it is let go of"


def test_a_core_that_qemu_dumps_opens_with_its_registers_and_stack(running, tmp_path):
    core = tmp_path / "core.elf"
    running.vm.pause()
    running.vm.qmp("dump-guest-memory", paging=False, protocol=f"file:{core}")
    with open_physical(core) as image:
        guest = Guest.open(image.physical, running.built.store, image.registers)
        assert guest.current_thread(guest.registers(0)).tid == 1204
        assert vcpu_callstack(guest, 0)[-1].function == "nt!KiTrap0E"
        assert guest.location.format == running.built.image.format
