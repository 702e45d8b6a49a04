"""What a client debugs: a process with its Windows threads, or the whole machine with its vCPUs.

A thread that a vCPU runs has that vCPU's registers. Any other has those with which it goes on in user mode, by its trap
frame; one that has no user mode, those with which it goes on in KiSwapContext, as `coldframe stack` has it. Nothing is
kept beyond a pause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from coldframe.debug import LiveGuest, StackWalker
from coldframe.errors import CapabilityError, ColdframeError, NotFoundError
from coldframe.paging import AddressSpace
from coldframe.processfacts import trap_registers, user_registers
from coldframe.windows import Guest, Module, Process, Thread

MOST_THREADS = 1 << 14


@dataclass(frozen=True, slots=True)
class Shown:
    """A thread under the client's number for it: a Windows thread's identifier, or one more than a vCPU's number."""

    number: int
    vcpu: int | None
    thread: Thread | None
    name: str
    state: str


class Inferior(Protocol):
    """One process of the protocol: `pid` is its number there, `name` for people."""

    guest: Guest
    pid: int
    name: str

    @property
    def process(self) -> Process | None:
        """The Windows process whose breakpoints alone are meant; None for any."""
        ...

    def threads(self) -> Sequence[Shown]:
        """Its threads in this pause, those that run first."""
        ...

    def memory(self, shown: Shown | None) -> AddressSpace:
        """The address space that the thread sees."""
        ...

    def registers(self, shown: Shown) -> Mapping[str, int]:
        """The registers of the thread that are known."""
        ...

    def write_registers(self, shown: Shown, values: Mapping[str, int]) -> None:
        """Set registers; raises `CapabilityError`."""
        ...

    def modules(self) -> Sequence[Module]:
        """The images that it has loaded."""
        ...


class ProcessInferior:
    """A process and its Windows threads."""

    def __init__(self, process: Process) -> None:
        self.guest = process.guest
        self.process: Process | None = process
        self._process = process
        self.pid = process.pid
        self.name = process.name

    def threads(self) -> Sequence[Shown]:
        """Its threads, those that vCPUs run first."""
        return self.guest.once(("gdbserver threads", self._process), self._threads)

    def _threads(self) -> Sequence[Shown]:
        vcpus = {thread.ethread.address: vcpu for vcpu, thread in self.guest.running_threads()}
        found: list[Shown] = []
        try:
            for thread in islice(self._process.threads, MOST_THREADS):
                vcpu = vcpus.get(thread.ethread.address)
                found.append(Shown(thread.tid, vcpu, thread, self._start(thread), thread.state))
        except ColdframeError as error:
            self.guest.warn(f"threads of {self._process!r}: {error}")
        return sorted(found, key=lambda shown: shown.vcpu is None)

    def _start(self, thread: Thread) -> str:
        """Where it was told to begin, by name."""
        try:
            return self.guest.symbolize(thread.start_address, self._process)
        except ColdframeError:
            return ""

    def memory(self, shown: Shown | None) -> AddressSpace:
        """The process's address space, user and kernel half."""
        return self._process.memory

    def registers(self, shown: Shown) -> Mapping[str, int]:
        """Those of its vCPU, of its trap frame, or of the frame in which it was switched out."""
        if shown.vcpu is not None:
            return self.guest.registers(shown.vcpu)
        if shown.thread is None:
            return {}
        in_user_mode, _ = user_registers(shown.thread)
        return in_user_mode or StackWalker(self.guest).switched_out(shown.thread) or {}

    def write_registers(self, shown: Shown, values: Mapping[str, int]) -> None:
        """Set registers of its vCPU, or of the trap frame with which it goes on in user mode."""
        if shown.vcpu is not None:
            _write_vcpu(self.guest, shown.vcpu, values)
            return
        frame = None if shown.thread is None or not user_registers(shown.thread)[0] else shown.thread.trap_frame
        places = trap_registers(self.guest)
        missing = [name for name in values if frame is None or name not in places]
        if missing or frame is None:
            raise CapabilityError(f"thread {shown.number} does not run, and no frame of it holds {', '.join(missing)}")
        for name, value in values.items():
            frame[places[name]] = value

    def modules(self) -> Sequence[Module]:
        """Its images, in load order."""
        return self._process.modules


class MachineInferior:
    """The whole machine: a thread is a vCPU, memory is what that vCPU sees, modules are drivers."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.process: Process | None = None
        self.pid = 1
        self.name = "the kernel"

    def threads(self) -> Sequence[Shown]:
        """The vCPUs, by number."""
        return self.guest.once("gdbserver vCPUs", self._vcpus)

    def _vcpus(self) -> Sequence[Shown]:
        threads = dict(self.guest.running_threads())
        return [self._vcpu(vcpu, threads.get(vcpu)) for vcpu in range(self.guest.vcpus)]

    def _vcpu(self, vcpu: int, thread: Thread | None) -> Shown:
        state = ""
        try:
            if thread is not None:
                state = f"{thread.process.name} ({thread.process.pid}.{thread.tid})"
        except ColdframeError:
            pass
        return Shown(vcpu + 1, vcpu, thread, f"vCPU {vcpu}", state)

    def memory(self, shown: Shown | None) -> AddressSpace:
        """The address space of the process whose tables the vCPU uses."""
        try:
            return self.guest.memory if shown is None or shown.thread is None else shown.thread.attached_process.memory
        except ColdframeError:
            return self.guest.memory

    def registers(self, shown: Shown) -> Mapping[str, int]:
        """Those of the vCPU."""
        return {} if shown.vcpu is None else self.guest.registers(shown.vcpu)

    def write_registers(self, shown: Shown, values: Mapping[str, int]) -> None:
        """Set registers of the vCPU."""
        if shown.vcpu is not None:
            _write_vcpu(self.guest, shown.vcpu, values)

    def modules(self) -> Sequence[Module]:
        """The kernel and its drivers."""
        return self.guest.drivers


def inferior(guest: Guest, process: Process | None) -> Inferior:
    """What a client of `guest` sees: `process`, else the machine; System where an image carries no registers."""
    if process is not None:
        return ProcessInferior(process)
    return MachineInferior(guest) if guest.vcpus else ProcessInferior(guest.process(4))


def _write_vcpu(guest: Guest, vcpu: int, values: Mapping[str, int]) -> None:
    if not isinstance(guest, LiveGuest):
        raise CapabilityError("a memory image's registers cannot be written: attach to a running guest")
    guest.write_registers(vcpu, values)


def numbered(inferior: Inferior, number: int) -> Shown:
    """The thread of that number, any for 0; raises `NotFoundError`."""
    for shown in inferior.threads():
        if number in (0, shown.number):
            return shown
    raise NotFoundError("thread", str(number), (str(shown.number) for shown in inferior.threads()))
