"""gdb on minint: memory in every page state, breakpoints, threads and registers, held against the guest and QEMU."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.debug import LiveGuest, thread_callstack
from coldframe.minint import Minint, Truth, TruthPage, start
from coldframe.target import attach, open_image
from gdbserver.programs import Client, gdb, runs, serving, words_of, writes_on

pytestmark = [
    pytest.mark.minint,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (scripts/setup does)"),
]

PAGE = 4096
NESTED = ["notepad!NpFlushBuffer", "notepad!NpWriteParagraph", "notepad!NpSaveDocument", "notepad!EditorThread"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=2) as running:
        running.wait_until_steady()
        yield running


@pytest.fixture(scope="module")
def places(machine: Minint) -> dict[str, int]:
    """Addresses of functions."""
    with attached(machine) as guest:
        notepad = guest.process("notepad.exe")
        names = ("nt!NtWriteFile", "nt!NtDelayExecution")
        own = ("notepad!NpFlushBuffer", "notepad!NpWriteParagraph", "ntdll!NtWriteFile")
        return {name: guest.symbol(name) for name in names} | {name: guest.symbol(name, notepad) for name in own}


def attached(machine: Minint) -> LiveGuest:
    return attach(machine.qmp, symbols=[machine.symbols_folder])


def chosen(truth: Truth, pid: int, each: int = 2) -> list[TruthPage]:
    """Some pages of a process of each state and way to it, whose bytes the guest tells."""
    kinds: dict[tuple[object, ...], list[TruthPage]] = defaultdict(list)
    for page in truth.pages:
        if page.pid == pid and page.sha256:
            kinds[page.state, page.via].append(page)
    return [page for pages in kinds.values() for page in pages[:each]]


def dumped(pages: list[TruthPage], folder: Path) -> list[str]:
    """gdb's commands that write each page to a file."""
    return [
        f"dump binary memory {folder}/{page.address:x} {page.address:#x} {page.address + PAGE:#x}" for page in pages
    ]


def compare(pages: list[TruthPage], folder: Path, said: str) -> set[str]:
    """The pages in the files are the guest's; returns the states that were among them."""
    for page in pages:
        file = folder / f"{page.address:x}"
        assert file.exists(), f"{page.address:#x} {page.state} {page.via}: {said}"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == page.sha256, (
            f"{page.address:#x} {page.state} {page.via}"
        )
    return {page.state for page in pages}


def test_gdb_reads_pages_in_every_state_as_the_guest_says_they_are(machine: Minint, tmp_path: Path) -> None:
    truth = machine.truth()
    try:
        pid = next(event["pid"] for event in truth.events if str(event.get("name", "")).endswith("states.exe"))
        assert isinstance(pid, int)
        pages = chosen(truth, pid)
        said = gdb(words_of(machine, process=str(pid)), *dumped(pages, tmp_path))
    finally:
        machine.go()
    states = compare(pages, tmp_path, said)
    assert states == {"valid", "transition", "pagefile", "compressed", "demand-zero", "subsection"}


def test_breakpoints_of_the_process_are_hit_and_those_of_others_are_not(
    machine: Minint, places: dict[str, int]
) -> None:
    """nt!NtDelayExecution is called by nearly every process of minint, and more often by others."""
    again = ["continue", "info registers rip", "bt"]
    said = gdb(
        words_of(machine),
        "info threads",
        "break notepad!NpFlushBuffer", *again, *again, "delete",
        "hbreak nt!NtDelayExecution", *again, *again, *again, "delete",
        "detach",
    )  # fmt: skip
    numbers = [int(match, 16) for match in re.findall(r"^rip +(0x\w+)", said, re.MULTILINE)]
    assert numbers == [places["notepad!NpFlushBuffer"]] * 2 + [places["nt!NtDelayExecution"]] * 3
    backtraces = re.findall(r"^#0 .*(?:\n#\d+ .*)*", said, re.MULTILINE)
    stacks = [re.findall(r" in (\S+) \(\)", backtrace) for backtrace in backtraces]
    assert [stack[:5] for stack in stacks[:2]] == [[*NESTED, "ntdll!RtlUserThreadStart"]] * 2
    for stack in stacks[2:]:  # through the system call to the editor's thread
        assert stack[:2] == ["nt!NtDelayExecution", "ntdll!NtDelayExecution"]
        assert stack[-1] in {"ntdll!RtlUserThreadStart", "??"}
        assert stack[-2] in {"notepad!EditorThread", "ntdll!RtlUserThreadStart"}
    assert "detached" in said
    assert runs(machine) and writes_on(machine)


def test_gdb_walks_the_stack_of_every_waiting_thread_as_coldframe_does(machine: Minint) -> None:
    """Of the user half, where both begin at the trap frame; by gdb's reading of what the unwind data became."""
    machine.truth()  # nothing is scheduled until `go`
    try:
        said = gdb(words_of(machine), "thread apply all bt", "info threads")
        with attached(machine) as guest:
            notepad = guest.process("notepad.exe")
            waiting = {thread.tid: thread for thread in notepad.threads if thread.state != "Running"}
            walked = {tid: thread_callstack(guest, thread) for tid, thread in waiting.items()}
            parts = dict(re.findall(r"^Thread \d+ \(Thread \d+\.(\d+)\b[^\n]*\n((?:#.*\n)+)", said, re.MULTILINE))
            assert walked
            for tid, frames in walked.items():
                wanted = [frame.function for frame in frames if frame.user]
                assert re.findall(r" in (\w+!\w+) \(\)", parts[str(tid)]) == wanted
    finally:
        machine.go()


def test_gdb_names_the_windows_threads_and_modules(machine: Minint) -> None:
    said = gdb(words_of(machine), "info threads", "info sharedlibrary")
    with attached(machine) as guest:
        notepad = guest.process("notepad.exe")
        tids = {thread.tid for thread in notepad.threads}
        modules = [module.path for module in notepad.modules]
    shown = re.findall(r"Thread (\d+)\.(\d+) \"([^\"]*)\" \((\w+)\)", said)
    assert {int(tid) for _, tid, _, _ in shown} == tids
    assert {int(pid) for pid, *_ in shown} == {notepad.pid}
    assert "notepad!EditorThread" in {name for *_, name, _ in shown}
    assert all(module in said for module in modules)


def test_a_step_is_an_instruction_and_a_system_call_is_one(machine: Minint, places: dict[str, int]) -> None:
    """Through the stub of NtWriteFile in ntdll, whose last instructions are SYSCALL (0f 05) and RET (c3)."""
    begin = places["ntdll!NtWriteFile"]
    step = ["stepi", 'printf "at %lx in %d: %x\\n", $pc, $_thread, *(unsigned short *)$pc']
    said = gdb(words_of(machine), "break *'ntdll!NtWriteFile'", "continue", "delete", *step * 6)
    steps = [(int(at, 16), thread, int(code, 16)) for at, thread, code in re.findall(r"at (\w+) in (\d+): (\w+)", said)]
    assert len({thread for _, thread, _ in steps}) == 1
    at = next(number for number, (_, _, code) in enumerate(steps) if code == 0x050F)
    assert begin < steps[at][0] < begin + 0x20
    assert steps[at + 1][0] == steps[at][0] + 2
    assert steps[at + 1][2] & 0xFF == 0xC3


def test_a_watchpoint_is_hit_by_the_process(machine: Minint, places: dict[str, int]) -> None:
    """The return address that a call pushes."""
    said = gdb(
        words_of(machine),
        f"break *{places['notepad!NpFlushBuffer']:#x}", "continue", "delete",
        "set var $slot = (unsigned long *)($sp - 8)", "watch *$slot", "continue", "p $pc", "detach",
    )  # fmt: skip
    assert "Hardware watchpoint" in said
    assert re.search(r"hit Hardware watchpoint \d+", said), said
    assert runs(machine)


def test_memory_and_registers_are_written(machine: Minint, places: dict[str, int]) -> None:
    """NtWriteFile is given five bytes less to write, by its seventh argument; the guest's log tells such a write."""
    length = "*(unsigned int *)($sp + 0x38)"
    said = gdb(
        words_of(machine),
        f"hbreak *{places['nt!NtWriteFile']:#x}", "continue", "delete",
        f'printf "length %d\\n", {length}', f"set var {length} = {length} - 5",
        "p/x $r10", "set var $r10 = 0x1122334455667788", "p/x $r10",
        "set var *(int *)0x1000 = 1",
    )  # fmt: skip
    assert "0x1122334455667788" in said
    assert "Cannot access memory at address 0x1000" in said
    told = re.search(r"length (\d+)", said)
    assert told is not None
    machine.wait_for("write", accept=lambda event: event["length"] == int(told[1]) - 5)


def test_registers_are_those_that_qemus_monitor_shows(machine: Minint, tmp_path: Path) -> None:
    place = tmp_path / "gdb.sock"
    with serving(words_of(machine, process=None), place), Client(place) as client:
        assert client.ask(b"qfThreadInfo") == b"m1,2"
        xml = client.ask(b"qXfer:features:read:target.xml:0,3f00").decode()
        text = machine.control("human-monitor-command", **{"command-line": "info registers -a"})
        parts = re.split(r"CPU#\d+", str(text))[1:]
        for vcpu, part in enumerate(parts):
            assert client.ask(b"Hg%x" % (vcpu + 1)) == b"OK"
            raw = bytes.fromhex(client.ask(b"g").replace(b"x", b"0").decode())
            told = {
                name.lower(): int(value, 16) for name, value in re.findall(r"\b(R\w\w|R\d+|RIP|CR\d) ?=(\w+)", part)
            }
            order = [*"abcd", "si", "di", "bp", "sp", *(str(number) for number in range(8, 16)), "ip"]
            order = [f"r{name}x" if name in "abcd" else f"r{name}" for name in order]
            seen = {name: int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n, name in enumerate(order)}
            assert seen == {name: told[name] for name in order}
            number = re.search(r'<reg name="cr3"[^>]*regnum="(\d+)"', xml)
            assert number is not None
            cr3 = bytes.fromhex(client.ask(b"p%x" % int(number[1])).decode())
            assert int.from_bytes(cr3, "little") == told["cr3"]
    assert runs(machine)


def test_threads_that_wait_have_the_registers_with_which_they_go_on_in_user_mode(machine: Minint) -> None:
    """Where coldframe's call stack of the same thread, which unwinds its way there, crosses to user mode."""
    truth = machine.truth()  # nothing is scheduled until `go`
    try:
        said = gdb(words_of(machine), 'thread apply all -q printf "%d: %lx %lx\\n", $_thread, $pc, $sp', "info threads")
        seen = {(int(pc, 16), int(sp, 16)) for pc, sp in re.findall(r"^\d+: (\w+) (\w+)$", said, re.MULTILINE)}
        with attached(machine) as guest:
            notepad = guest.process("notepad.exe")
            stacks = [thread_callstack(guest, thread) for thread in notepad.threads if thread.state != "Running"]
            crossed = [next(frame for frame in stack if frame.user) for stack in stacks]
            assert crossed
            assert {(frame.address, frame.stack_pointer) for frame in crossed} <= seen
            assert truth.pages
    finally:
        machine.go()


def test_an_image_is_debugged_as_a_core_file_is(machine: Minint, tmp_path: Path) -> None:
    truth = machine.write_dump(tmp_path / "minint.elf", disk=tmp_path / "minint.qcow2")
    with open_image(tmp_path / "minint.elf", symbols=[machine.symbols_folder]) as guest:
        pid = guest.process("states.exe").pid
    pages = chosen(truth, pid, each=1)
    words = ["gdbserver", str(tmp_path / "minint.elf"), "-s", str(machine.symbols_folder), "-P", str(pid)]
    with_disk = [*words, "--disk", str(tmp_path / "minint.qcow2")]
    written = f"set var *(char *){next(page.address for page in pages if page.state == 'valid'):#x} = 1"
    said = gdb(
        with_disk, *dumped(pages, tmp_path), "info threads", "continue", "stepi", "break *0x1000", "continue",
        written, "monitor ps",
    )  # fmt: skip
    assert compare(pages, tmp_path, said) >= {"valid", "transition", "pagefile", "compressed", "subsection"}
    assert "states!" in said and "MemCompression" in said
    assert "does not run" in said
    assert "Cannot insert breakpoint" in said
    assert "Cannot access memory" in said
