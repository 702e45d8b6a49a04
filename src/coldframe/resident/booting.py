"""A boot watched and steered from its first instruction to the end of its paging files.

The guest stands still whenever something is looked at or changed; in between it runs freely to the next hardware
breakpoint or watchpoint. At no time more than three of the processor's four debug registers are used:

    firmware  write watchpoints on KUSER_SHARED_DATA, short slices           -> the kernel
    kernel    a write watchpoint on nt!PsInitialSystemProcess                -> the System process; images in RAM
    system    nt!NtCreatePagingFile, a watchpoint on the process list's end  -> smss.exe, csrss.exe, all others
    csrss     the watchpoint alone                                           -> the end
"""

from __future__ import annotations

import struct
import time

from coldframe.debug import LiveGuest
from coldframe.debug.current import process_at
from coldframe.errors import (
    CapabilityError,
    ColdframeError,
    GuestGoneError,
    NoKernelError,
    NotFoundError,
    UnreadableMemoryError,
)
from coldframe.qemu import VirtualMachine
from coldframe.qemu.arrivals import Breakpoint, Stop
from coldframe.resident.images import EjectableVolume, KeepsImagesInRam, WinpeMode
from coldframe.resident.pagingfiles import FUNCTION, PagingFileCall, PagingFileGate
from coldframe.resident.phases import BootEvent, BootOptions, Phase, Tell
from coldframe.resident.verification import PageCounts, count_pages
from coldframe.resident.watching import BootTimeoutError, wait_for_kernel
from coldframe.windows.kernel import KERNEL_HALF, FindsSymbols

FIRST_USER_PROCESS = "smss.exe"
END_OF_PAGING_FILES = "csrss.exe"
_MOST_CALLS = 1024
_LOOK = 0.2
_LOOK_BEFORE_SYSTEM = 0.02
"""Seconds between two looks: at whether the machine was reset, and at what a watchpoint would have told. Some nested
hypervisors carry out the guest's kernel in software and leave data breakpoints out of it."""


class _RestartError(Exception):
    """The guest was reset: everything begins anew."""


class ResidentBoot:
    """One boot of the machine `vm`, which is paused before its first instruction, or attached to later.

    `run` does it. Afterwards `calls` are the calls of NtCreatePagingFile, `changed` what was set to keep images in RAM,
    `lost` what could not be had because the boot was too far, `before` the pages when csrss.exe started. Leaving by an
    exception (Ctrl-C) removes every breakpoint when `vm` is closed, and the guest boots on.
    """

    def __init__(
        self, vm: VirtualMachine, store: FindsSymbols, options: BootOptions | None = None, tell: Tell | None = None
    ) -> None:
        self.vm = vm
        self.store = store
        self.options = options or BootOptions()
        self.phase = Phase.FIRMWARE
        self.calls: list[PagingFileCall] = []
        self.changed: list[str] = []
        self.lost: list[str] = []
        self.processes: list[tuple[int, str]] = []
        self.before: PageCounts | None = None
        self._tell = tell or (lambda event: None)
        self._began = time.monotonic()
        self._points: dict[int, Breakpoint] = {}
        self._images: KeepsImagesInRam | None = None
        self._volume: EjectableVolume | None = None
        self._gate: PagingFileGate | None = None
        self._guest: LiveGuest | None = None
        self._head = 0
        self._newest = 0
        self._known: set[tuple[int, str]] = set()

    # The boot as a whole

    def run(self) -> LiveGuest:
        """Boot to csrss.exe, then as far as the options say; returns the guest, paused, with no breakpoint set.

        Raises `BootTimeoutError` with what was seen, `GuestGoneError`, `SymbolFileNotFoundError`, `SymbolNotFoundError`
        for a kernel that lacks a symbol.
        """
        deadline = self._began + self.options.timeout
        try:
            while True:
                try:
                    self._boot(deadline)
                    self._afterwards()
                    break
                except _RestartError:
                    self._forget()
                    self.say("restart", "the guest was reset; the boot is watched anew")
        finally:
            self._remove_all()
        guest = LiveGuest.of_machine(self.vm, self.store)
        if self.options.stealth and self._images is not None:
            undone = self._images.undo(guest)
            if undone is not None:
                self.say("images-in-ram", f"put back: {undone}", name=undone)
        self._enter(Phase.DONE)
        return guest

    def _boot(self, deadline: float) -> None:
        self._guest = wait_for_kernel(self.vm, self.store, deadline, idle=self._idle)
        self._enter(Phase.KERNEL, f"{self._guest.location.identity} at {self._guest.location.base:#x}")
        self._needed()
        self._wait_for_system(deadline)
        late = self._began_late()
        self._enter(Phase.SYSTEM)
        self._guest = self._renewed()
        self._keep_images()
        self._head = self._guest.kernel.symbol("PsActiveProcessHead")
        self._watch(self._head + self._guest.types.pointer_size, "write")  # LIST_ENTRY.Blink: the newest process
        if late is Phase.CSRSS:
            self._enter(Phase.CSRSS)
            return
        self._gate = PagingFileGate(self._guest)
        self._watch(self._gate.address, "hardware")
        if late is Phase.SMSS:
            self._enter(Phase.SMSS)
        while self.phase is not Phase.CSRSS:
            self._run(deadline, f"{END_OF_PAGING_FILES} has not started")
        self.before = count_pages(self._renewed())

    def _afterwards(self) -> None:
        """Behind csrss.exe: on to the process that `until` names, then for the time that `settle` gives."""
        options = self.options
        if options.until is not None:
            until = options.until.lower()
            deadline = time.monotonic() + options.until_timeout
            while not any(name.lower() == until[:14] or name.lower() == until for _, name in self.processes):
                self._run(deadline, f"{options.until} has not started")
        deadline = time.monotonic() + options.settle
        while time.monotonic() < deadline:
            self._run_once(deadline)

    # Phases

    def _needed(self) -> None:
        """A kernel without one of the symbols is told at once, not when it matters."""
        guest = self._live()
        for name in ("PsInitialSystemProcess", "PsActiveProcessHead", FUNCTION):
            guest.kernel.symbol(name)
        match self.options.images_in_ram:
            case "winpe":
                self._images = WinpeMode()
                guest.kernel.symbol("InitWinPEModeType")
            case "device":
                self._images = self._volume = EjectableVolume(guest)

    def _wait_for_system(self, deadline: float) -> None:
        """Until nt!PsInitialSystemProcess is not null: a write watchpoint stops the guest right behind the write."""
        guest = self._live()
        address = guest.kernel.symbol("PsInitialSystemProcess")
        point = None
        while self._pointer(address) < KERNEL_HALF:
            if point is None:
                point = self._watch(address, "write")
            self._run(deadline, "the kernel has not made its System process")
        self._unwatch(address)

    def _began_late(self) -> Phase | None:
        """The phase that the boot was in already when it was first looked at, with what is lost by that."""
        guest = self._renewed()
        names = {process.name.lower() for process in guest.processes}
        if not names & {FIRST_USER_PROCESS, END_OF_PAGING_FILES}:
            return None
        self.processes = [(process.pid, process.name) for process in guest.processes]
        self._known.update(self.processes)
        self._lose(
            "images that are mapped already keep their pages in their files; only those mapped from now on live in RAM"
        )
        files = [file.name or f"number {file.number}" for file in guest.paging_files if not file.is_store]
        if files:
            self._lose(f"paging files that exist already stay in use: {', '.join(files)}")
        if END_OF_PAGING_FILES in names:
            self._lose(f"{END_OF_PAGING_FILES} runs: the boot is over, nothing is kept from creating paging files")
            return Phase.CSRSS
        return Phase.SMSS

    def _keep_images(self) -> None:
        if self._images is None:
            return
        done = self._images.begin(self._live())
        if done is not None:
            self.changed.append(done)
            self.say("images-in-ram", done, name=done)
        if self._volume is not None:
            self._watch(self._volume.address, "hardware")

    # Running and what stops it

    def _run(self, deadline: float, missing: str) -> None:
        """Run to the next stop, or for a while; raises `BootTimeoutError` saying what is `missing` at the deadline."""
        if time.monotonic() >= deadline:
            raise BootTimeoutError(f"{missing} within the time allowed; {self._seen()}")
        self._run_once(deadline)

    def _run_once(self, deadline: float) -> None:
        guest = self._live()
        look = _LOOK_BEFORE_SYSTEM if self.phase is Phase.KERNEL else _LOOK
        stop = self.vm.run_until_stop(max(0.001, min(look, deadline - time.monotonic())))
        guest.new_pause()
        if stop is None:
            self._check_restart()
            self._idle()
        elif stop.reason == "shutdown":
            raise GuestGoneError(f"the guest shut down during its boot; {self._seen()}")
        elif stop.reason == "interrupt":
            raise CapabilityError("somebody else paused the guest during its boot; it is left paused")
        elif stop.reason == "breakpoint":
            self._arrived(guest, stop)
        self._look_for_processes(guest)

    def _arrived(self, guest: LiveGuest, stop: Stop) -> None:
        if self._volume is not None and stop.address == self._volume.address:
            done = self._volume.asked(guest, stop.vcpu)
            if done is not None:
                self.changed.append(done)
                self.say("images-in-ram", done, name=done)
        elif self._gate is not None and stop.address == self._gate.address:
            call = self._gate.arrived(stop.vcpu)
            if len(self.calls) < _MOST_CALLS:  # a guest may call for ever
                self.calls.append(call)
                self._say_call(call)

    def _say_call(self, call: PagingFileCall) -> None:
        size = f" of {call.minimum} to {call.maximum} bytes" if call.minimum is not None else ""
        what = f"{call.file or 'a file whose name is not readable'}{size}"
        text = f"prevented: {what}" if call.prevented else f"let through: {what}, for {call.process}: {call.reason}"
        self.say("paging-file", text, name=call.file, pid=call.pid, process=call.process, prevented=call.prevented)

    def _look_for_processes(self, guest: LiveGuest) -> None:
        """Tell of the processes that were linked into nt!PsActiveProcessHead since the last look.

        The watchpoint on the list's end stops the guest for each; the newest one may not be linked in from both sides.
        """
        if not self._head:
            return
        offset = guest.types.offset("_EPROCESS", "ActiveProcessLinks")
        newest = self._pointer(self._head + guest.types.pointer_size)
        if newest == self._newest or newest < KERNEL_HALF or newest == self._head:
            return
        self._newest = newest
        found: dict[tuple[int, str], None] = {}
        try:
            for process in (*guest.processes, process_at(guest, newest - offset)):
                found[process.pid, process.name] = None
        except ColdframeError:
            self._newest = 0  # read again at the next stop
        for pid, name in found:
            if (pid, name) not in self._known:
                self._known.add((pid, name))
                self._new_process(pid, name)

    def _new_process(self, pid: int, name: str) -> None:
        self.processes.append((pid, name))
        self.say("process", f"{name} ({pid})", name=name, pid=pid)
        if self.phase is Phase.SYSTEM and name.lower() == FIRST_USER_PROCESS:
            self._guest = self._renewed()
            self._enter(Phase.SMSS)
        elif name.lower() == END_OF_PAGING_FILES and self.phase is not Phase.CSRSS:
            if self._gate is not None:
                self._unwatch(self._gate.address)
            if self._volume is not None and self.options.stealth:
                self._unwatch(self._volume.address)
            self._enter(Phase.CSRSS)

    def _check_restart(self) -> None:
        """After a reset the vCPU is in firmware, or in a kernel elsewhere."""
        guest = self._live()
        try:
            held = guest.memory.read(guest.location.base, 2) == b"MZ"
        except ColdframeError:
            held = False
        if not held or not self._handles_faults(guest, self.vm.descriptor_tables(0).idt_base):
            raise _RestartError

    def _handles_faults(self, guest: LiveGuest, idt: int) -> bool:
        """Whether the page-fault gate of the IDT at `idt` leads into this kernel: its fields as SDM volume 3,
        6.14.1."""
        try:
            low, _, _, middle, high = struct.unpack("<HHHHI4x", guest.memory.read(idt + 14 * 16, 16))
        except ColdframeError:
            return False
        return low | middle << 16 | high << 32 in guest.kernel

    # Small things

    def _live(self) -> LiveGuest:
        if self._guest is None:
            raise NotFoundError("kernel", "of this boot", hint="it has not come up yet")
        return self._guest

    def _renewed(self) -> LiveGuest:
        """The guest, its System process and memory manager read anew: early in the boot they were not there."""
        try:
            return LiveGuest.of_machine(self.vm, self.store)
        except NoKernelError:  # there was one
            raise _RestartError from None

    def _pointer(self, address: int) -> int:
        try:
            return self._live().typed.pointer(address)
        except UnreadableMemoryError:
            return 0

    def _watch(self, address: int, kind: str) -> Breakpoint:
        length = self._live().types.pointer_size if kind == "write" else 1
        point = self._points[address] = self.vm.insert_breakpoint(address, kind, length)
        return point

    def _unwatch(self, address: int) -> None:
        point = self._points.pop(address, None)
        if point is not None:
            self.vm.remove_breakpoint(point)

    def _remove_all(self) -> None:
        for address in list(self._points):
            try:
                self._unwatch(address)
            except ColdframeError:  # the machine is gone, or is taken care of when it is let go
                continue

    def _forget(self) -> None:
        self._remove_all()
        self._images = self._volume = self._gate = self._guest = None
        self._head = self._newest = 0
        self._known.clear()
        self.calls.clear()
        self.changed.clear()
        self.lost.clear()
        self.processes.clear()
        self.phase = Phase.FIRMWARE

    def _enter(self, phase: Phase, text: str = "") -> None:
        self.phase = phase
        self.say("phase", text or phase.value)

    def _lose(self, what: str) -> None:
        self.lost.append(what)
        self.say("late", what)

    def _idle(self) -> None:
        """Let whoever shows progress know that time passes."""
        self.say("tick", "")

    def _seen(self) -> str:
        """What the boot has shown so far, for people."""
        names = ", ".join(name for _, name in self.processes[-8:]) or "none"
        return f"phase {self.phase}, processes so far: {names}"

    def say(
        self, kind: str, text: str, *, name: str | None = None, pid: int | None = None, process: str | None = None,
        prevented: bool | None = None,
    ) -> None:  # fmt: skip
        """Tell of an event."""
        seconds = round(time.monotonic() - self._began, 3)
        self._tell(BootEvent(kind, self.phase, seconds, text, name, pid, process, prevented))
