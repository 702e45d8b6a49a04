"""Processes, threads, images and drivers that come and go are each told once, as the guest's own log tells them."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest

from coldframe.debug import Event, LiveGuest
from coldframe.debug.events import KINDS
from coldframe.errors import UsageError
from coldframe.minint import Minint, start
from coldframe.target import attach
from debug.marks import noted, stand_still

pytestmark = pytest.mark.minint

EVENTS = int(os.environ.get("COLDFRAME_SOAK_EVENTS", "180"))
EACH = 20
"""Threads of one brief.exe beside its first one."""
A_PROCESS = 2 * (EACH + 1) + 4
"""Events of one brief.exe: its threads' beginnings and ends, its own, and two images."""
PROCESSES = -(-EVENTS // A_PROCESS)
RELOADS = max(2, PROCESSES // 10)

Told = tuple[object, ...]


@pytest.fixture
def spawning() -> Iterator[Minint]:
    """A minint in which spawner.exe starts brief.exe again and again, after a while."""
    options = "SPAWN=8 SPAWNPACE=15 SPAWNWAIT=4000 STATES=0 SERVICES=1 PACE=500"
    with start(vcpus=4, options=options) as running:
        yield running


def attached(machine: Minint) -> LiveGuest:
    return attach(machine.qmp, symbols=[machine.symbols_folder])


def told(event: Event) -> Told:
    """An event as the log would tell it."""
    if event.kind in ("thread", "thread-exit"):
        return (event.kind, event.pid, event.tid)
    if event.kind in ("process", "process-exit"):
        return (event.kind, event.pid, event.name)
    return (event.kind, event.pid, event.base, event.size, event.name)


def logged(event: dict[str, object]) -> Told:
    kind = event["event"]
    if kind in ("thread", "thread-exit"):
        return (kind, event["pid"], event["tid"])
    if kind in ("process", "process-exit"):
        return (kind, event["pid"], event["name"])
    place = (int(str(event["base"]), 16), int(str(event["size"]), 16))
    return (kind, event.get("pid") or None, *place, event["path"])


def numbered(events: list[Told]) -> list[Told]:
    """Each with how many equal ones came before it: identifiers and places are given away again."""
    seen: Counter[Told] = Counter()
    numbers = []
    for one in events:
        numbers.append((*one, seen[one]))
        seen[one] += 1
    return numbers


def in_order_of_threads(ours: list[Told], threads: list[int], theirs: list[Told]) -> None:
    """Assert that what each of the guest's threads did is told in the order in which the log has it.

    What two threads do at the same moment may change places: the log has one lock, the guest has four processors.
    """
    by = dict(zip(ours, threads, strict=True))
    in_log: dict[int, list[Told]] = defaultdict(list)
    told_of: dict[int, list[Told]] = defaultdict(list)
    for one in theirs:
        in_log[by[one]].append(one)
    for one, thread in zip(ours, threads, strict=True):
        told_of[thread].append(one)
    assert told_of == in_log


@pytest.fixture
def crowd() -> Iterator[Minint]:
    """A minint with four vCPUs in which four threads start programs and a driver is loaded over and over."""
    spawner = f"SPAWN={PROCESSES} SPAWNEACH={EACH} SPAWNTHREADS=4 SPAWNPACE=1 SPAWNWAIT=2000"
    packets = f"NET=1 NETWAIT=2000 NETRELOAD={RELOADS}"
    with start(vcpus=4, options=f"{spawner} {packets} STATES=0 SERVICES=1 PACE=500") as running:
        yield running


@pytest.mark.soak
def test_every_event_between_two_marks_is_told_once_as_the_guest_logs_it(
    crowd: Minint, record_property: Callable[[str, object], None]
) -> None:
    first = stand_still(crowd, "spawner waits", "packets wait")
    ours: list[Told] = []
    threads: list[int] = []
    began = time.monotonic()
    with attached(crowd) as guest, guest.system_events() as events:
        while True:
            event = events.wait(0.5)
            if event is not None:
                ours.append(told(event))
                threads.append(event.hit.ethread)
            elif all_gone(crowd, first):
                break
            assert time.monotonic() - began < 120 + EVENTS, Counter(one[0] for one in ours)
        assert events.wait(0.5) is None
    crowd.control("cont")
    theirs = [logged(event) for event in crowd.events[first:] if event["event"] in KINDS]
    assert Counter(ours) == Counter(theirs)
    in_order_of_threads(numbered(ours), threads, numbered(theirs))
    counts = Counter(one[0] for one in ours)
    assert len(ours) >= EVENTS
    assert counts["process"] >= PROCESSES
    assert counts["driver"] == counts["driver-unload"] == RELOADS
    record_property("events", dict(counts) | {"in all": len(ours), "seconds": round(time.monotonic() - began, 1)})


def all_gone(machine: Minint, first: int) -> bool:
    """Whether the log has the end of every program since `first`, of spawner.exe and of the work of packets.exe."""
    if not (noted(machine, "spawner done") and noted(machine, "packets: sent 1")):
        return False
    kinds = Counter(event["event"] for event in machine.events[first:])
    return kinds["process-exit"] == kinds["process"] + 1


def test_a_process_is_waited_for_and_its_module_broken_into_before_it_runs(spawning: Minint) -> None:
    with attached(spawning) as guest:
        process = guest.wait_for_process("brief.exe", timeout=30)
        assert process is not None
        assert process in guest.processes
        assert [thread.tid for thread in process.threads] == []
        with guest.break_on("brief!BrWork", process, pending=True) as working:
            threads = {hit.thread.tid for _, hit in zip(range(2), working, strict=False)}
        assert len(threads) == 2


def test_a_breakpoint_waits_for_a_process_that_has_not_started(spawning: Minint) -> None:
    with attached(spawning) as guest:
        with guest.break_on("brief!BrWork", "brief.exe", pending=True) as working:
            assert working.is_pending  # type: ignore[attr-defined]
            hit = working.wait(30)
            assert hit is not None
            assert not working.is_pending  # type: ignore[attr-defined]
            assert hit.process.name == "brief.exe"
            assert str(hit.callstack()[0]).startswith("brief!BrWork")
        assert not guest.active


def test_words_that_wait_for_nothing_are_refused(spawning: Minint) -> None:
    with attached(spawning) as guest:
        with pytest.raises(UsageError, match="MODULE!SYMBOL"):
            guest.break_on("later!Function", pending=True)
        with pytest.raises(UsageError, match="kinds of events"):
            guest.system_events("fork")  # type: ignore[arg-type]
