"""A breakpoint that filters by process and thread and hands out its hits; leaving its `with` block removes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from coldframe.debug.condition import Condition
from coldframe.debug.condition import condition as as_function
from coldframe.debug.current import Arrival
from coldframe.debug.hit import Hit
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.debug.live import LiveGuest
    from coldframe.qemu import Breakpoint as Inserted


class Breakpoint:
    """Made by `LiveGuest.break_on` and `watch`. Iterating lets the guest run to the next hit at every turn, and stops
    it there.

    Every arrival that passes the filters is delivered exactly once. One that comes while the guest runs for another
    breakpoint is queued and delivered later, marked `late`; use `LiveGuest.events` to have several in turn. `kind` is
    "hardware" or "software" for code, "write", "read" or "access" for `length` bytes of data. `once` removes it when
    its first hit is delivered.
    """

    def __init__(
        self,
        guest: LiveGuest,
        name: str,
        address: int,
        *,
        kind: str = "hardware",
        length: int = 1,
        eprocess: int = 0,
        ethread: int = 0,
        condition: Condition | str | None = None,
        once: bool = False,
    ) -> None:
        self.guest = guest
        self.name = name
        self.address = address
        self.kind = kind
        self.length = length
        self.once = once
        self.hits = 0
        self.eprocess = eprocess
        self.ethread = ethread
        self._condition = as_function(condition)
        self.on_arrival: Callable[[Hit], None] | None = None
        """Called with each hit as it is queued, while the guest stands there."""
        self._queue: deque[Hit] = deque()
        self._inserted: Inserted | None = None

    def __repr__(self) -> str:
        return f"<Breakpoint {self.name} at {self.address:#x}>"

    @property
    def is_set(self) -> bool:
        """Whether it is in the guest, or waits to be: from `insert` to `remove`."""
        return self._inserted is not None

    def insert(self) -> None:
        """Set it in the guest; raises `CapabilityError` when QEMU has no more of its kind, and nothing is set then."""
        if self._inserted is None:
            self._inserted = self.guest.vm.insert_breakpoint(self.address, self.kind, self.length)
            self.guest.active[self.address, self.kind] = [*self.guest.active.get((self.address, self.kind), ()), self]

    def remove(self) -> None:
        """Take it out of the guest; no effect when it is out. Hits that were queued are dropped.

        On error the guest is told to forget it all the same when its `LiveGuest` is closed.
        """
        inserted, self._inserted = self._inserted, None
        if inserted is None:
            return
        key = (self.address, self.kind)
        others = [other for other in self.guest.active.get(key, ()) if other is not self]
        if others:
            self.guest.active[key] = others
        else:
            self.guest.active.pop(key, None)
        self._queue.clear()
        self.guest.vm.remove_breakpoint(inserted)

    def __enter__(self) -> Breakpoint:
        self.insert()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __iter__(self) -> Iterator[Hit]:
        while (hit := self.wait()) is not None:
            yield hit
            if not self.is_set:
                return

    def wait(self, timeout: float | None = None) -> Hit | None:
        """The next hit; None when `timeout` seconds passed without one. The guest is paused in either case.

        Raises `UsageError` where it is not set, or not any more: for ever would be a long time.
        """
        check_set((self,))
        return self.guest.next_hit((self,), timeout)

    def covers(self, address: int) -> bool:
        """Whether `address` is among the bytes that it watches."""
        return self.address <= address < self.address + self.length

    def offer(self, arrival: Arrival) -> None:
        """Queue an arrival that passes the filters."""
        if self.ethread and arrival.ethread != self.ethread:
            return
        if self.eprocess and arrival.eprocess != self.eprocess:
            return
        hit = Hit(self.guest, self, arrival)
        if self._condition is not None and not self._condition(hit):
            return
        self.hits += 1
        if self.on_arrival is not None:
            self.on_arrival(hit)
        self._queue.append(hit)

    @property
    def waiting(self) -> Hit | None:
        """The oldest hit that was not delivered yet."""
        return self._queue[0] if self._queue else None

    def take(self) -> Hit:
        """Deliver the oldest hit, which must be there."""
        hit = self._queue.popleft()
        if self.once:
            self.remove()
        return hit


def check_set(breakpoints: Sequence[Breakpoint]) -> None:
    """Raise `UsageError` where none of them is set, so that none can be waited for."""
    if not any(point.is_set for point in breakpoints):
        raise UsageError("no breakpoint is set to wait for: enter its `with` block, or call `insert`")


def oldest_hit(breakpoints: Sequence[Breakpoint]) -> Hit | None:
    """Deliver the hit that came first of all that wait at `breakpoints`; of two of one arrival, the first one's."""
    ready = [(hit.pause, point) for point in breakpoints if (hit := point.waiting) is not None]
    return min(ready, key=lambda one: one[0])[1].take() if ready else None
