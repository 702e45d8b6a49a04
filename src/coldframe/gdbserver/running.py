"""A live guest under a client: it runs to the next stop that concerns the client, its breakpoints are the inferior's.

An arrival of another process at a breakpoint is passed over by `LiveGuest` and never told. The guest goes on as one
machine: no thread can be held back while another runs, but for a single step, in which all else stands still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from coldframe.debug import Breakpoint, GuestPausedError, Hit, LiveGuest
from coldframe.debug.breakpoint import oldest_hit
from coldframe.errors import CapabilityError, ColdframeError, UsageError
from coldframe.gdbserver.connection import Connection
from coldframe.gdbserver.inferior import Inferior, Shown, numbered

TRAP, INTERRUPTED = 5, 2
"""Signals by GDB's numbers: SIGTRAP, SIGINT."""
CODE = (0, 1)
_KINDS = {2: "write", 3: "read", 4: "access"}
_WATCH = {"write": "watch", "read": "rwatch", "access": "awatch"}
_MOST_FAULTS = 8
_SYSTEM_CALLS = (b"\x0f\x05", b"\xcd\x2e")
"""SYSCALL, and INT 2E of 32-bit Windows: both go on behind themselves."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Why the inferior stands: a signal, the thread's number (0: none in particular), and the stop reply's reason.

    `exited` says that the process ends.
    """

    signal: int = TRAP
    thread: int = 0
    reason: str = ""
    exited: bool = False


class Runner(Protocol):
    """Runs an inferior and sets its breakpoints, numbered in kind as in the packet `Z`."""

    def insert(self, kind: int, address: int, length: int) -> None:
        """Set a breakpoint; raises `CapabilityError`."""
        ...

    def remove(self, kind: int, address: int, length: int) -> None:
        """Remove it; no effect where it is not set."""
        ...

    def clear(self) -> None:
        """Remove all."""
        ...

    def go(self) -> Halt:
        """Let it run to its next stop."""
        ...

    def step(self, shown: Shown) -> Halt:
        """Let a thread carry out one instruction."""
        ...

    def release(self) -> None:
        """Remove all breakpoints and let the guest run, if it ran before."""
        ...


class StandingRunner:
    """A memory image: nothing in it runs."""

    def _refuse(self) -> CapabilityError:
        return CapabilityError("a memory image does not run and takes no breakpoint: attach to a running guest")

    def insert(self, kind: int, address: int, length: int) -> None:
        """Refused."""
        raise self._refuse()

    def remove(self, kind: int, address: int, length: int) -> None:
        """Nothing is set."""

    def clear(self) -> None:
        """Nothing is set."""

    def go(self) -> Halt:
        """Refused."""
        raise self._refuse()

    def step(self, shown: Shown) -> Halt:
        """Refused."""
        raise self._refuse()

    def release(self) -> None:
        """It stands as it stood."""


class LiveRunner:
    """A guest under QEMU, paused while the client looks at it."""

    def __init__(self, guest: LiveGuest, inferior: Inferior, client: Connection) -> None:
        self.guest = guest
        self.inferior = inferior
        self.client = client
        self._points: dict[tuple[int, int, int], Breakpoint] = {}
        self._idle = guest.break_on(guest.kernel.base)
        """Never set: what is waited for where the client has set nothing."""
        self._exit = self._exit_point()
        guest.pause()

    # Breakpoints

    def insert(self, kind: int, address: int, length: int) -> None:
        """Set a breakpoint of the inferior.

        Code is watched by the hardware's means, which the guest cannot see and which need no page in RAM; where these
        are used up, in the kernel's half alone by an int3 (see `LiveGuest.break_on`).
        """
        key = _key(kind, address, length)
        if key in self._points:
            return
        point = self._made(kind, address, length)
        try:
            point.insert()
        except CapabilityError:
            if self._exit is not None and self._give_up_exit():  # the client's own come first
                self.insert(kind, address, length)
                return
            if kind not in CODE or address < self.guest.kernel_start:
                raise
            point = self.guest.break_on(address, self.inferior.process, kind="software")
            point.insert()
        self._points[key] = point

    def _made(self, kind: int, address: int, length: int) -> Breakpoint:
        if kind in CODE:
            return self.guest.break_on(address, self.inferior.process)
        return self.guest.watch(address, length, _KINDS[kind], process=self.inferior.process)

    def remove(self, kind: int, address: int, length: int) -> None:
        """Remove a breakpoint; hits of it that wait are dropped."""
        point = self._points.pop(_key(kind, address, length), None)
        if point is not None:
            point.remove()

    def clear(self) -> None:
        """Remove every breakpoint of the client."""
        for key in list(self._points):
            self._points.pop(key).remove()

    def _exit_point(self) -> Breakpoint | None:
        """A breakpoint where the inferior's process ends (see `debug.events`), where one is to be had."""
        process = self.inferior.process
        if process is None or self.guest.variable("PspExitProcess") is None:
            return None
        eprocess = process.eprocess.address
        point = self.guest.break_on("PspExitProcess", condition=lambda hit: hit.args[1] == eprocess)
        try:
            point.insert()
        except CapabilityError:
            return None
        return point

    def _give_up_exit(self) -> bool:
        point, self._exit = self._exit, None
        if point is not None:
            point.remove()
        return point is not None

    # Running

    def go(self) -> Halt:
        """Let the guest run to the inferior's next hit, its end, or the client's Ctrl-C."""
        hit = self._wait()
        return self._interrupted() if hit is None else self._halt(hit)

    def _wait(self, *others: Breakpoint) -> Hit | None:
        """The next hit of the client's or the `others`; None when the client asked to stop, or somebody paused."""
        points = (*self._points.values(), *others, self._idle, *([] if self._exit is None else [self._exit]))
        while oldest_hit(points) is not None:  # one arrival that several of them saw has been told
            continue
        with self.client.watched(self.guest.interrupt) as asked:
            while True:
                try:
                    hit = self.guest.next_hit(points)
                except GuestPausedError:
                    return None
                if hit is not None:
                    return hit
                if asked.is_set():  # else it is what an earlier Ctrl-C has left
                    return oldest_hit(points)

    def _interrupted(self) -> Halt:
        ours = {shown.vcpu: shown.number for shown in self.inferior.threads()}
        numbers = [ours[vcpu] for vcpu, _ in self.guest.running_threads() if vcpu in ours]
        return Halt(INTERRUPTED, numbers[0] if numbers else 0)

    def _halt(self, hit: Hit) -> Halt:
        number = self._number(hit)
        if hit.breakpoint is self._exit:
            return Halt(thread=number, exited=True)
        if hit.accessed is not None:
            return Halt(thread=number, reason=f"{_WATCH[hit.breakpoint.kind]}:{hit.accessed:x};")
        kinds = {key[0] for key, point in self._points.items() if point is hit.breakpoint}
        return Halt(thread=number, reason="hwbreak:;" if kinds == {1} else "swbreak:;")

    def _number(self, hit: Hit) -> int:
        return hit.vcpu + 1 if self.inferior.process is None else hit.thread.tid

    def step(self, shown: Shown) -> Halt:
        """One instruction of a thread, the others frozen; what enters the kernel from user mode is followed until it
        is back, so that a system call is one instruction. A thread that does not run is run until it does."""
        if shown.vcpu is None:
            met = self._reach(self.inferior.registers(shown).get("rip"), shown)
            if met is None or met.breakpoint in self._points.values() or met.breakpoint is self._exit:
                return self._interrupted() if met is None else self._halt(met)
            shown = numbered(self.inferior, shown.number)
        for _ in range(_MOST_FAULTS):
            if shown.vcpu is None:
                raise CapabilityError(f"thread {shown.number} does not run")
            before = dict(self.guest.registers(shown.vcpu))
            code = self._code(shown, before)
            stop = self.guest.step(shown.vcpu)
            if stop.reason == "watchpoint" and stop.address is not None:
                return Halt(thread=shown.number, reason=self._watched(stop.address))
            after = self.guest.registers(shown.vcpu)
            if not (_is_user(before) and not _is_user(after)):
                break
            call = code[:2] in _SYSTEM_CALLS
            met = self._reach(before["rip"] + (2 if call else 0), shown)
            if met is None or met.breakpoint in self._points.values() or met.breakpoint is self._exit:
                return self._interrupted() if met is None else self._halt(met)
            if call:
                break
            shown = numbered(self.inferior, shown.number)
        return Halt(thread=shown.number)

    def _code(self, shown: Shown, registers: Mapping[str, int]) -> bytes:
        try:
            return self.inferior.memory(shown).read(registers["rip"], 2)
        except ColdframeError:
            return b""

    def _watched(self, address: int) -> str:
        for point in self._points.values():
            if point.kind in _WATCH and point.covers(address):
                return f"{_WATCH[point.kind]}:{address:x};"
        return ""

    def _reach(self, address: int | None, shown: Shown) -> Hit | None:
        """Let the guest run until the thread arrives at `address`, or something else is hit."""
        if address is None or shown.thread is None:
            raise CapabilityError(f"thread {shown.number} does not run, and where it will go on is not known")
        with self.guest.break_on(address, thread=shown.thread, once=True) as point:
            return self._wait(point)

    # The end

    def release(self) -> None:
        """Remove every breakpoint; the guest runs on if it ran when it was attached to."""
        self.clear()
        self._give_up_exit()
        if self.guest.vm.was_running:
            self.guest.resume()


def _key(kind: int, address: int, length: int) -> tuple[int, int, int]:
    """Both kinds of code breakpoints at an address are told apart, and both are of one byte; data by its length."""
    if kind not in (*CODE, *_KINDS):
        raise UsageError(f"expected a kind of breakpoint from 0 to 4, found {kind}")
    return (kind, address, 1 if kind in CODE else length)


def _is_user(registers: Mapping[str, int]) -> bool:
    return registers.get("cs", 0) & 3 == 3
