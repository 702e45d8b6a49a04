"""A Windows guest that runs under QEMU: it can be paused, stepped, and broken into.

`LiveGuest` is what one writes programs with. What is behind its words: `running` (from stop to hit), `places` (where a
breakpoint goes), `breakpoint` and its kinds `pending` and `physical`, `events`, `calls`, `join`, `modelspecific`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from coldframe.debug import places
from coldframe.debug.breakpoint import Breakpoint, check_set
from coldframe.debug.calls import Calls, arguments
from coldframe.debug.callstack import StackWalker
from coldframe.debug.condition import Condition
from coldframe.debug.deadline import Deadline
from coldframe.debug.events import KINDS, Events, Kind, wait_for_process
from coldframe.debug.hit import Hit
from coldframe.debug.join import join
from coldframe.debug.modelspecific import read_msr, write_msr
from coldframe.debug.pending import is_loaded
from coldframe.debug.pending import pending as pending_breakpoint
from coldframe.debug.physical import break_on_physical
from coldframe.debug.processorstate import vector_registers
from coldframe.debug.running import Running
from coldframe.errors import CapabilityError, ColdframeError, UsageError
from coldframe.qemu import Stop, VirtualMachine
from coldframe.symbols.model import SymbolFile
from coldframe.windows.facts import Value
from coldframe.windows.guest import Guest
from coldframe.windows.kernel import FindsSymbols, KernelLocation, find_kernel
from coldframe.windows.kernelsymbols import kernel_symbols
from coldframe.windows.process import Process, Thread

_Kept = TypeVar("_Kept")


class LiveGuest(Guest):
    """A guest with its machine, `vm`; made by `attach`.

    The guest is paused when it is attached to, and runs while it is told to: by `resume`, by iterating a breakpoint,
    by `events`. Nothing read from it is kept beyond a pause. Closing (leaving the `with` block, also on an exception)
    removes every breakpoint and lets the guest run, if it was running when it was attached to.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        store: FindsSymbols,
        location: KernelLocation,
        symbol_file: SymbolFile,
        registers: Sequence[Mapping[str, int]] = (),
    ) -> None:
        self.vm = vm
        self.pauses = 0
        self._runs = False
        self.own_disks = vm.disks
        super().__init__(vm.physical, store, location, symbol_file, registers)
        self.stacks = StackWalker(self)
        self._running = Running(self)

    @classmethod
    def of_machine(cls, vm: VirtualMachine, store: FindsSymbols) -> Self:
        """The Windows guest in a machine that is attached to already; pauses it.

        Raises `NoKernelError`, `SymbolFileNotFoundError`; then the machine is left paused, still attached to.
        """
        vm.pause()
        hints = [_hints(vm, vcpu) for vcpu in range(vm.vcpus)]
        location = find_kernel(vm.physical, store, hints)
        symbol_file, warning = kernel_symbols(vm.physical, store, location)
        guest = cls(vm, store, location, symbol_file, hints)
        if warning is not None:
            guest.warn(warning)
        return guest

    def close(self) -> None:
        """Remove every breakpoint, let the guest run if it ran at attaching, and let go of it."""
        for points in list(self.active.values()):
            for point in list(points):
                try:
                    point.remove()
                except ColdframeError:  # the machine is gone, or takes care of it when it is let go
                    continue
        super().close()
        self.vm.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(ColdframeError):  # the error under way says more
            self.close()

    # What it is

    def once(self, key: Hashable, compute: Callable[[], _Kept]) -> _Kept:
        """What `compute` returns, computed once in this pause of the guest; anew each time while the guest runs."""
        if self._runs:
            super().new_pause()
            return compute()
        return super().once(key, compute)

    def facts(self) -> Mapping[str, Value]:
        """What `info` tells: the machine first (how its RAM is read, and why no better way is), then the guest."""
        vm = self.vm
        machine: Mapping[str, Value] = {
            "name": vm.name,
            "accelerator": vm.accelerator,
            "vcpus": vm.vcpus,
            "was_running": vm.was_running,
            "memory_path": vm.memory_path,
            "memory_refused": list(vm.memory_refused),
        }
        return {"machine": machine, **super().facts()}

    # Registers

    @property
    def vcpus(self) -> int:
        """How many vCPUs there are."""
        return self.vm.vcpus

    def registers(self, vcpu: int) -> Mapping[str, int]:
        """The registers of `vcpu`; the guest must be paused."""
        if not 0 <= vcpu < self.vm.vcpus:
            raise CapabilityError(f"no vCPU {vcpu}: the guest has {self.vm.vcpus}, numbered from 0")
        return self.vm.registers(vcpu)

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Set registers of `vcpu` by name; the guest must be paused. On error those before the one named were set."""
        self.vm.write_registers(vcpu, values)

    def vector_registers(self, vcpu: int = 0) -> Mapping[str, int]:
        """The vector registers of `vcpu` as wide as QEMU shows them: `xmm0` on, `ymm0` where the guest has turned them
        on. The XMM registers alone are among `registers` too, with those of the x87 (`st0`, `fctrl`) and `mxcsr`."""
        return vector_registers(self, vcpu)

    def msr(self, name: str, vcpu: int = 0) -> int:
        """The model-specific register `name` (`lstar`, `kernel_gs_base`) of `vcpu`; see `debug.modelspecific`."""
        return read_msr(self, name, vcpu)

    def write_msr(self, name: str, value: int, vcpu: int = 0) -> None:
        """Set the model-specific register `name` of `vcpu`; see `debug.modelspecific`."""
        write_msr(self, name, value, vcpu)

    # Running

    def new_pause(self) -> None:
        """Forget everything read from the guest: it has run."""
        self.pauses += 1
        super().new_pause()

    def pause(self) -> None:
        """Stop all vCPUs; no effect when they are stopped."""
        self.vm.pause()
        self.stopped()

    def stopped(self) -> None:
        """Note that the machine stands still, after it has run."""
        self._runs = self.resolver.runs = False
        self.new_pause()

    def resume(self) -> None:
        """Let all vCPUs run; what is read meanwhile may be torn between two moments, and is never kept."""
        self.vm.resume()
        self._runs = self.resolver.runs = True
        self.new_pause()

    def step(self, vcpu: int = 0) -> Stop:
        """Carry out one instruction of `vcpu`, the other vCPUs frozen; on error the guest is paused, maybe stepped."""
        try:
            return self.vm.step(vcpu)
        finally:
            self.new_pause()

    def interrupt(self) -> None:
        """From another thread: end the wait for a hit that is under way, or else the next; it returns None then.

        All else of a guest is for one thread at a time. Returns when the wait has ended, at once where there is none.
        """
        self._running.interrupt()

    # Breakpoints

    @property
    def active(self) -> dict[tuple[int, str], list[Breakpoint]]:
        """The breakpoints that are set, by address and kind."""
        return self._running.active

    def break_on(
        self,
        where: str | int,
        process: Process | str | int | None = None,
        thread: Thread | int | None = None,
        *,
        kind: str = "hardware",
        condition: Condition | str | None = None,
        once: bool = False,
        pending: bool = False,
    ) -> Breakpoint:
        """A breakpoint on `where`, set by entering its `with` block and removed by leaving it.

        `where` is an address, a kernel symbol (`NtWriteFile`), or `module!symbol` with an optional `+0x10`; a module
        of user mode needs `process`. Only arrivals of that `process` (name, pid) and `thread` (tid) are delivered, for
        which `condition` holds: a function of the hit, or a Python expression (`"args[6] > 100 and vcpu == 0"`, see
        `debug.condition`). An arrival that passes no filter costs the guest one stop. With `once` the breakpoint goes
        when its first hit is delivered. With `pending`, `MODULE!SYMBOL` of a `process` that has not loaded the module,
        or has not started, is set when the module comes. A page that is not in RAM needs nothing: a breakpoint is on a
        virtual address.

        `kind` "hardware" cannot be seen by the guest; under KVM the processor has four in all, under TCG there is no
        limit. "software" has no limit, but under KVM it is an int3 in the guest's memory that the guest can see, in
        every process which shares the page. Raises `NotFoundError`, `SymbolNotFoundError` with near names, and on
        entering `CapabilityError`; then nothing is set.
        """
        if kind not in ("hardware", "software"):
            raise UsageError(f"a breakpoint on code is 'hardware' or 'software', not {kind!r}")
        if pending and not is_loaded(self, where, process):
            return pending_breakpoint(self, where, process, kind=kind, condition=condition, once=once)
        return self._breakpoint(where, process, thread, kind=kind, condition=condition, once=once)

    def system_events(self, *kinds: Kind, process: Process | str | int | None = None) -> Events:
        """Processes, threads and images that come and go, each once; of these kinds (all, when none is given).

        Kinds: "process", "process-exit", "thread", "thread-exit", "image", "driver", "driver-unload". Use it as
        `break_on`; of one `process` alone if it is given. Raises `UsageError` for another kind.
        """
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise UsageError(f"expected kinds of events out of {', '.join(KINDS)}, found {unknown[0]!r}")
        return Events(self, kinds or KINDS, places.owner(self, process))

    def wait_for_process(self, name: str, *, timeout: float | None = None) -> Process | None:
        """Let the guest run until a process called `name` starts; None when `timeout` seconds passed first.

        The guest is paused where the kernel puts it on its list; its first thread has not run.
        """
        return wait_for_process(self, name, timeout)

    def watch(
        self,
        where: str | int,
        length: int = 8,
        access: str = "write",
        *,
        process: Process | str | int | None = None,
        thread: Thread | int | None = None,
        condition: Condition | str | None = None,
        once: bool = False,
    ) -> Breakpoint:
        """A breakpoint on `length` bytes of data at `where`: hit after an instruction that did `access` them.

        `access` is "write", "read" or "access" (either). The registers of a hit are those behind the instruction, and
        `hit.accessed` is the first of the bytes. Under KVM the processor has four breakpoints in all, of 1, 2, 4 or 8
        aligned bytes, and reads alone cannot be told from writes; under TCG there is no limit. For the rest see
        `break_on`.
        """
        if access not in ("write", "read", "access"):
            raise UsageError(f"a breakpoint on data is for 'write', 'read' or 'access', not {access!r}")
        if length < 1:
            raise UsageError(f"a breakpoint on data covers at least one byte, not {length}")
        return self._breakpoint(where, process, thread, kind=access, length=length, condition=condition, once=once)

    def break_on_physical(
        self,
        physical: int,
        process: Process | str | int | None = None,
        *,
        kind: str = "hardware",
        condition: Condition | str | None = None,
        once: bool = False,
    ) -> Breakpoint:
        """A breakpoint on the code at a guest-physical address, in whatever process it is run; see `debug.physical`.

        For the rest see `break_on`. Raises `NotFoundError` where nothing maps the address.
        """
        owner = places.owner(self, process)
        return break_on_physical(self, physical, owner, kind=kind, condition=condition, once=once)

    def _breakpoint(
        self,
        where: str | int,
        process: Process | str | int | None,
        thread: Thread | int | None,
        *,
        kind: str,
        length: int = 1,
        condition: Condition | str | None,
        once: bool,
    ) -> Breakpoint:
        process = places.owner(self, process)
        if isinstance(thread, int):
            thread = self.thread(thread)
        address, name = self.locate(where, process)
        return Breakpoint(
            self,
            name,
            address,
            kind=kind,
            length=length,
            eprocess=process.eprocess.address if process is not None else 0,
            ethread=thread.ethread.address if thread is not None else 0,
            condition=condition,
            once=once,
        )

    def calls(
        self,
        where: str | int,
        process: Process | str | int | None = None,
        thread: Thread | int | None = None,
        *,
        condition: Condition | str | None = None,
    ) -> Calls[tuple[int, ...]]:
        """The calls of a function with their results, each delivered when it has returned; use it as `break_on`.

        A call's `noted` are its arguments, read when it began.
        """
        return Calls(self, (self.break_on(where, process, thread, condition=condition),), arguments)

    def run_to(
        self,
        where: str | int,
        process: Process | str | int | None = None,
        thread: Thread | int | None = None,
        *,
        timeout: float | None = None,
    ) -> Hit | None:
        """Let the guest run until it arrives at `where`; None when `timeout` seconds passed first. For `where` and
        the filters see `break_on`; hits of other breakpoints meanwhile stay queued with them."""
        with self.break_on(where, process, thread, once=True) as point:
            return point.wait(timeout)

    def join(self, process: Process | str | int, mode: str = "kernel", *, timeout: float | None = None) -> Hit | None:
        """Let the guest run until a vCPU executes `process`, in "kernel" or in "user" mode; see `debug.join`.

        None when `timeout` seconds passed first, or when nothing needs to run because a vCPU is there already.
        """
        return join(self, self.process(process) if isinstance(process, str | int) else process, mode, timeout)

    def locate(self, where: str | int, process: Process | None = None) -> tuple[int, str]:
        """The address of `where` (see `break_on`) and its name as debuggers write it."""
        return places.locate(self, where, process)

    def events(self, *breakpoints: Breakpoint, duration: float | None = None) -> Iterator[Hit]:
        """Let the guest run from hit to hit of `breakpoints` (all that are set, when none is given).

        Ends after `duration` seconds; the guest is paused at every hit and at the end.
        """
        deadline = Deadline(duration)
        while True:
            wanted = breakpoints or tuple(point for points in self.active.values() for point in points)
            check_set(wanted)
            hit = self.next_hit(wanted, deadline.left)
            if hit is None:
                return
            yield hit
            if breakpoints and not any(point.is_set for point in breakpoints):
                return

    def next_hit(self, breakpoints: Sequence[Breakpoint], timeout: float | None = None) -> Hit | None:
        """Let the guest run until one of `breakpoints` is hit; None when `timeout` seconds passed. It is paused then.

        Of breakpoints that are not set none is hit: then it ends by time, or by `interrupt`. Raises `GuestGoneError`
        when the machine ends, `GuestPausedError` when somebody else paused it.
        """
        return self._running.next_hit(breakpoints, timeout)


def attach(target: str | os.PathLike[str], store: FindsSymbols) -> LiveGuest:
    """Attach to the Windows guest in a running QEMU by its QMP socket's path, or by its libvirt domain's name.

    The guest is paused until it is told to run, or let go. Raises `GuestGoneError`, `NoKernelError`,
    `SymbolFileNotFoundError`; then the machine is let go of, running if it ran.
    """
    vm = VirtualMachine.attach(os.fspath(target))
    try:
        return LiveGuest.of_machine(vm, store)
    except BaseException:
        vm.close()
        raise


def _hints(vm: VirtualMachine, vcpu: int) -> Mapping[str, int]:
    """What helps to find the kernel: the vCPU's registers and its IDT."""
    tables = vm.descriptor_tables(vcpu)
    return dict(vm.registers(vcpu)) | {"idt_base": tables.idt_base}
