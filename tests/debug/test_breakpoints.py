"""Breakpoints that choose their hits, on data, and for one time; calls with their results; running to a place."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from coldframe.debug import LiveGuest
from coldframe.errors import UsageError
from coldframe.minint import start
from coldframe.target import attach
from coldframe.trace import trace
from coldframe.windows.process import Thread

pytestmark = pytest.mark.minint

TICKS = 0xFFFFF780_00000320
"""KUSER_SHARED_DATA.TickCount, which every timer interrupt advances."""

OPTIONS = "PACE=5 THREADS=3"


def test_a_condition_chooses_hits_by_the_functions_parameters(guest: LiveGuest) -> None:
    with guest.break_on("NtWriteFile") as all_of_them:
        lengths = [hit.args[6] for hit, _ in zip(all_of_them, range(20), strict=False)]
    middle = sorted(lengths)[10]
    with (
        guest.break_on("NtWriteFile", condition=f"Length >= {middle} and process.name == 'notepad.exe'") as long,
        guest.break_on("NtWriteFile", condition=lambda hit: hit.args[6] < middle) as short,
    ):
        for hit, _ in zip(guest.events(long, short), range(30), strict=False):
            assert (hit.args[6] >= middle) == (hit.breakpoint is long)
        assert long.hits + short.hits >= 30
        assert short.hits and long.hits


def test_a_condition_that_cannot_be_read_or_fails_says_so(guest: LiveGuest) -> None:
    with pytest.raises(UsageError, match="function of the hit or a Python expression"):
        guest.break_on("NtWriteFile", condition=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot read the condition"):
        guest.break_on("NtWriteFile", condition="Length >")
    with guest.break_on("NtWriteFile", condition="Lenght > 4") as hits, pytest.raises(UsageError, match="Length"):
        hits.wait(20)
    with guest.break_on("NtWriteFile", condition="1 / 0") as hits, pytest.raises(UsageError, match="ZeroDivision"):
        hits.wait(20)


def test_a_breakpoint_for_once_is_gone_after_its_first_hit(guest: LiveGuest) -> None:
    with guest.break_on("NtWriteFile", once=True) as point:
        assert point.wait(20) is not None
        assert not guest.active
        guest.resume()
        time.sleep(0.2)
        guest.pause()
        assert point.hits == 1


def test_going_through_the_hits_of_one_for_once_ends_behind_the_first(guest: LiveGuest) -> None:
    with guest.break_on("NtWriteFile", once=True) as point:
        assert len(list(point)) == 1
    with guest.break_on("NtWriteFile", once=True) as point:
        assert len(list(guest.events(point))) == 1


def test_what_is_not_set_is_not_waited_for_for_ever(guest: LiveGuest) -> None:
    point = guest.break_on("NtWriteFile")
    with pytest.raises(UsageError, match="no breakpoint is set"):
        point.wait()
    with point:
        assert point.wait(20) is not None
    with pytest.raises(UsageError, match="no breakpoint is set"):
        next(iter(point))
    with pytest.raises(UsageError, match="no breakpoint is set"):
        guest.system_events("process").wait()


def test_a_limit_of_time_may_be_endless_and_must_be_a_time(guest: LiveGuest) -> None:
    for endless in (math.inf, 1e30):
        assert guest.run_to("NtWriteFile", timeout=endless) is not None
    for wrong in (math.nan, -1):
        with pytest.raises(UsageError, match="seconds"):
            guest.run_to("NtWriteFile", timeout=wrong)
    assert not guest.active


def test_a_breakpoint_on_data_stops_behind_each_write(guest: LiveGuest) -> None:
    seen = [guest.memory.u32(TICKS)]
    with guest.watch(TICKS, 4) as writes:
        for hit, _ in zip(writes, range(5), strict=False):
            assert hit.accessed == TICKS
            assert hit.registers["cs"] & 3 == 0
            seen.append(guest.memory.u32(TICKS))
    assert seen == list(range(seen[0], seen[0] + 6))


def test_breakpoints_on_code_and_on_data_do_not_hide_each_other(guest: LiveGuest) -> None:
    with guest.watch(TICKS, 4) as ticks, guest.break_on("NtWriteFile") as writes:
        names = Counter(hit.breakpoint.name for _, hit in zip(range(40), guest.events(), strict=False))
        assert names[ticks.name] == ticks.hits > 0
        assert names[writes.name] == writes.hits > 0


def test_every_call_comes_back_to_its_own_thread_with_its_result(guest: LiveGuest) -> None:
    with guest.calls("NtWriteFile", "notepad.exe") as calls:
        threads = set()
        for call, _ in zip(calls, range(24), strict=False):
            assert call.result & 0xFFFF_FFFF == 0
            assert call.returned.thread == call.entered.thread
            status = call.returned.memory.read(call.noted[4], 16)  # IO_STATUS_BLOCK: status, bytes written
            assert int.from_bytes(status[8:], "little") == call.noted[6] & 0xFFFF_FFFF
            threads.add(call.entered.thread.tid)
        assert len(threads) == 3
    assert not guest.active


RECURSIVE = bytes.fromhex("4883ec28 85c9 740e ffc9 e8f1ffffff ffc0 4883c428 c3 31c0 4883c428 c3")
"""f(n) = n ? f(n - 1) + 1 : 0: sub rsp, 40; test ecx, ecx; jz; dec ecx; call f; inc eax; add rsp, 40; ret."""


@pytest.fixture
def recursion(guest: LiveGuest) -> Iterator[tuple[Thread, int, int]]:
    """A thread that goes on with f(6) as if it had called it, where f is, and where that call returns to.

    The test leaves the guest where it has returned.
    """
    process = guest.process("notepad.exe")
    hit = guest.run_to("notepad!NpFlushBuffer", process, timeout=20)
    assert hit is not None
    caller, before = hit.address, dict(hit.registers)
    page = caller & ~0xFFF
    place = page + process.memory.read(page, 0x1000).index(bytes(len(RECURSIVE) + 16)) + 16
    process.memory.write(place, RECURSIVE)
    stack = before["rsp"] - 0x100
    hit.memory.write(stack, caller.to_bytes(8, "little"))
    hit.write_registers({"rip": place, "rcx": 6, "rsp": stack})
    yield hit.thread, place, caller
    (vcpu,) = (vcpu for vcpu in range(guest.vcpus) if guest.registers(vcpu)["rip"] == caller)
    guest.write_registers(vcpu, {name: before[name] for name in ("rax", "rcx", "rsp", "eflags")})
    process.memory.write(place, bytes(len(RECURSIVE)))


def test_each_call_of_a_recursive_function_ends_with_its_own_result(
    guest: LiveGuest, recursion: tuple[Thread, int, int]
) -> None:
    thread, place, _ = recursion
    with guest.calls(place, thread=thread) as calls:
        found = [calls.wait(20) for _ in range(7)]
    assert [call and (call.noted[0], call.result) for call in found] == [(n, n) for n in range(7)]


def test_the_outermost_call_of_a_recursive_function_is_waited_for_alone(
    guest: LiveGuest, recursion: tuple[Thread, int, int]
) -> None:
    thread, place, caller = recursion
    with guest.break_on(place, thread=thread, once=True) as begin:
        hit = begin.wait(20)
    assert hit is not None
    returned = hit.wait_return(20)
    assert returned is not None
    assert (returned.address, returned.result) == (caller, 6)


def test_a_breakpoint_on_a_page_that_is_not_in_ram_is_hit_when_it_has_come() -> None:
    options = "SPAWN=1 SPAWNWAIT=8000 STATES=0 SERVICES=1 PACE=500"
    with start(vcpus=2, options=options) as machine, attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
        process = guest.wait_for_process("brief.exe", timeout=60)
        assert process is not None
        with guest.break_on("brief!BrWork", process) as working:
            page = process.memory.resolve(working.address)
            assert (page.state, page.physical) == ("subsection", None)
            hit = working.wait(60)
            assert hit is not None
            assert process.memory.resolve(working.address).physical is not None


def test_calls_are_followed_to_their_ends_also_while_the_guest_runs_for_something_else(guest: LiveGuest) -> None:
    with guest.calls("NtWriteFile", "notepad.exe") as calls:
        for call, _ in zip(calls, range(12), strict=False):
            assert call.result & 0xFFFF_FFFF == 0  # another system call's would tell NtUnlockVirtualMemory's failure
            assert call.returned.ethread == call.entered.ethread
            for _ in range(3):
                assert guest.run_to("NtUnlockVirtualMemory", "notepad.exe", timeout=20) is not None
    assert not guest.active


def test_a_trace_with_results_tells_each_call_when_it_has_returned(guest: LiveGuest) -> None:
    functions = ("NtWriteFile", "NtDelayExecution")
    told = list(trace(guest, functions, process="notepad.exe", condition="thread.tid % 4 == 0", limit=12, results=True))
    assert {event["function"] for event in told} == {"nt!NtWriteFile", "nt!NtDelayExecution"}
    for event in told:
        assert event["result"] == "0x0"
        assert event["process"] == "notepad.exe"
        assert event["stack"][0] == event["function"]
    assert not guest.active


def test_the_guest_runs_to_a_place_or_until_the_time_is_over(guest: LiveGuest) -> None:
    hit = guest.run_to("notepad!NpFlushBuffer", "notepad.exe", timeout=20)
    assert hit is not None
    assert hit.address == guest.symbol("notepad!NpFlushBuffer", guest.process("notepad.exe"))
    assert guest.run_to("KeBugCheckEx", timeout=0.2) is None
    assert not guest.active


@pytest.mark.parametrize(("mode", "ring"), [("kernel", 0), ("user", 3)])
def test_a_process_is_joined_in_either_mode(guest: LiveGuest, mode: str, ring: int) -> None:
    process = guest.process("notepad.exe")
    hit = guest.join(process, mode, timeout=20)
    if hit is not None:
        assert hit.process == process
        assert hit.registers["cs"] & 3 == ring
    else:
        modes = [guest.registers(vcpu)["cs"] & 3 for vcpu in range(guest.vcpus)]
        assert ring in modes
    assert not guest.active


def test_words_that_make_no_breakpoint_are_refused(guest: LiveGuest) -> None:
    with pytest.raises(UsageError, match="'write', 'read' or 'access'"):
        guest.watch(TICKS, 4, "execute")
    with pytest.raises(UsageError, match="at least one byte"):
        guest.watch(TICKS, 0)
    with pytest.raises(UsageError, match="'kernel' or 'user'"):
        guest.join("notepad.exe", "both")
