"""A running bare guest (guest.S says what lies where) and what it counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coldframe.qemu import VirtualMachine


@dataclass
class BareGuest:
    """A running bare guest: QEMU's owner, and the second QMP socket that tests attach to."""

    owner: VirtualMachine
    qmp: Path

    def counters(self, base: int) -> list[int]:
        return [self.owner.physical.u64(base + 64 * vcpu) for vcpu in range(self.owner.vcpus)]

    @property
    def ticks(self) -> int:
        """Calls of tick by all vCPUs together, as the guest counts them."""
        return sum(self.counters(0x200000))

    def function(self, name: str) -> int:
        names = ("tick", "tock", "repeat", "faulty", "shutdown")
        return self.owner.physical.u64(0x202010 + 8 * names.index(name))

    def pace(self, turns: int) -> None:
        """Idle turns between two calls of tick."""
        self.owner.physical.write(0x202000, turns.to_bytes(8, "little"))

    def goes_on(self, within: float = 1.0) -> bool:
        """Whether every vCPU counts on within so many seconds."""
        before = self.counters(0x200000)
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if all(now > then for now, then in zip(self.counters(0x200000), before, strict=True)):
                return True
            time.sleep(0.01)
        return False

    def attach(self, **options: str) -> VirtualMachine:
        return VirtualMachine.attach(self.qmp, **options)  # type: ignore[arg-type]


StartsGuests = Callable[..., BareGuest]


def unfinished(vm: VirtualMachine) -> int:
    """Reported arrivals whose instruction has still to be carried out though the guest went on (empty steps of TCG)."""
    return len(vm.control._passing.unfinished)


def wait_until_up(guest: BareGuest, vcpus: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while guest.owner.physical.u64(0x202008) != vcpus or 0 in guest.counters(0x204000):
        assert time.monotonic() < deadline, "the bare guest did not come up"
        time.sleep(0.02)
