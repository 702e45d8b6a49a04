"""The breakpoints that are set in a stopped guest: each as often as it was asked for, one packet for all of them."""

from __future__ import annotations

from coldframe.errors import CapabilityError
from coldframe.qemu.arrivals import Breakpoint
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.guarding import Guard


class Breakpoints:
    """What is set behind one gdbstub; the guest must be stopped for everything that sends a packet.

    `code` has the breakpoints on instructions by address. The guardian is told before a breakpoint is set and after it
    is removed, so that it always knows at least what is set.
    """

    def __init__(self, stub: GdbStub, guard: Guard | None, accelerator: str) -> None:
        self._stub = stub
        self._guard = guard
        self._accelerator = accelerator
        self._counts: dict[Breakpoint, int] = {}
        self._doubtful: set[Breakpoint] = set()
        self.code: dict[int, Breakpoint] = {}

    def count(self, point: Breakpoint) -> int:
        """How many times `point` was asked for."""
        return self._counts.get(point, 0)

    def add(self, point: Breakpoint) -> None:
        """Note one more that asks for `point`, which is set already."""
        self._counts[point] += 1

    def take_back(self, point: Breakpoint) -> None:
        """Note one less that asks for `point`; others still do."""
        self._counts[point] -= 1

    def set(self, point: Breakpoint) -> None:
        """Set a breakpoint that is not set; raises `CapabilityError` when QEMU has no more of the kind.

        An exception before QEMU's answer (Ctrl-C) leaves it in doubt, and whoever removes all removes it too.
        """
        if self._guard is not None:
            self._guard.added(point.packet)
        self._doubtful.add(point)
        answer = self._stub.ask(point.packet)
        self._doubtful.discard(point)
        if answer != b"OK":
            if self._guard is not None:
                self._guard.removed(point.packet)
            raise CapabilityError(self._refusal(point))
        self._counts[point] = 1
        if point.executes:
            self.code.setdefault(point.address, point)

    def clear(self, point: Breakpoint) -> None:
        """Remove a breakpoint that is set; another kind at the same address takes its place in `code`."""
        self._stub.ask(point.removal)
        del self._counts[point]
        if self._guard is not None:
            self._guard.removed(point.packet)
        if self.code.get(point.address) == point:
            del self.code[point.address]
            for other in self._counts:
                if other.executes and other.address == point.address:
                    self.code[point.address] = other

    def put_back(self, point: Breakpoint) -> None:
        """Set one anew that a packet removed for a moment."""
        self._stub.ask(point.packet)

    def set_again(self) -> None:
        """Set every one anew, after it became uncertain which are."""
        self._stub.ask_all(*(point.removal for point in self._doubtful))
        self._doubtful.clear()
        for point in self._counts:
            self._stub.ask_all(point.removal, point.packet)

    def clear_all(self) -> None:
        """Remove every one; the guardian still knows them."""
        self._stub.ask_all(*(point.removal for point in {*self._counts, *self._doubtful}))
        self._counts.clear()
        self._doubtful.clear()
        self.code.clear()

    @property
    def any_watches(self) -> bool:
        """Whether there are breakpoints on data."""
        return len(self._counts) > len(self.code) and any(not point.executes for point in self._counts)

    def watches(self, address: int) -> bool:
        """Whether a watchpoint covers `address`: KVM at times reports a code breakpoint as one."""
        return any(
            not point.executes and point.address <= address < point.address + max(point.length, 1)
            for point in self._counts
        )

    def _refusal(self, point: Breakpoint) -> str:
        what = f"a {point.kind} breakpoint of {point.length} byte{'s'[: point.length != 1]} at {point.address:#x}"
        if self._accelerator == "kvm" and point.kind != "software":
            return (
                f"KVM does not take {what}: the processor has four in all, {len(self._counts)} are in use here, "
                f"and data ones are 1, 2, 4 or 8 bytes, aligned (kind 'software' writes an int3 that the guest can see)"
            )
        return f"QEMU does not take {what}"
