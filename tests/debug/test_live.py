"""A live guest: every call is seen once, in order, with its stack; and what was set is gone afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from coldframe.debug import GuestPausedError, LiveGuest, thread_callstack, vcpu_callstack
from coldframe.errors import CapabilityError, GuestGoneError, NotFoundError, SymbolNotFoundError, UsageError
from coldframe.minint import Minint, start
from coldframe.minint.truth import Write as LoggedWrite
from coldframe.target import attach
from coldframe.trace import FileWrites, trace, write_of
from debug.marks import writes_up_to

pytestmark = pytest.mark.minint

WRITES = int(os.environ.get("COLDFRAME_SOAK_WRITES", "150"))
NESTED = ["notepad!NpFlushBuffer", "notepad!NpWriteParagraph", "notepad!NpSaveDocument"]
HEADING = re.compile(rb"\[notes-(\d+) #(\d+) ([\w-]+)\]")


@pytest.fixture(scope="module")
def machines() -> Iterator[Callable[..., Minint]]:
    """`machines(vcpus)`: a running minint; one at a time, the same for tests that follow each other."""
    with ExitStack() as stack:
        running: dict[tuple[object, ...], Minint] = {}

        def get(vcpus: int, **words: object) -> Minint:
            key = (vcpus, *sorted(words.items()))
            if key not in running:
                for machine in running.values():
                    machine.close()
                running.clear()
                running[key] = stack.enter_context(start(vcpus=vcpus, **words))  # type: ignore[arg-type]
            return running[key]

        yield get


@pytest.fixture
def machine(machines) -> Minint:
    return machines(2)


@pytest.fixture
def guest(machine) -> Iterator[LiveGuest]:
    with attached(machine) as live:
        yield live


def attached(machine: Minint) -> LiveGuest:
    return attach(machine.qmp, symbols=[machine.symbols_folder])


def lives(machine: Minint) -> bool:
    """The guest writes on."""
    list(machine.new_events())
    machine.wait_for("write", timeout=10)
    return True


@pytest.mark.soak
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_every_write_is_seen_exactly_once_with_its_bytes_and_its_stack(machines, vcpus):
    machine = machines(vcpus, options="PACE=1 THREADS=4")
    list(machine.new_events())
    first = len(machine.events)
    writes = FileWrites()
    by_thread: dict[int, list] = defaultdict(list)
    with attached(machine) as guest:
        assert len(guest.processes) > 3
        for told in trace(guest, "NtWriteFile", process="notepad.exe", limit=WRITES):
            write = writes.add(told)
            assert write is not None and write.complete, told["arguments"]
            by_thread[told["tid"]].append(write)
            assert told["stack"][0] == "nt!NtWriteFile"
            names = [frame.partition("+")[0] for frame in told["stack"]]
            at = names.index("ntdll!NtWriteFile")
            assert names[at + 1 : at + 4] == NESTED
            assert names[at + 4] == "notepad!EditorThread"
    assert lives(machine)
    logged: dict[int, list[LoggedWrite]] = defaultdict(list)
    for entry in writes_up_to(machine, first, ((tid, seen[-1].offset) for tid, seen in by_thread.items())):
        logged[entry.tid].append(entry)
    assert len(by_thread) >= min(3, vcpus)
    for tid, seen in by_thread.items():
        told = [(entry.offset, entry.length, entry.sha256) for entry in logged[tid]]
        ours = [(entry.offset, len(entry.data), hashlib.sha256(entry.data).hexdigest()) for entry in seen]
        begin = told.index(ours[0])
        assert told[begin : begin + len(ours)] == ours
        numbers = [int(HEADING.match(entry.data)[2]) for entry in seen]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_buffers_lay_in_pages_of_several_states(guest):
    kinds = {}
    for told in trace(guest, "NtWriteFile", process="notepad.exe", limit=40):
        write = write_of(told)
        kind = HEADING.match(write.data)[3]
        pages = told["arguments"]["Buffer"]["pages"]
        kinds.setdefault(kind, set()).update((page["state"], *page["via"]) for page in pages)
    assert ("transition",) in kinds[b"trimmed"]
    assert any("prototype" in words for words in kinds[b"section"] | kinds[b"section-trimmed"])


def test_leaving_the_block_removes_everything_even_on_an_exception(machine):
    with pytest.raises(ZeroDivisionError), attached(machine) as guest, guest.break_on("nt!NtWriteFile") as hits:
        for _ in hits:
            raise ZeroDivisionError
    assert lives(machine)
    with attached(machine) as guest:
        guest.resume()
        time.sleep(0.3)
        guest.pause()
        assert not guest.active
    assert lives(machine)


def test_hits_come_from_several_breakpoints_in_the_order_they_happen(guest):
    with guest.break_on("nt!NtWriteFile") as writes, guest.break_on("nt!NtDelayExecution") as delays:
        last: dict[int, str] = {}
        for hit, _ in zip(guest.events(writes, delays), range(60), strict=False):
            assert hit.breakpoint in (writes, delays)
            if hit.process.name == "notepad.exe":
                assert last.get(hit.thread.tid) != hit.function  # an editor thread writes, sleeps, writes, sleeps
                last[hit.thread.tid] = hit.function
        assert writes.hits > 5 and delays.hits > 5


def test_a_thread_and_a_process_can_be_asked_for(guest):
    notepad = guest.process("notepad.exe")
    with guest.break_on("nt!NtWriteFile", process=notepad) as hits:
        thread = hits.wait(10).thread
    with guest.break_on("nt!NtWriteFile", process="notepad.exe", thread=thread.tid) as hits:
        for hit, _ in zip(hits, range(5), strict=False):
            assert hit.thread == thread and hit.process == notepad


def test_a_user_function_is_broken_into(guest):
    with guest.break_on("notepad!NpFlushBuffer", process="notepad.exe") as hits:
        for hit, _ in zip(hits, range(6), strict=False):
            assert hit.function == "notepad!NpFlushBuffer"
            assert hit.registers["cs"] & 3 == 3
            assert HEADING.match(hit.memory.read(hit.args[1], 40))
            assert [frame.function for frame in hit.callstack()][:3] == NESTED


def test_the_end_of_a_call_gives_its_result(guest):
    with guest.break_on("nt!NtWriteFile", process="notepad.exe") as hits:
        for _ in range(4):
            hit = next(one for one in hits if not one.late)
            returned = hit.wait_return(10)
            assert returned is not None
            assert returned.registers["rax"] & 0xFFFFFFFF == 0
            assert returned.thread == hit.thread
            assert hit.late
            with pytest.raises(UsageError, match="ran on since"):
                hit.wait_return(10)


def test_hits_that_come_while_another_is_waited_for_are_kept(guest):
    with guest.break_on("nt!NtWriteFile", process="notepad.exe") as writes:
        hit = writes.wait(10)
        tid = hit.thread.tid
        with guest.break_on("nt!NtWriteFile", process="notepad.exe", thread=tid) as same:
            assert same.wait(10) is not None
        queued = writes.wait(10)
        assert queued is not None


def test_a_condition_that_fails_takes_the_hit_from_no_other_breakpoint(guest):
    with (
        guest.break_on("nt!NtWriteFile", condition="nonsense > 0"),
        guest.break_on("nt!NtWriteFile", process="notepad.exe") as writes,
    ):
        with pytest.raises(UsageError, match="nonsense"):
            writes.wait(30)
        assert writes.wait(0).function == "nt!NtWriteFile"


def test_a_wait_has_a_limit(guest):
    with guest.break_on("nt!KeBugCheckEx") as hits:
        before = time.monotonic()
        assert hits.wait(0.3) is None
        assert 0.2 < time.monotonic() - before < 3
        assert list(guest.events(hits, duration=0)) == []


def test_a_step_is_one_instruction_of_one_vcpu(guest):
    with guest.break_on("nt!NtWriteFile") as hits:
        hit = hits.wait(10)
    others = [guest.registers(vcpu)["rip"] for vcpu in range(guest.vcpus) if vcpu != hit.vcpu]
    guest.step(hit.vcpu)
    assert 0 < guest.registers(hit.vcpu)["rip"] - hit.address < 16
    assert [guest.registers(vcpu)["rip"] for vcpu in range(guest.vcpus) if vcpu != hit.vcpu] == others


def test_arguments_can_be_changed(guest, machine):
    with guest.break_on("nt!NtWriteFile", process="notepad.exe") as hits:
        hit = hits.wait(10)
        length, position = hit.args[6], write_position(hit)
        hit.args[6] = length - 5
        assert hit.args[6] == length - 5
        hit.args[2] = 0
        assert hit.registers["r8"] == 0
        tid = hit.thread.tid
        assert hit.wait_return(10) is not None
    list(machine.new_events())
    cut = [event for event in machine.events if event.get("event") == "write" and event["tid"] == tid]
    assert any(LoggedWrite.of(e).offset == position and LoggedWrite.of(e).length == length - 5 for e in cut[-20:])


def write_position(hit) -> int:
    return hit.memory.u64(hit.args[7])


def test_names_that_are_not_there_are_answered_with_near_ones(guest):
    with pytest.raises(NotFoundError, match=r"notepad\.exe"):
        guest.break_on("nt!NtWriteFile", process="notepat.exe")
    with pytest.raises(SymbolNotFoundError, match="NtWriteFile"):
        guest.break_on("nt!NtWriteFil")
    with pytest.raises(NotFoundError, match="notepad"):
        guest.break_on("notepat!NpFlushBuffer", process="notepad.exe")
    for no_place in (
        "nt!NtWriteFile+zz",
        "nt!NtWriteFile+-3",
        "nt!",
        "!NtWriteFile",
        "",
        "0x8000000000000",
        -1,
        1 << 64,
    ):
        with pytest.raises(UsageError):
            guest.break_on(no_place)
    with pytest.raises(UsageError):
        guest.break_on("nt!NtWriteFile", kind="soft")
    with pytest.raises(CapabilityError):
        guest.registers(99)


def test_addresses_and_offsets_name_places_too(guest):
    address, name = guest.locate("nt!NtWriteFile+0x4")
    assert (address - guest.symbol("nt!NtWriteFile"), name) == (4, "nt!NtWriteFile+0x4")
    assert guest.locate(hex(address))[0] == address
    assert guest.locate("NtWriteFile") == (address - 4, "nt!NtWriteFile")


def test_every_thread_has_a_stack_that_begins_somewhere_and_ends(guest):
    for process in guest.processes:
        for thread in process.threads:
            frames = thread_callstack(guest, thread)
            assert frames, thread
            assert frames[-1].how == "end of stack", (thread, [str(frame) for frame in frames], frames[-1].how)
    for vcpu in range(guest.vcpus):
        assert vcpu_callstack(guest, vcpu)


def test_memory_is_read_anew_after_the_guest_ran(guest):
    notepad = guest.process("notepad.exe")
    with guest.break_on("nt!NtWriteFile", process=notepad) as hits:
        seen = {hits.wait(10).memory.read(hits.guest.kernel.base, 2) for _ in range(3)}
        assert seen == {b"MZ"}
    pauses = guest.pauses
    guest.resume()
    time.sleep(0.05)
    guest.pause()
    assert guest.pauses > pauses


def test_somebody_elses_pause_is_told(machine):
    with attached(machine) as guest, guest.break_on("nt!KeBugCheckEx") as hits:
        guest.resume()
        machine.control("stop")
        with pytest.raises(GuestPausedError):
            hits.wait(5)
    machine.control("cont")
    assert lives(machine)


def test_software_breakpoints_work_where_they_are_asked_for(guest):
    with guest.break_on("nt!NtWriteFile", process="notepad.exe", kind="software") as hits:
        for hit, _ in zip(hits, range(3), strict=False):
            assert hit.callstack()[0].function == "nt!NtWriteFile"


@pytest.mark.parametrize("words", [{"layout": "22000"}, {"kva_shadow": True}], ids=["22000", "KVA shadow"])
def test_the_stack_is_whole_on_other_kernels(machines, words):
    with attached(machines(2, **words)) as guest:
        for told in trace(guest, "NtWriteFile", process="notepad.exe", limit=12):
            write = write_of(told)
            assert write is not None and write.complete
            names = [frame.partition("+")[0] for frame in told["stack"]]
            at = names.index("ntdll!NtWriteFile")
            assert names[0] == "nt!NtWriteFile"
            assert names[at + 1 : at + 5] == [*NESTED, "notepad!EditorThread"]
        entry = "KiSystemCall64Shadow" if "kva_shadow" in words else "KiSystemCall64"
        with guest.break_on(f"nt!{entry}", process="notepad.exe") as entries:
            hit = entries.wait(10)
            assert hit.callstack()[1].module == "ntdll"


def test_a_guest_that_ends_in_mid_trace_is_told_in_one_error():
    with start(vcpus=1) as machine, pytest.raises(GuestGoneError), attached(machine) as guest:
        for _ in trace(guest, "NtWriteFile", process="notepad.exe"):
            machine.control("quit")
