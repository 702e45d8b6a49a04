"""A 32-bit process of a running 64-bit minint: its modules, breakpoints, arguments and stacks are what the guest says.

editor32.exe notes the return address of each of its functions, as the compiler has it; the kernel logs what is mapped
where and the bytes of each NtWriteFile.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import coldframe
from coldframe.debug import Frame, LiveGuest, thread_callstack
from coldframe.minint import Minint, start
from coldframe.target import attach
from coldframe.trace import Syscalls, trace
from coldframe.windows.wow64 import SOURCE
from outside.readers import isf_folder, vol

pytestmark = pytest.mark.minint

EDITOR = "editor32.exe"
FUNCTIONS = ("EdFlushBuffer", "EdWriteParagraph", "EdSaveDocument", "EditorThread")
"""Each called by the next; EdWriteParagraph has no frame pointer."""
NOTE = re.compile(r"editor32: thread (\d+) returns to (\w+) (\w+) (\w+) (\w+)")
SERVICE32 = ["wow64cpu!ServiceNoTurbo", "wow64cpu!BTCpuSimulate", "wow64!RunCpuSimulation", "wow64!Wow64LdrpInitialize"]
QUIET = "NOTEPAD=0 STATES=0 SERVICES=0 WOW64=2"


@contextmanager
def running(layout: str, vcpus: int, options: str) -> Iterator[Minint]:
    """A minint whose editor has noted its frames, of both threads."""
    with start(layout=layout, vcpus=vcpus, options=f"{QUIET} {options}", memory="256M") as machine:
        while len(noted_returns(machine)) < 2:
            machine.wait_for("note", timeout=60)
        yield machine


@pytest.fixture(scope="module", params=[("19041", 1), ("22000", 2)], ids=["19041-1-vcpu", "22000-2-vcpus"])
def machine(request) -> Iterator[Minint]:
    with running(*request.param, "") as started:
        yield started


@pytest.fixture
def guest(machine) -> Iterator[LiveGuest]:
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as live:
        yield live


@pytest.fixture(scope="module")
def image(machine, tmp_path_factory) -> Path:
    """An ELF core of the machine's memory at some moment."""
    dump = tmp_path_factory.mktemp("image") / "memory.elf"
    machine.control("stop")
    machine.control("dump-guest-memory", paging=False, protocol=f"file:{dump}")
    machine.control("cont")
    return dump


def noted_returns(machine: Minint) -> dict[int, list[int]]:
    """By number of the editor's thread, where its functions return to, in the order of FUNCTIONS."""
    notes = (NOTE.match(str(event.get("text"))) for event in machine.events if event.get("event") == "note")
    return {int(note[1]): [int(word, 16) for word in note.groups()[1:]] for note in notes if note}


def names(frames: list[Frame]) -> list[str]:
    return [frame.function for frame in frames]


def check_returns(machine: Minint, frames: list[Frame]) -> None:
    """Of the editor's functions in `frames`, each returns to where the guest says."""
    noted = noted_returns(machine)[0]  # the same for both threads, which run the same code
    found = {frame.symbol: frame.return_address for frame in frames if frame.symbol in FUNCTIONS}
    assert found
    assert found == {name: noted[FUNCTIONS.index(name)] for name in found}


def check_bottom(frames: list[Frame], innermost: str) -> None:
    """From `innermost` down the stack is the editor's, to its end."""
    tail = [f"editor32!{name}" for name in FUNCTIONS[FUNCTIONS.index(innermost) :]]
    assert names(frames)[-len(tail) - 1 :] == [*tail, "ntdll!RtlUserThreadStart"]
    assert frames[-1].how == "end of stack"


def test_both_loaders_modules_are_listed_as_the_kernel_mapped_them(machine, guest):
    editor = guest.process(EDITOR)
    assert [process.name for process in guest.processes if process.wow64] == [EDITOR]
    mapped = {
        (int(str(event["base"]), 16), int(str(event["size"]), 16))
        for event in machine.events
        if event.get("event") == "image" and event["pid"] == editor.pid
    }
    native = [module for module in editor.modules if module.source != SOURCE]
    narrow = [module for module in editor.modules if module.source == SOURCE]
    assert [module.name for module in native] == [EDITOR, "ntdll.dll", "wow64.dll", "wow64cpu.dll"]
    assert [module.path for module in narrow] == [rf"C:\Windows\SysWOW64\{name}" for name in (EDITOR, "ntdll.dll")]
    assert {(module.base, module.size) for module in editor.modules} == mapped
    assert {module.image().machine for module in narrow} == {0x14C}
    assert {module.image().machine for module in native[1:]} == {0x8664}
    assert narrow[1].pdb.name == "wntdll.pdb"
    assert all(module.base + module.size < 1 << 32 for module in (*narrow, native[3]))
    assert editor.module(r"SysWOW64\ntdll") == narrow[1]
    assert editor.module("ntdll") == native[1]


def test_a_breakpoint_in_32_bit_code_has_its_arguments_stack_and_result(machine, guest):
    list(machine.new_events())
    first = len(machine.events)
    seen = []
    writer = guest.process(EDITOR).threads[1]  # one alone: the other one's hits would come while its calls return
    with guest.break_on("editor32!EdFlushBuffer", EDITOR, thread=writer) as point:
        for _ in range(4):
            hit = point.wait(30)
            assert (hit.word, hit.registers["cs"]) == (4, 0x23)
            _, buffer, length = hit.args[:3]
            seen.append((length, hashlib.sha256(hit.memory.read(buffer, length)).hexdigest()))
            frames = hit.callstack()
            check_bottom(frames, "EdFlushBuffer")
            check_returns(machine, frames)
            assert hit.stack[0] == hit.return_address == frames[0].return_address
            assert hit.wait_return(30).result == 0
    logged = []
    while len(logged) < len(seen):
        list(machine.new_events())
        events = [event for event in machine.events[first:] if event.get("event") == "write"]
        logged = [(event["length"], event["sha256"]) for event in events]
    assert set(seen) <= set(logged)


def test_a_stack_goes_from_the_kernel_through_wow64_to_the_32_bit_frames(machine, guest):
    with guest.break_on("nt!NtWriteFile", EDITOR) as point:
        frames = point.wait(30).callstack()
    found = names(frames)
    assert found[:3] == ["nt!NtWriteFile", "nt!KiSystemServiceCopyEnd", "ntdll!NtWriteFile"]
    assert found[3:5] == ["wow64!whNtWriteFile", "wow64!Wow64SystemServiceEx"]
    assert found[5:9] == SERVICE32
    crossing = next(number for number, frame in enumerate(frames) if frame.how.startswith("WOW64 context"))
    assert found[crossing + 1] == "ntdll!NtWriteFile"
    assert frames[crossing + 1].address in guest.process(EDITOR).module(r"SysWOW64\ntdll")
    check_bottom(frames, "EdFlushBuffer")
    check_returns(machine, frames)


def test_a_thread_that_waits_under_a_32_bit_call_is_walked_to_its_end(machine, guest):
    guest.pause()
    waits = []
    for thread in guest.process(EDITOR).threads:
        frames = thread_callstack(guest, thread)
        assert frames[-1].how == "end of stack"
        if "nt!NtDelayExecution" in names(frames):
            waits.append(frames)
    assert waits
    for frames in waits:  # one of them, the first thread, waits for ever
        found = names(frames)
        assert found[-4:-2] == ["ntdll!NtDelayExecution", "ntdll!RtlSleep"]
        assert found[-2] in ("editor32!EditorThread", "editor32!NtProcessStartup")


def test_a_thread_that_was_preempted_in_32_bit_code_goes_on_there():
    """Two threads that read their text through all the time, on one processor: one of them always waits for it."""
    with (
        running("19041", 1, "WOW64PACE=1 WOW64WORK=3000") as machine,
        attach(machine.qmp, symbols=[machine.symbols_folder]) as guest,
    ):
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            guest.pause()
            for thread in guest.process(EDITOR).threads:
                frames = thread_callstack(guest, thread)
                found = names(frames)
                if thread.state == "Ready" and "editor32!EdProofread" in found:
                    break
            else:
                guest.resume()
                time.sleep(0.02)
                continue
            break
        place = found.index("editor32!EdProofread")
        assert frames[place - 1].how == "machine frame"
        assert not frames[place - 1].user
        check_bottom(frames, "EdFlushBuffer")
        check_returns(machine, frames)


def test_writes_and_system_calls_are_traced_as_those_of_any_process(machine, guest):
    list(machine.new_events())
    first = len(machine.events)
    traced = list(trace(guest, "nt!NtWriteFile", process=EDITOR, limit=6))
    narrow = list(trace(guest, r"SysWOW64\ntdll!NtWriteFile", process=EDITOR, limit=6))
    calls = [event["function"] for event in Syscalls(guest, EDITOR).events(limit=8)]
    assert {"nt!NtWriteFile", "nt!NtDelayExecution"} <= set(calls)
    told = {bytes.fromhex(event["arguments"]["Buffer"]["data"]) for event in (*traced, *narrow)}
    assert all(event["arguments"]["FileHandle"]["name"].endswith(".txt") for event in (*traced, *narrow))
    machine.wait_for("write", timeout=30)
    logged = {event["sha256"] for event in machine.events[first:] if event.get("event") == "write"}
    assert {hashlib.sha256(data).hexdigest() for data in told} <= logged
    assert len(told) == 12


def test_an_image_of_memory_has_the_same_stacks(machine, image):
    with coldframe.open(image, symbols=[machine.symbols_folder]) as guest:
        stacks = [thread_callstack(guest, thread) for thread in guest.process(EDITOR).threads]
    assert [frames[-1].function for frames in stacks] == ["ntdll!RtlUserThreadStart"] * 3
    assert names(stacks[0])[-2] == "editor32!NtProcessStartup"
    assert [names(frames)[-2] for frames in stacks[1:]] == ["editor32!EditorThread"] * 2


@pytest.mark.skipif(importlib.util.find_spec("volatility3") is None, reason="needs the extra `volatility`")
def test_volatility_lists_the_same_modules(machine, image):
    isf = isf_folder(image.parent / "isf", machine.symbols_folder)
    rows = vol("-s", isf, "-f", str(image), "windows.dlllist")
    told = [(row["Base"], row["Size"], row["Path"]) for row in rows if row["Process"] == EDITOR]
    with coldframe.open(image, symbols=[machine.symbols_folder]) as guest:
        assert told == [(module.base, module.size, module.path) for module in guest.process(EDITOR).modules]
    assert len(told) == 6
