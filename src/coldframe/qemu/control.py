"""Run control: pausing, running, stepping and breakpoints of a guest behind a gdbstub, right with any number of vCPUs.

The law: a hit is one arrival of a vCPU at a breakpoint, and it is reported exactly once.

- A vCPU whose hit was reported is taken past its breakpoint before the guest runs on (`passing`), so that no other
  vCPU slips past.
- A vCPU that arrives at the same moment as another one, or that is stopped right before a breakpoint, has not been
  reported; when the guest runs on it hits its breakpoint then, and is reported.
- An instruction under a breakpoint may fault and run again (a push that grows the stack); the second arrival with the
  same registers belongs to the first and is passed over.

What lies below: `execution` lets the guest run and waits for its stops, `breakpoints` knows what is set, `instructions`
what lies under it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from coldframe.errors import ColdframeError, GuestGoneError, UsageError
from coldframe.memory import PhysicalMemory
from coldframe.qemu.arrivals import Arrival, Breakpoint, Stop
from coldframe.qemu.breakpoints import Breakpoints
from coldframe.qemu.execution import Execution
from coldframe.qemu.gdbstub import KINDS, TRAP, GdbStub, StopReply
from coldframe.qemu.guarding import Guard
from coldframe.qemu.instructions import Instructions
from coldframe.qemu.passing import MOST_EMPTY_STEPS, Passing
from coldframe.qemu.qmp import Monitor
from coldframe.qemu.registers import Registers

_SHUTDOWN = 3  # QEMU sends GDB's SIGQUIT for a guest that shut down and is kept (-no-shutdown)
_MOST_SPURIOUS = 64


class Control:
    """Runs and stops one guest. The guest is stopped when this is made; `on_resume` is called before it runs."""

    def __init__(
        self,
        stub: GdbStub,
        monitor: Monitor,
        guard: Guard | None,
        accelerator: str,
        physical: PhysicalMemory | None,
        *,
        on_resume: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._stub = stub
        self._execution = Execution(stub, monitor, on_resume)
        self._breakpoints = Breakpoints(stub, guard, accelerator)
        self._instructions = Instructions(stub, physical)
        self._passing = Passing(self._execution, self._breakpoints, self._instructions, accelerator)
        self._arrival: Arrival | None = None
        self._waiting: Stop | None = None
        self._unsettled = False

    @property
    def running(self) -> bool:
        """Whether the guest was told to run and has not been heard to stop."""
        return self._execution.running

    @property
    def vcpus(self) -> int:
        """How many vCPUs the gdbstub shows."""
        return len(self._stub.threads)

    # -- pausing and running ----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop all vCPUs; no effect when they are stopped."""
        self._settle()
        if self.running:
            stop = self._of_data_or_asked_for(self._execution.stop())
            if stop is not None and stop.reason == "watchpoint":
                self._waiting = stop
            # a vCPU that stands before its breakpoint hits it when the guest runs on

    def interrupt(self) -> None:
        """Ask a running guest to stop, from any thread; a stub whose guest stands still ignores it."""
        self._stub.interrupt()

    def resume(self) -> None:
        """Let all vCPUs run; a vCPU whose hit was reported passes its breakpoint first."""
        self._settle()
        if self.running:
            return
        self._unsettled = True
        self._go()
        if not self.running:  # what waits is reported when somebody waits for a stop
            self._execution.start()
        self._unsettled = False

    def run_until_stop(self, timeout: float | None = None) -> Stop | None:
        """Let the guest run until it stops by itself; after `timeout` seconds stop it and return None.

        On an exception, Ctrl-C included, the guest is stopped and everything stays set.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._settle()
        stop: Stop | None
        if self._waiting is not None:  # a watchpoint that was seen while the guest was being paused
            self.pause()
            stop, self._waiting = self._waiting, None
            return stop
        self._unsettled = True
        try:
            stop = self._run(deadline)
        except GuestGoneError as error:
            raise self._execution.gone(error) from None
        except BaseException:
            with contextlib.suppress(ColdframeError):
                self._settle()
            raise
        self._unsettled = False
        return stop

    def _run(self, deadline: float | None) -> Stop | None:
        execution = self._execution
        for _ in range(_MOST_SPURIOUS):
            if not execution.running:
                self._go()
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                return waiting
            reply = execution.stop_reply(None if deadline is None else deadline - time.monotonic())
            if reply is None:
                stop = self._meaning(execution.stop())
                return None if stop is None or stop.reason == "interrupt" else stop
            stop = self._meaning(reply)
            if stop is not None:
                return stop
        raise GuestGoneError(f"QEMU stopped the guest {_MOST_SPURIOUS} times without a reason")

    def _go(self) -> None:
        """Let every vCPU run, the one whose hit was reported past its breakpoint first."""
        arrival, self._arrival = self._arrival, None
        if arrival is not None and arrival.address in self._breakpoints.code:
            before = self._execution.registers(arrival.vcpu)
            if before["rip"] == arrival.address:
                self._waiting = self._passing.let_run(arrival.vcpu, before)
                return
        self._execution.start()

    def step(self, vcpu: int) -> Stop:
        """Carry out one instruction of `vcpu`, the others frozen; a breakpoint right there does not stop it."""
        before = self.registers(vcpu)
        if self._arrival is not None and self._arrival.vcpu == vcpu:
            self._arrival = None
        self._unsettled = True
        for _ in range(MOST_EMPTY_STEPS):
            reply = self._passing.step(vcpu, before["rip"])
            if reply.signal != TRAP or self._execution.registers(vcpu).raw != before.raw:
                break
        self._unsettled = False
        return self._of_data_or_asked_for(reply) or Stop(vcpu, "step")

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """A vCPU is stepped elsewhere and put back as it stood: a hit that it had reported stays reported."""
        arrival = self._arrival
        try:
            yield
        finally:
            self._arrival = arrival

    # -- what a stop means ------------------------------------------------------------------------------------------

    def _meaning(self, reply: StopReply) -> Stop | None:
        """Make a stop of a reply; None for one that means nothing (QEMU sometimes stops twice for one breakpoint)."""
        stop = self._of_data_or_asked_for(reply)
        if stop is not None:
            return stop
        registers = self._execution.registers(reply.vcpu)
        address = registers["rip"]
        if address not in self._breakpoints.code:
            return None
        self._arrival = Arrival(reply.vcpu, address)
        if self._passing.comes_again(address, registers):
            return None
        return Stop(reply.vcpu, "breakpoint", address)

    def _of_data_or_asked_for(self, reply: StopReply) -> Stop | None:
        """The stop of a watchpoint, or one that somebody asked for; None for a breakpoint's or a step's."""
        if reply.watch is not None and self._breakpoints.watches(reply.watch):
            return Stop(reply.vcpu, "watchpoint", reply.watch)
        if reply.signal == TRAP:
            return None
        return Stop(reply.vcpu, "shutdown" if reply.signal == _SHUTDOWN else "interrupt")

    def _settle(self) -> None:
        """After an exception in the middle of a run: stop the guest and put back every breakpoint."""
        if not self._unsettled and not self._stub.broken_off:
            return
        self._execution.resynchronise()
        self._arrival = None if self._arrival_moved() else self._arrival
        self._breakpoints.set_again()
        self._unsettled = False

    def _arrival_moved(self) -> bool:
        return self._arrival is None or self._execution.registers(self._arrival.vcpu)["rip"] != self._arrival.address

    # -- registers and memory ---------------------------------------------------------------------------------------

    def registers(self, vcpu: int) -> Registers:
        """The registers of a vCPU of a paused guest; fetched once a pause."""
        self._settle()
        if not 0 <= vcpu < self.vcpus:
            raise UsageError(f"no vCPU {vcpu}: there are {self.vcpus}, numbered from 0")
        if self.running:
            raise UsageError("the registers of a vCPU, and its steps, need a paused guest: pause first")
        return self._execution.registers(vcpu)

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Write some registers of a vCPU of a paused guest; on error those before the one named were written."""
        current = self.registers(vcpu)
        for name, value in values.items():
            if name not in current:
                raise UsageError(f"no register {name!r}; there are {', '.join(list(current)[:32])} ...")
            self._execution.write_register(vcpu, name, value)

    def read_physical(self, address: int, size: int) -> bytes:
        """Guest-physical bytes through the gdbstub; the guest must be paused."""
        self._settle()
        return self._stub.read_physical(address, size)

    def write_physical(self, address: int, data: bytes) -> None:
        """Write guest-physical bytes through the gdbstub, pausing the guest for the moment."""
        with self._paused():
            self._stub.write_physical(address, data)

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """A guest that stands for the moment, and runs on if it ran."""
        self._settle()
        was_running = self.running
        self.pause()
        yield
        if was_running:
            self.resume()

    # -- breakpoints ------------------------------------------------------------------------------------------------

    def insert(self, address: int, kind: str = "hardware", length: int = 1) -> Breakpoint:
        """Set a breakpoint; the same one may be set several times and goes with the last removal.

        Stops a running guest for the moment. Raises `CapabilityError` when QEMU has no more of the kind.
        """
        if kind not in KINDS:
            raise UsageError(f"no kind of breakpoint {kind!r}; there are {', '.join(KINDS)}")
        point = Breakpoint(address % (1 << 64), kind, length)
        self._settle()
        if self._breakpoints.count(point):
            self._breakpoints.add(point)
            return point
        with self._paused():
            self._breakpoints.set(point)
        return point

    def remove(self, point: Breakpoint) -> None:
        """Take back one `insert`; no effect when it is not set."""
        self._settle()
        count = self._breakpoints.count(point)
        if count > 1:
            self._breakpoints.take_back(point)
        if count != 1:
            return
        with self._paused():
            self._breakpoints.clear(point)
            if point.address not in self._breakpoints.code:
                self._instructions.forget(point.address)

    def release(self) -> None:
        """Remove every breakpoint and leave the guest paused; nothing else may be called after it.

        No detach packet: QEMU 7.2 crashes when the guest stops between that and the end of the gdbstub.
        """
        self._execution.resynchronise()
        self._breakpoints.clear_all()
