"""Letting a guest run until one of its breakpoints is hit, and handing each arrival to the breakpoints it is for.

One stop of the machine is one arrival; every breakpoint there is offered it and queues it if its filters let it pass.
So what comes while somebody waits for another breakpoint is not lost: it is delivered when its own is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from coldframe.debug.breakpoint import oldest_hit
from coldframe.debug.current import Current
from coldframe.debug.deadline import Deadline
from coldframe.errors import ColdframeError, GuestGoneError, UsageError

if TYPE_CHECKING:
    from coldframe.debug.breakpoint import Breakpoint
    from coldframe.debug.hit import Hit
    from coldframe.debug.live import LiveGuest

_CODE, _DATA = ("hardware", "software"), ("write", "read", "access")
_AGAIN = 0.02
"""Seconds until a guest that was told to stop as it began to run is told again."""


class GuestPausedError(ColdframeError):
    """Somebody else paused the guest while it ran for us; it is left paused."""


class Running:
    """Runs one guest from hit to hit.

    `active` are the breakpoints that are set, by address and kind: they enter and leave it themselves.
    """

    def __init__(self, guest: LiveGuest) -> None:
        self._guest = guest
        self.active: dict[tuple[int, str], list[Breakpoint]] = {}
        self._current = Current(guest)
        self._waits = self._interrupted = False
        self._interrupting = threading.Lock()

    def interrupt(self) -> None:
        """See `LiveGuest.interrupt`."""
        self._interrupted = True
        while self._waits and self._interrupted:
            with self._interrupting:  # so that nothing is sent when the wait is over
                if self._interrupted:
                    self._guest.vm.interrupt()
            time.sleep(_AGAIN)

    def next_hit(self, breakpoints: Sequence[Breakpoint], timeout: float | None) -> Hit | None:
        """See `LiveGuest.next_hit`."""
        if not breakpoints:
            raise UsageError("no breakpoint is set: nothing to wait for")
        self._waits = True
        try:
            return self._next_hit(breakpoints, Deadline(timeout))
        finally:
            self._waits = False

    def _next_hit(self, breakpoints: Sequence[Breakpoint], deadline: Deadline) -> Hit | None:
        while True:
            if self._interrupted:
                with self._interrupting:
                    self._interrupted = False
                self._guest.pause()
                return None
            hit = oldest_hit(breakpoints)
            if hit is not None:
                return hit
            if deadline.passed:
                self._guest.pause()
                return None
            if not self._run(deadline):
                return None

    def _run(self, deadline: Deadline) -> bool:
        """Let the guest run to its next stop and queue the hits; False when the time was over first."""
        try:
            stop = self._guest.vm.run_until_stop(deadline.left)
        finally:
            self._guest.stopped()
        if stop is None:
            return False
        if stop.reason == "breakpoint" and stop.address is not None:
            self._arrived(stop.vcpu, stop.address)
        elif stop.reason == "watchpoint" and stop.address is not None:
            self._accessed(stop.vcpu, stop.address)
        elif stop.reason == "shutdown":
            raise GuestGoneError("the guest has shut down")
        elif stop.reason == "interrupt" and not self._interrupted:
            raise GuestPausedError("somebody else paused the guest; it is left paused")
        return True

    def _arrived(self, vcpu: int, address: int) -> None:
        """Queue an arrival with every breakpoint there whose filters it passes."""
        self._offer(vcpu, [point for kind in _CODE for point in self.active.get((address, kind), ())], None)

    def _accessed(self, vcpu: int, address: int) -> None:
        """The same for an access to data."""
        watched = (point for points in self.active.values() for point in points if point.kind in _DATA)
        self._offer(vcpu, [point for point in watched if point.covers(address)], address)

    def _offer(self, vcpu: int, points: Sequence[Breakpoint], accessed: int | None) -> None:
        if not points:
            return
        arrival = self._current.arrival(vcpu, self._guest.vm.registers(vcpu), accessed)
        with ExitStack() as rest:  # a condition that fails takes the arrival from nobody else
            for point in reversed(points):
                rest.callback(point.offer, arrival)
