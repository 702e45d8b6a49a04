"""Calls of a function with what they returned, right under recursion and with any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from coldframe.debug.deadline import Deadline
from coldframe.debug.hit import Hit
from coldframe.debug.prototypes import prototype

if TYPE_CHECKING:
    from coldframe.debug.breakpoint import Breakpoint
    from coldframe.debug.live import LiveGuest
    from coldframe.windows.process import Process

_Noted = TypeVar("_Noted")
_MOST_OPEN = 1 << 14
_GLANCE = 1.0
"""Seconds between two looks whether the process is still there, where no breakpoint can be spared for its end."""
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
    it out. With `process` they end when that process exits: `ended` says so then.
    """

    def __init__(
        self,
        guest: LiveGuest,
        entries: Sequence[Breakpoint],
        note: Callable[[Hit], _Noted],
        taken_for: Callable[[Hit], Hit | None] = lambda hit: hit,
        process: Process | None = None,
    ) -> None:
        self.guest = guest
        self._entries = tuple(entries)
        self._note = note
        self._taken_for = taken_for
        self._open: dict[Breakpoint, Call[_Noted]] = {}
        self._process = process
        self._exit: tuple[Breakpoint, ...] = () if process is None else _exit_of(guest, process)
        self.ended = False

    def __enter__(self) -> Self:
        for entry in self._entries:
            entry.on_arrival = self._begun
        with ExitStack() as undo:
            for entry in (*self._entries, *self._exit):
                entry.insert()
                undo.callback(entry.remove)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for point in (*self._entries, *self._open, *self._exit):
            point.remove()
        self._open.clear()

    def __iter__(self) -> Iterator[Call[_Noted]]:
        while (call := self.wait()) is not None:
            yield call

    def wait(self, timeout: float | None = None) -> Call[_Noted] | None:
        """The next call that returns; None when `timeout` seconds passed first, or the process of `Calls` has exited.

        The guest is paused in either case.
        """
        deadline = Deadline(timeout)
        while not self.ended:
            hit = self._next(deadline)
            if hit is None:
                return None
            call = self._open.pop(hit.breakpoint, None)
            if call is not None:
                call.returned = hit
                return call
        return None

    def _begun(self, hit: Hit) -> None:
        """Follow a call to its end. Done as it begins, whoever lets the guest run then: later it may have returned."""
        entered = self._taken_for(hit)
        if entered is None:
            return
        if len(self._open) >= _MOST_OPEN:
            oldest = next(iter(self._open))
            oldest.remove()
            del self._open[oldest]
        returned = entered.break_on_return()
        returned.insert()
        self._open[returned] = Call(entered, self._note(entered))

    def _next(self, deadline: Deadline) -> Hit | None:
        """The next hit of a call's beginning or end; None as `wait` says."""
        points = (*self._entries, *self._open, *self._exit)
        glances = self._process is not None and not self._exit
        while True:
            left = deadline.left
            some = Deadline(_GLANCE if glances and (left is None or left > _GLANCE) else left)
            hit = self.guest.next_hit(points, some.left)
            if hit is not None and hit.breakpoint in self._exit:
                self.ended, hit = True, None
            elif hit is None and glances:
                self.ended = not any(process == self._process and process.alive for process in self.guest.processes)
                if not self.ended and some.passed and not deadline.passed:  # else somebody interrupted
                    continue
            return hit


def _exit_of(guest: LiveGuest, process: Process) -> tuple[Breakpoint, ...]:
    """A breakpoint on the end of `process`; none under KVM, where the four that there are serve the calls."""
    name = "PspExitProcess"
    if guest.vm.accelerator == "kvm" or guest.variable(name) is None:
        return ()
    return (guest.break_on(name, condition=lambda hit: hit.args[1] == process.eprocess.address),)
