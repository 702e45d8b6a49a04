"""Calls of a function with what they returned, right under recursion and with any number of threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from coldframe.debug.hit import Hit
from coldframe.debug.prototypes import prototype

if TYPE_CHECKING:
    from coldframe.debug.breakpoint import Breakpoint
    from coldframe.debug.live import LiveGuest

_MOST_OPEN = 1 << 14
_ARGUMENTS = 4


class Call:
    """One call that has returned.

    `entered` is the hit at the function's first instruction (by now `late`), `returned` the one behind the call, where
    the guest stands. `arguments` are those of the entry, read then: as many as the function's prototype has, or four.
    """

    def __init__(self, entered: Hit) -> None:
        self.entered = entered
        known = prototype(entered.function)
        count = _ARGUMENTS if known is None else len(known.parameters)
        self.arguments = tuple(entered.args[index] for index in range(count))
        self.returned = entered

    def __repr__(self) -> str:
        return f"<Call of {self.entered.function} that returned {self.result:#x}>"

    @property
    def result(self) -> int:
        """What the function returned, in RAX: 64 bits, of which an NTSTATUS is the lower half."""
        return self.returned.registers["rax"]


class Calls:
    """Made by `LiveGuest.calls`. A call that never returns (its thread ends) is dropped when the block is left."""

    def __init__(self, guest: LiveGuest, entry: Breakpoint) -> None:
        self.guest = guest
        self._entry = entry
        self._open: dict[Breakpoint, Call] = {}

    def __enter__(self) -> Calls:
        self._entry.insert()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entry.remove()
        for point in self._open:
            point.remove()
        self._open.clear()

    def __iter__(self) -> Iterator[Call]:
        while (call := self.wait()) is not None:
            yield call

    def wait(self, timeout: float | None = None) -> Call | None:
        """The next call that returns; None when `timeout` seconds passed first. The guest is paused in either case."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            hit = self.guest.next_hit((self._entry, *self._open), left)
            if hit is None:
                return None
            call = self._open.pop(hit.breakpoint, None)
            if call is not None:
                call.returned = hit
                return call
            if len(self._open) >= _MOST_OPEN:
                oldest = next(iter(self._open))
                oldest.remove()
                del self._open[oldest]
            returned = hit.break_on_return()
            returned.insert()
            self._open[returned] = Call(hit)
