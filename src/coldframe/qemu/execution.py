"""A guest that runs or stands still, and the registers of its vCPUs while it stands.

Only this module lets the guest run; whoever keeps anything of a paused guest is told before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from coldframe.errors import CapabilityError, GuestGoneError
from coldframe.qemu.gdbstub import GdbStub, StopReply
from coldframe.qemu.qmp import Monitor
from coldframe.qemu.registers import Registers

LONGEST_STOP = 10.0
"""Seconds after which a guest that was told to stop, or to carry out one instruction, is taken to hang."""
_STOPS_A_PUMP = 64


class Execution:
    """Starts and stops one guest, which is stopped when this is made.

    `on_resume` is called before every start.
    """

    def __init__(self, stub: GdbStub, monitor: Monitor, on_resume: Sequence[Callable[[], None]]) -> None:
        self._stub = stub
        self._monitor = monitor
        self._on_resume = on_resume
        self._registers: dict[int, Registers] = {}
        self._stops = 0
        self.running = False

    # -- registers of a guest that stands still ---------------------------------------------------------------------

    def registers(self, vcpu: int) -> Registers:
        """The registers of a vCPU; fetched once a pause."""
        found = self._registers.get(vcpu)
        if found is None:
            found = self._registers[vcpu] = self._stub.registers(vcpu)
        return found

    def write_register(self, vcpu: int, name: str, value: int) -> None:
        """Write one register; raises `CapabilityError` when QEMU refuses."""
        current = self.registers(vcpu)
        self._stub.write_register(vcpu, name, value)
        self._registers[vcpu] = current.replaced({name: value})

    def forget(self) -> None:
        """Nothing read from the guest holds any more."""
        self._registers.clear()
        for callback in self._on_resume:
            callback()

    # -- letting it run ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let every vCPU run."""
        self.forget()
        self._stub.start()
        self.running = True

    def start_after(self, vcpu: int, written: Mapping[str, int], stored: Sequence[tuple[int, bytes]]) -> None:
        """Let every vCPU run, `vcpu` with some registers written, RIP among them, and bytes stored in its memory."""
        self.forget()
        stub = self._stub
        requests = [stub.write_memory_request(address, data) for address, data in stored]
        requests += [stub.write_register_request(name, value) for name, value in written.items() if name != "rip"]
        stub.start_from(vcpu, written["rip"], requests)
        self.running = True

    def start_reading(self, vcpu: int, *before: bytes) -> Registers:
        """Send requests and let every vCPU run; the registers that `vcpu` had just before."""
        self.forget()
        answers = self._stub.start(*before, *self._stub.registers_request(vcpu))
        self.running = True
        return self._stub.registers_answer(answers[-1])

    def step(self, vcpu: int, *before: bytes) -> StopReply:
        """Send requests and carry out one instruction of `vcpu`, the others frozen."""
        self.forget()
        self._stub.start(*before, step=vcpu)
        self.running = True
        return self.stopped(self.stop_reply(LONGEST_STOP))

    # -- its stops --------------------------------------------------------------------------------------------------

    def stop(self) -> StopReply:
        """Stop all vCPUs of a running guest."""
        self._stub.interrupt()
        return self.stopped(self.stop_reply(LONGEST_STOP))

    def stop_reply(self, timeout: float | None) -> StopReply | None:
        """Wait for the stop of a running guest; None when the time is over."""
        left = timeout = None if timeout is None else max(0.0, timeout)
        began = time.monotonic()
        while (payload := self._stub.packets.receive(left)) is not None:
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
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
        return None

    def stopped(self, reply: StopReply | None) -> StopReply:
        """`reply`, which must have come."""
        if reply is None:
            raise GuestGoneError(f"QEMU did not stop the guest within {LONGEST_STOP:g} s")
        return reply

    def resynchronise(self) -> None:
        """After an exception in the middle of a run: stop the guest, drop what is under way."""
        self._stub.resynchronise()
        self._stub.packets.drop()
        self.running = False
        self.forget()

    def gone(self, error: GuestGoneError) -> GuestGoneError:
        """The best words for the machine's end: QMP knows more than the gdbstub."""
        self.running = False
        try:
            for _ in range(20):
                self._monitor.pump()
                time.sleep(0.01)
        except GuestGoneError as said:
            return said
        return error
