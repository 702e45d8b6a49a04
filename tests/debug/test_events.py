"""Processes, threads and images that come and go are each told once, as the guest's own log tells them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from coldframe.debug import Event, LiveGuest
from coldframe.errors import UsageError
from coldframe.minint import Minint, start
from coldframe.target import attach

pytestmark = pytest.mark.minint

PROCESSES = int(os.environ.get("COLDFRAME_SOAK_PROCESSES", "8"))


@pytest.fixture
def spawning() -> Iterator[Minint]:
    """A minint in which spawner.exe starts brief.exe again and again, after a while."""
    options = f"SPAWN={PROCESSES} SPAWNPACE=15 SPAWNWAIT=4000 STATES=0 SERVICES=1 PACE=500"
    with start(vcpus=4, options=options) as running:
        yield running


def attached(machine: Minint) -> LiveGuest:
    return attach(machine.qmp, symbols=[machine.symbols_folder])


def told(event: Event) -> tuple[object, ...]:
    """An event as the log would tell it."""
    if event.kind in ("thread", "thread-exit"):
        return (event.kind, event.process.pid, event.thread.tid)
    if event.kind == "image":
        return (event.kind, event.base, event.size, event.name.rpartition("\\")[2])
    return (event.kind, event.process.pid, event.process.name)


def logged(event: dict[str, object]) -> tuple[object, ...]:
    kind = event["event"]
    if kind in ("thread", "thread-exit"):
        return (kind, event["pid"], event["tid"])
    if kind == "image":
        return (kind, int(event["base"], 16), int(event["size"], 16), event["path"].rpartition("\\")[2])
    return (kind, event["pid"], event["name"])


@pytest.mark.soak
def test_every_event_is_told_once_and_none_is_lost(spawning: Minint) -> None:
    kinds = ("process", "process-exit", "thread", "thread-exit", "image")
    list(spawning.new_events())
    first = len(spawning.events)
    ours: list[tuple[object, ...]] = []
    with attached(spawning) as guest:
        with guest.system_events(*kinds) as events:
            while [one[0] for one in ours].count("process-exit") < PROCESSES + 1:  # spawner.exe's too
                event = events.wait(60)
                assert event is not None, Counter(one[0] for one in ours)
                ours.append(told(event))
                if event.kind == "process":
                    assert event.process not in guest.processes  # it is not on the list yet
        assert not guest.active
    while not any(event["event"] == ours[-1][0] and logged(event) == ours[-1] for event in spawning.events[first:]):
        spawning.wait_for("process-exit", timeout=20)
    theirs = [logged(event) for event in spawning.events[first:] if event["event"] in kinds]
    theirs = theirs[: theirs.index(ours[-1]) + 1]
    for kind in kinds:
        assert Counter(one for one in ours if one[0] == kind) == Counter(one for one in theirs if one[0] == kind)
    counts = Counter(one[0] for one in ours)
    assert counts["process"] == PROCESSES
    assert counts["process-exit"] == PROCESSES + 1
    assert counts["thread"] == 3 * PROCESSES
    assert counts["image"] == 2 * PROCESSES


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
