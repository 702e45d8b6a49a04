"""Breakpoints that choose their hits, on data, and for one time; calls with their results; running to a place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from coldframe.debug import LiveGuest
from coldframe.errors import UsageError
from coldframe.minint import Minint, start
from coldframe.target import attach
from coldframe.trace import trace

pytestmark = pytest.mark.minint

TICKS = 0xFFFFF780_00000320
"""KUSER_SHARED_DATA.TickCount, which every timer interrupt advances."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Minint]:
    with start(vcpus=2, options="PACE=5 THREADS=3") as running:
        yield running


@pytest.fixture
def guest(machine: Minint) -> Iterator[LiveGuest]:
    with attach(machine.qmp, symbols=[machine.symbols_folder]) as live:
        yield live


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
