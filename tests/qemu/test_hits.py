"""Breakpoints under load on the bare guest: every hit is the next of its vCPU, by the guest's own counters."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import pytest

from qemu.bare import StartsGuests

HITS = int(os.environ.get("COLDFRAME_SOAK_HITS", "3000"))
COUNTERS = {"tick": 0x200000, "tock": 0x203000, "repeat": 0x204000, "faulty": 0x205000}
"""Where guest.S counts the calls of each; each vCPU has its own."""


@pytest.mark.soak
@pytest.mark.parametrize("turns", [0, 20], ids=["all at once", "four functions"])
def test_every_hit_is_the_next_of_its_vcpu(
    start: StartsGuests, turns: int, record_property: Callable[[str, object], None]
) -> None:
    """With no pause between two calls all vCPUs stand at a breakpoint at any moment; there the others are not called.

    Under `tick` lies a locked instruction, under `repeat` one that repeats, under `faulty` one that faults first.
    """
    guest = start(4)
    names = ["tick", "tock"] if turns == 0 else list(COUNTERS)
    guest.pace(turns)
    with guest.attach() as vm:
        vm.pause()
        places = {guest.function(name): name for name in names}
        for address in places:
            vm.insert_breakpoint(address)
        before = {name: guest.counters(COUNTERS[name]) for name in names}
        last: dict[tuple[str, int], int] = {}
        hits: Counter[tuple[str, int]] = Counter()
        began = time.monotonic()
        for _ in range(HITS):
            stop = vm.run_until_stop(60)
            assert stop is not None and stop.address is not None
            place = (places[stop.address], stop.vcpu)
            count = guest.owner.physical.u64(COUNTERS[place[0]] + 64 * stop.vcpu)
            assert count == last.get(place, count - 1) + 1, (place, count, last[place], hits[place])
            if place not in last:  # a vCPU may have been inside a call when the breakpoints were set
                assert count - before[place[0]][stop.vcpu] in (0, 1), place
            last[place] = count
            hits[place] += 1
        seconds = time.monotonic() - began
        vm.pause()
        for (name, vcpu), count in last.items():  # the last call of each may be under way
            assert guest.counters(COUNTERS[name])[vcpu] - count in (0, 1), (name, vcpu)
    assert guest.goes_on(10)
    assert {place for place in hits if place[0] in ("tick", "tock")} == {
        (n, v) for n in ("tick", "tock") for v in range(4)
    }
    for vcpu in range(4):  # the two are called in turns
        assert abs(hits["tick", vcpu] - hits["tock", vcpu]) <= 1
    record_property("hits", {name: sum(hits[name, vcpu] for vcpu in range(4)) for name in names})
    record_property("hits a second", round(HITS / seconds))
