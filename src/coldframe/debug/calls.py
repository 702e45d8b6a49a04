"""Calls of a function with what they returned, right under recursion and with any number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from coldframe.debug.hit import Hit
from coldframe.debug.prototypes import prototype

if TYPE_CHECKING:
    from coldframe.debug.breakpoint import Breakpoint
    from coldframe.debug.live import LiveGuest

_Noted = TypeVar("_Noted")
_MOST_OPEN = 1 << 14
_ARGUMENTS = 4


def arguments(hit: Hit) -> tuple[int, ...]:
    """The arguments of a call at its function's first instruction: as many as its prototype has, or four."""
    known = prototype(hit.function)
    count = _ARGUMENTS if known is None else len(known.parameters)
    return tuple(hit.args[index] for index in range(count))


class Call(Generic[_Noted]):
    """One call that has returned.

    `entered` is the hit at the function's first instruction (by now `late`), `returned` the one behind the call, where
    the guest stands; `noted` is what was noted at the entry.
    """

    def __init__(self, entered: Hit, noted: _Noted) -> None:
        self.entered = entered
        self.noted = noted
        self.returned = entered

    def __repr__(self) -> str:
        return f"<Call of {self.entered.function} that returned {self.result:#x}>"

    @property
    def result(self) -> int:
        """What the function returned, in RAX: 64 bits, of which an NTSTATUS is the lower half."""
        return self.returned.registers["rax"]


class Calls(Generic[_Noted]):
    """Made by `LiveGuest.calls`. A call that never returns (its thread ends) is dropped when the block is left.

    `note` is called at every entry, while the guest stands there; what it returns is the call's `noted`. `taken_for`
    gives the hit that an entry's hit stands for (a system call, at the one place where all of them arrive); None leaves
    it out.
    """

    def __init__(
        self,
        guest: LiveGuest,
        entries: Sequence[Breakpoint],
        note: Callable[[Hit], _Noted],
        taken_for: Callable[[Hit], Hit | None] = lambda hit: hit,
    ) -> None:
        self.guest = guest
        self._entries = tuple(entries)
        self._note = note
        self._taken_for = taken_for
        self._open: dict[Breakpoint, Call[_Noted]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for entry in self._entries:
                entry.insert()
                undo.callback(entry.remove)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for point in (*self._entries, *self._open):
            point.remove()
        self._open.clear()

    def __iter__(self) -> Iterator[Call[_Noted]]:
        while (call := self.wait()) is not None:
            yield call

    def wait(self, timeout: float | None = None) -> Call[_Noted] | None:
        """The next call that returns; None when `timeout` seconds passed first. The guest is paused in either case."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            hit = self.guest.next_hit((*self._entries, *self._open), left)
            if hit is None:
                return None
            call = self._open.pop(hit.breakpoint, None)
            if call is not None:
                call.returned = hit
                return call
            entered = self._taken_for(hit)
            if entered is None:
                continue
            if len(self._open) >= _MOST_OPEN:
                oldest = next(iter(self._open))
                oldest.remove()
                del self._open[oldest]
            returned = entered.break_on_return()
            returned.insert()
            self._open[returned] = Call(entered, self._note(entered))
