"""Run control: pausing, running, stepping and breakpoints of a guest behind a gdbstub, right with any number of vCPUs.

The law: a hit is one arrival of a vCPU at a breakpoint, and it is reported exactly once.

- A vCPU whose hit was reported is taken over its breakpoint before the guest runs on: its instruction is carried out
  from outside (`passing`), or by one single step with all other vCPUs frozen; so no other vCPU slips past.
- A vCPU that arrives at the same moment as another one, or that is stopped right before a breakpoint, has not been
  reported; when the guest runs on it hits its breakpoint then, and is reported.
- An instruction under a breakpoint may fault and run again (a push that grows the stack); the second arrival with the
  same registers belongs to the first and is passed over.

Under TCG a single step ignores breakpoints, so that they stay in; under KVM the breakpoint is taken out for the step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from coldframe.errors import CapabilityError, ColdframeError, GuestGoneError, UsageError
from coldframe.memory import PhysicalMemory
from coldframe.qemu.arrivals import (
    LONGEST_INSTRUCTION,
    Arrival,
    Breakpoint,
    Stop,
    entered_handler,
    identity,
    is_repeated,
)
from coldframe.qemu.breakpoints import Breakpoints
from coldframe.qemu.gdbstub import KINDS, TRAP, GdbStub, StopReply
from coldframe.qemu.guarding import Guard
from coldframe.qemu.passing import Passing
from coldframe.qemu.qmp import Monitor
from coldframe.qemu.registers import Registers

_SHUTDOWN = 3  # QEMU sends GDB's SIGQUIT for a guest that shut down and is kept (-no-shutdown)
_LONGEST_STOP = 10.0
_MOST_REPEATS = 1 << 16
_MOST_SPURIOUS = 64
_STOPS_A_PUMP = 64
_MOST_EMPTY_STEPS = 4
_MOST_UNFINISHED = 256


class Control:
    """Runs and stops one guest. The guest is stopped when this is made."""

    def __init__(
        self,
        stub: GdbStub,
        monitor: Monitor,
        guard: Guard | None,
        accelerator: str,
        physical: PhysicalMemory | None = None,
    ) -> None:
        self._stub = stub
        self._monitor = monitor
        self._keeps_breakpoints_in_steps = accelerator == "tcg"
        self._breakpoints = Breakpoints(stub, guard, accelerator)
        self._code = self._breakpoints.code
        self._passing = Passing(stub, physical)
        self._known_code: dict[int, bytes] = {}
        self._arrival: Arrival | None = None
        self._unfinished: dict[tuple[int, bytes], None] = {}
        self._waiting: Stop | None = None
        self._registers: dict[int, Registers] = {}
        self._unsettled = False
        self.running = False
        self.on_resume: list[Callable[[], None]] = []
        self._stops = 0

    # -- pausing and running ----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop all vCPUs; no effect when they are stopped."""
        self._settle()
        if self.running:
            self._stub.interrupt()
            self._waiting = self._arrived(self._stop_reply(_LONGEST_STOP), report=False) or self._waiting

    def interrupt(self) -> None:
        """Ask a running guest to stop, from any thread; a stub whose guest stands still ignores it."""
        self._stub.interrupt()

    def resume(self) -> None:
        """Let all vCPUs run; a vCPU whose hit was reported passes its breakpoint first."""
        self._settle()
        if not self.running:
            self._go()
        if not self.running:  # what waits is reported when somebody waits for a stop
            self._forget()
            self._stub.start()
            self.running = True

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
            raise self._gone(error) from None
        except BaseException:
            with contextlib.suppress(ColdframeError):
                self._settle()
            raise
        self._unsettled = False
        return stop

    def _run(self, deadline: float | None) -> Stop | None:
        for _ in range(_MOST_SPURIOUS):
            if not self.running:
                self._go()
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                return waiting
            reply = self._stop_reply(None if deadline is None else deadline - time.monotonic())
            if reply is None:
                self._stub.interrupt()
                reply = self._stop_reply(_LONGEST_STOP)
                stop = self._arrived(reply)
                return None if stop is None or stop.reason == "interrupt" else stop
            stop = self._arrived(reply)
            if stop is not None:
                return stop
        raise GuestGoneError(f"QEMU stopped the guest {_MOST_SPURIOUS} times without a reason")

    def step(self, vcpu: int) -> Stop:
        """Carry out one instruction of `vcpu`, the others frozen; a breakpoint right there does not stop it."""
        self._settle()
        self._check(vcpu)
        if self.running:
            raise UsageError("step needs a paused guest: pause first")
        before = self.registers(vcpu)
        self._unsettled = True
        for _ in range(_MOST_EMPTY_STEPS):
            reply = self._step(vcpu, before["rip"])
            if reply.signal != TRAP or self._fetch(vcpu).raw != before.raw:
                break
        self._unsettled = False
        if reply.signal == _SHUTDOWN:
            return Stop(vcpu, "shutdown")
        if reply.watch is not None and self._breakpoints.watches(reply.watch):
            return Stop(vcpu, "watchpoint", reply.watch)
        return Stop(vcpu, "step" if reply.signal == TRAP else "interrupt")

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """A vCPU is stepped elsewhere and put back as it stood: a hit that it had reported stays reported."""
        arrival = self._arrival
        try:
            yield
        finally:
            self._arrival = arrival

    def _step(self, vcpu: int, address: int) -> StopReply:
        """One instruction of one vCPU, whatever breakpoint lies on it."""
        self._forget(vcpu)
        here = self._code.get(address)
        if here is not None and not self._keeps_breakpoints_in_steps:
            self._stub.start(b"z" + here.packet[1:], step=vcpu)
            self.running = True
            reply = self._await_step()
            self._stub.ask(here.packet)
            return reply
        self._stub.start(step=vcpu)
        self.running = True
        return self._await_step()

    def _await_step(self) -> StopReply:
        reply = self._stop_reply(_LONGEST_STOP)
        if reply is None:
            raise GuestGoneError(f"QEMU did not finish a single step within {_LONGEST_STOP:g} s")
        return reply

    def _go(self) -> None:
        """Let every vCPU run, the one whose hit was reported past its breakpoint first."""
        arrival, self._arrival = self._arrival, None
        if arrival is not None and arrival.address in self._code:
            before = self._registers.get(arrival.vcpu, arrival.registers)
            if before["rip"] == arrival.address:
                if self._breakpoints.any_watches:
                    self._pass_watched(arrival.vcpu, arrival.address, before)
                elif not self._carry_out(arrival.vcpu, before):
                    self._pass_breakpoint(arrival.vcpu, arrival.address, before)
                return
        self._forget()
        self._stub.start()
        self.running = True

    def _carry_out(self, vcpu: int, before: Registers) -> bool:
        """Do what the instruction under the breakpoint does, and let all run, if that can be done from outside."""
        packets = self._passing.packets(vcpu, before)
        if packets is None:
            return False
        self._forget()
        self._stub.start_after(*packets)
        self.running = True
        return True

    def _pass_watched(self, vcpu: int, address: int, before: Registers) -> None:
        """Step over the breakpoint at `address`; a watchpoint that the instruction sets off is the next stop."""
        if address not in self._known_code:
            self._known_code[address] = self._stub.read_virtual(vcpu, address, 4) or b""
        reply = self._step(vcpu, address)
        after = self._fetch(vcpu)
        if reply.watch is not None and self._breakpoints.watches(reply.watch):
            self._waiting = Stop(vcpu, "watchpoint", reply.watch)
            return
        self._forget()
        self._finish_pass(vcpu, address, before, after)

    def _pass_breakpoint(self, vcpu: int, address: int, before: Registers) -> None:
        """Step `vcpu` over the breakpoint at `address`, the others frozen, then let all run.

        Two round trips: the step, and the registers after it together with the start.
        """
        self._forget()
        stub = self._stub
        here = self._code[address]
        taken_out = not self._keeps_breakpoints_in_steps
        if address not in self._known_code:
            self._known_code[address] = stub.read_virtual(vcpu, address, 4) or b""
            if not taken_out:  # the first time: does a step here really ignore breakpoints?
                after = self._step_checked(vcpu, address, before)
                if identity(after) == identity(before) and not self._stays(address):
                    self._keeps_breakpoints_in_steps, taken_out = False, True
                else:
                    self._finish_pass(vcpu, address, before, after)
                    return
        stub.start(*((b"z" + here.packet[1:],) if taken_out else ()), step=vcpu)
        self.running = True
        self._await_step()
        put_back = (here.packet,) if taken_out else ()
        if is_repeated(self._known_code[address]):
            stub.ask_all(*put_back)
            self._finish_pass(vcpu, address, before, stub.registers(vcpu))
            return
        answers = stub.start(*put_back, *stub.registers_request(vcpu))
        self.running = True
        self._note_unfinished(address, before, stub.registers_answer(answers[-1]))

    def _finish_pass(self, vcpu: int, address: int, before: Registers, after: Registers) -> None:
        """End a pass whose registers are known while the guest is stopped; then let all run."""
        if is_repeated(self._known_code[address]):
            for _ in range(_MOST_REPEATS):  # it is one instruction, however many steps it takes
                if after["rip"] != address:
                    break
                self._step(vcpu, address)
                after = self._stub.registers(vcpu)
        self._note_unfinished(address, before, after)
        self._stub.start()
        self.running = True

    def _step_checked(self, vcpu: int, address: int, before: Registers) -> Registers:
        """Step until the vCPU has moved, at most a few times: QEMU's TCG ends some steps before the instruction."""
        after = before
        for _ in range(_MOST_EMPTY_STEPS):
            self._stub.start(step=vcpu)
            self.running = True
            self._await_step()
            after = self._stub.registers(vcpu)
            if identity(after) != identity(before) or self._stays(address):
                break
        return after

    def _stays(self, address: int) -> bool:
        """Whether the instruction is a jump to itself."""
        return self._known_code.get(address, b"")[:2] == b"\xeb\xfe"

    def _note_unfinished(self, address: int, before: Registers, after: Registers) -> None:
        """Remember an instruction that was not carried out, or went to an exception handler: it will run again.

        TCG ends a step before the instruction when it polls the APIC (CPU_INTERRUPT_POLL is no interrupt that single
        steps hold back); seen once in some thousand steps.
        """
        if 0 < after["rip"] - address <= LONGEST_INSTRUCTION:
            return
        code = self._known_code.get(address, b"")
        if code.startswith((b"\xcc", b"\xcd", b"\xf1", b"\x0f\x34")):
            return  # INT and SYSENTER go to a handler that does not come back to them
        if entered_handler(address, before, after) or (
            identity(after) == identity(before) and not self._stays(address)
        ):
            if len(self._unfinished) >= _MOST_UNFINISHED:
                self._unfinished.pop(next(iter(self._unfinished)))
            self._unfinished[address, identity(before)] = None

    # -- what a stop means ------------------------------------------------------------------------------------------

    def _stop_reply(self, timeout: float | None) -> StopReply | None:
        """Wait for the stop of a running guest; None when the time is over."""
        timeout = None if timeout is None else max(0.0, timeout)
        while (payload := self._stub.packets.receive(timeout)) is not None:
            if payload[:1] in b"TSWX":
                reply = self._stub.stop_reply(payload)
                self.running = False
                self._stops += 1
                if self._stops % _STOPS_A_PUMP == 0:  # QMP tells every stop too; unread, it would pile up in QEMU
                    self._monitor.pump()
                return reply
            if payload[:1] == b"E":
                said = payload.decode("latin-1")
                raise CapabilityError(f"QEMU's gdbstub refused a write that carries out an instruction ({said})")
        return None

    def _gone(self, error: GuestGoneError) -> GuestGoneError:
        """The best words for the machine's end: QMP knows more than the gdbstub."""
        self.running = False
        try:
            for _ in range(20):
                self._monitor.pump()
                time.sleep(0.01)
        except GuestGoneError as said:
            return said
        return error

    def _arrived(self, reply: StopReply | None, report: bool = True) -> Stop | None:
        """Make a stop of a reply; None for one that means nothing (QEMU sometimes stops twice for one breakpoint)."""
        if reply is None:
            raise GuestGoneError(f"QEMU did not stop the guest within {_LONGEST_STOP:g} s")
        if reply.watch is not None and self._breakpoints.watches(reply.watch):
            return Stop(reply.vcpu, "watchpoint", reply.watch)
        if reply.signal != TRAP:
            if not report:
                return None
            return Stop(reply.vcpu, "shutdown" if reply.signal == _SHUTDOWN else "interrupt")
        if not report:
            return None  # the vCPU stands before its breakpoint and hits it when the guest runs on
        registers = self._fetch(reply.vcpu)
        address = registers["rip"]
        if address not in self._code:
            return None
        self._arrival = Arrival(reply.vcpu, address, registers)
        if self._unfinished and self._unfinished.pop((address, identity(registers)), 1) is None:
            return None
        return Stop(reply.vcpu, "breakpoint", address)

    def _settle(self) -> None:
        """After an exception in the middle of a run: stop the guest and put back every breakpoint."""
        if not self._unsettled and not self._stub.broken_off:
            return
        self._stub.resynchronise()
        self._stub.packets.drop()
        self.running = False
        self._forget()
        self._arrival = None if self._arrival_moved() else self._arrival
        self._breakpoints.set_again()
        self._unsettled = False

    def _arrival_moved(self) -> bool:
        return self._arrival is None or self._fetch(self._arrival.vcpu)["rip"] != self._arrival.address

    # -- registers --------------------------------------------------------------------------------------------------

    def registers(self, vcpu: int) -> Registers:
        """The registers of a vCPU of a paused guest; fetched once a pause."""
        self._settle()
        self._check(vcpu)
        if self.running:
            raise UsageError("registers need a paused guest: pause first")
        return self._fetch(vcpu)

    def _fetch(self, vcpu: int) -> Registers:
        found = self._registers.get(vcpu)
        if found is None:
            found = self._registers[vcpu] = self._stub.registers(vcpu)
        return found

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Write some registers of a vCPU of a paused guest; on error those before the one named were written."""
        current = self.registers(vcpu)
        for name, value in values.items():
            if name not in current:
                raise UsageError(f"no register {name!r}; there are {', '.join(list(current)[:32])} ...")
            self._stub.write_register(vcpu, name, value)
            current = self._registers[vcpu] = current.replaced({name: value})

    def _check(self, vcpu: int) -> None:
        if not 0 <= vcpu < len(self._stub.threads):
            raise UsageError(f"no vCPU {vcpu}: there are {len(self._stub.threads)}, numbered from 0")

    def _forget(self, vcpu: int | None = None) -> None:
        if vcpu is None:
            self._registers.clear()
        else:
            self._registers.pop(vcpu, None)
            if self._arrival is not None and self._arrival.vcpu == vcpu:
                self._arrival = None
        for callback in self.on_resume:
            callback()

    @property
    def vcpus(self) -> int:
        """How many vCPUs the gdbstub shows."""
        return len(self._stub.threads)

    def read_physical(self, address: int, size: int) -> bytes:
        """Guest-physical bytes through the gdbstub; the guest must be paused."""
        self._settle()
        return self._stub.read_physical(address, size)

    def write_physical(self, address: int, data: bytes) -> None:
        """Write guest-physical bytes through the gdbstub, pausing the guest for the moment."""
        self._settle()
        was_running = self.running
        self.pause()
        self._stub.write_physical(address, data)
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
        was_running = self.running
        self.pause()
        self._breakpoints.set(point)
        if was_running:
            self.resume()
        return point

    def remove(self, point: Breakpoint) -> None:
        """Take back one `insert`; no effect when it is not set."""
        self._settle()
        count = self._breakpoints.count(point)
        if count > 1:
            self._breakpoints.take_back(point)
        if count != 1:
            return
        was_running = self.running
        self.pause()
        self._breakpoints.clear(point)
        if point.address not in self._code:
            self._known_code.pop(point.address, None)
        if was_running:
            self.resume()

    def release(self) -> None:
        """Remove every breakpoint and leave the guest paused; nothing else may be called after it.

        No detach packet: QEMU 7.2 crashes when the guest stops between that and the end of the gdbstub.
        """
        self._forget()
        self._stub.resynchronise()
        self._breakpoints.clear_all()
        self.running = False
