"""Breakpoints of a live guest under load: each hit has the next number of its thread, up to the count in the log."""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest

from coldframe.debug import Hit
from coldframe.minint import Minint, start
from coldframe.target import attach
from debug.marks import noted, stand_still
from debug.test_events import logged, told

pytestmark = pytest.mark.minint

HITS = int(os.environ.get("COLDFRAME_SOAK_HITS", "500"))
THREADS = 4
ROUNDS = HITS * 3 // (THREADS * 7) + 1
"""Calls of each function by each thread: two functions are hit each time, one every third time."""
PROCESSES = max(3, HITS // 1000)
COUNTS = re.compile(r"ticker thread (\d+): (\d+) (\d+) (\d+)$")


def counts_of(machine: Minint) -> dict[int, tuple[int, ...]]:
    """How often each thread of ticker.exe called TkTick, TkTock and NtClose, as they counted it themselves."""
    notes = (COUNTS.match(str(event.get("text"))) for event in machine.events)
    return {int(found[1]): tuple(int(found[n]) for n in (2, 3, 4)) for found in notes if found}


def over(machine: Minint) -> bool:
    """Whether both programs have said that they are done."""
    return noted(machine, "ticker done") and noted(machine, "spawner done")


@pytest.mark.soak
def test_every_hit_comes_once_and_in_order_while_processes_come_and_go(
    record_property: Callable[[str, object], None],
) -> None:
    """Four threads call three functions at the same moment, over and over: two in user mode, one in the kernel.

    Two breakpoints share an address, each with a condition; the events are asked for when all is over.
    """
    ticker = f"TICKS={ROUNDS} TICKERS={THREADS} TICKWAIT=3000"
    spawner = f"SPAWN={PROCESSES} SPAWNWAIT=3000 SPAWNPACE=50"
    seen: dict[tuple[str, int], list[int]] = defaultdict(list)
    threads: dict[int, set[int]] = defaultdict(set)
    filtered: dict[int, list[int]] = defaultdict(list)
    vcpus: Counter[int] = Counter()

    def never(hit: Hit) -> bool:
        filtered[hit.args[0]].append(hit.args[1])
        return False

    with start(vcpus=4, options=f"{ticker} {spawner} STATES=0 SERVICES=1 PACE=200") as machine:
        first = stand_still(machine, "ticker waits", "spawner waits")
        with attach(machine.qmp, symbols=[machine.symbols_folder]) as guest, guest.system_events() as events:
            process = guest.process("ticker.exe")
            with (
                guest.break_on("ticker!TkTick", process) as ticks,
                guest.break_on("ticker!TkTock", process, condition="args[1] % 3 == 0") as thirds,
                guest.break_on("ticker!TkTock", process, condition=never) as others,
                guest.break_on("nt!NtClose", process, condition="args[0] >= 0x40000000") as closes,
            ):
                points = (ticks, thirds, others, closes)
                began = time.monotonic()
                while (hit := guest.next_hit(points, 1.0)) is not None or not over(machine):
                    assert time.monotonic() - began < 200 + HITS / 20, {place: len(n) for place, n in seen.items()}
                    if hit is None:
                        continue
                    thread, number = hit.args[0], hit.args[1]
                    if hit.breakpoint is closes:
                        thread, number = hit.args[0] >> 24 & 0x3F, hit.args[0] & 0xFFFFFF
                    seen[hit.breakpoint.name + " thirds" * (hit.breakpoint is thirds), thread].append(number)
                    threads[thread].add(hit.ethread)
                    vcpus[hit.vcpu] += 1
                seconds = time.monotonic() - began
                assert others.hits == 0
            late = []
            while (event := events.wait(0)) is not None:
                late.append(event)
        machine.control("cont")
    everything, every_third = list(range(ROUNDS)), list(range(0, ROUNDS, 3))
    for thread in range(THREADS):
        assert seen["ticker!TkTick", thread] == everything
        assert seen["ticker!TkTock thirds", thread] == every_third
        assert seen["nt!NtClose", thread] == everything
        assert filtered[thread] == everything
        assert len(threads[thread]) == 1
    assert len(seen) == 3 * THREADS
    assert counts_of(machine) == dict.fromkeys(range(THREADS), (ROUNDS, ROUNDS, ROUNDS))
    assert set(vcpus) == set(range(4))
    theirs = [
        logged(event)
        for event in machine.events[first:]
        if event["event"] in ("process", "process-exit", "thread", "thread-exit", "image")
    ]
    assert Counter(map(told, late)) == Counter(theirs)
    assert Counter(event.kind for event in late)["process"] == PROCESSES
    assert all(before.hit.pause < after.hit.pause for before, after in pairwise(late))
    delivered = sum(map(len, seen.values()))
    record_property("hits", f"{delivered} and {sum(map(len, filtered.values()))} filtered out, {len(late)} events")
    record_property("a second", round((delivered + sum(map(len, filtered.values()))) / seconds))
