"""Watching a machine boot until the NT kernel is there, from a paused start, on a stock QEMU.

No QEMU traps writes of CR3 or LSTAR, so the watch uses what there is. Two ways, side by side:

- *Write watchpoints that stand before there is anything to watch*. The kernel's KUSER_SHARED_DATA is at the same
  virtual address in every x64 Windows (ntddk.h, KI_USER_SHARED_DATA), and the boot processor fills it in before the
  first process exists: what the processor can do, whether a debugger is there, the version. Debug registers (and
  QEMU's own watchpoints under TCG) compare virtual addresses, so that they may be set while the firmware still runs in
  real mode. They stop the guest however fast it is.
- *Short slices*. After each, the IDT is looked at: the kernel's lies in the upper half, and entry 14 leads into it.
  This finds kernels that write those bytes otherwise, at the price that the slice has run on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from coldframe.debug import LiveGuest
from coldframe.errors import CapabilityError, ColdframeError, GuestGoneError, NoKernelError
from coldframe.qemu import VirtualMachine
from coldframe.qemu.arrivals import Breakpoint
from coldframe.windows import anchors
from coldframe.windows.kernel import KERNEL_HALF, KUSER_SHARED_DATA, FindsSymbols, Search

_WRITTEN_EARLY = (
    0x278,  # ProcessorFeatures[4..11]: SSE (6), RDTSC (8), PAE (9), SSE2 (10), of every x64 processor (winnt.h, PF_*)
    0x2D0,  # SuiteMask, KdDebuggerEnabled, NXSupportPolicy
    0x268,  # ProductTypeIsValid, NtMajorVersion
)
"""Offsets in KUSER_SHARED_DATA (documented in ntddk.h), eight bytes each."""
_SLICE = 0.05
_LONGEST_PAUSE_BETWEEN_TRIES = 2.0
_MOST_EMPTY_HITS = 64
_CR0_PG = 1 << 31


class BootTimeoutError(ColdframeError):
    """The boot did not come as far as it had to within the time allowed; the message says what was seen."""


def wait_for_kernel(
    vm: VirtualMachine, store: FindsSymbols, deadline: float, *, idle: Callable[[], None] = lambda: None
) -> LiveGuest:
    """Let the machine run until its vCPUs are in an NT kernel, and pause it there; a kernel that runs is found at once.

    `deadline` is of `time.monotonic`; `idle` is called after each slice. Raises `BootTimeoutError`, `GuestGoneError`,
    `SymbolFileNotFoundError` (of a kernel that was found); the machine is paused then, if it is still there.
    """
    watch = _KernelWatch(vm, store)
    vm.pause()
    found = watch.look()
    if found is not None:
        return found
    watch.set()
    try:
        while time.monotonic() < deadline:
            stop = vm.run_until_stop(min(_SLICE, max(0.001, deadline - time.monotonic())))
            if stop is not None and stop.reason == "shutdown":
                raise GuestGoneError("the guest shut down before an NT kernel was there")
            watch.hit(stop is not None and stop.reason == "watchpoint")
            found = watch.look()
            if found is not None:
                return found
            idle()
    finally:
        watch.remove()
    raise BootTimeoutError(f"no NT kernel came up in time; {watch.seen()}")


class _KernelWatch:
    """The watchpoints, and the looks at what runs."""

    def __init__(self, vm: VirtualMachine, store: FindsSymbols) -> None:
        self._vm = vm
        self._store = store
        self._points: list[Breakpoint] = []
        self._empty_hits = 0
        self._not_before = 0.0
        self._patience = _SLICE
        self._reason = ""

    def set(self) -> None:
        """Set the watchpoints; without any (no debug register is free) slices have to do."""
        try:
            for offset in _WRITTEN_EARLY:
                self._points.append(self._vm.insert_breakpoint(KUSER_SHARED_DATA + offset, "write", 8))
        except CapabilityError as error:
            self._reason = str(error)

    def remove(self) -> None:
        """Take the watchpoints out; what a machine that has gone still had set is gone with it."""
        with suppress(GuestGoneError):
            while self._points:
                self._vm.remove_breakpoint(self._points.pop())

    def hit(self, by_watchpoint: bool) -> None:
        """Count hits that found nothing: a guest that is no Windows may use that address for something else."""
        if by_watchpoint:
            self._empty_hits += 1
            self._not_before = 0.0
            if self._empty_hits >= _MOST_EMPTY_HITS:
                self.remove()

    def look(self) -> LiveGuest | None:
        """The guest, if a vCPU has an IDT in the upper half and it leads into an NT kernel."""
        vm = self._vm
        if not vm.registers(0).get("cr0", 0) & _CR0_PG:
            return None
        idt = vm.descriptor_tables(0).idt_base
        if idt < KERNEL_HALF or time.monotonic() < self._not_before:
            return None
        reason = self._leads_elsewhere(idt)
        if reason is None:
            try:
                return LiveGuest.of_machine(vm, self._store)
            except NoKernelError as error:
                reason = str(error)
        self._reason = reason
        self._patience = min(self._patience * 2, _LONGEST_PAUSE_BETWEEN_TRIES)  # another system's kernel: look seldom
        self._not_before = time.monotonic() + self._patience
        return None

    def _leads_elsewhere(self, idt: int) -> str | None:
        """Why the registers lead to no NT kernel; None when they do. No search of all of RAM, which takes seconds."""
        search = Search(self._vm.physical, None, [dict(self._vm.registers(0)) | {"idt_base": idt}])
        for anchor in anchors.BY_REGISTERS:
            if anchor(search) is not None:
                return None
        return "; ".join(search.reasons)

    def seen(self) -> str:
        """What the processor does instead, for people."""
        registers, tables = self._vm.registers(0), self._vm.descriptor_tables(0)
        paging = bool(registers.get("cr0", 0) & _CR0_PG)
        if tables.idt_base < KERNEL_HALF or not paging:
            return (
                f"vCPU 0 is at {registers['rip']:#x} with paging {'on' if paging else 'off'} and its IDT at"
                f" {tables.idt_base:#x}: firmware, a boot loader or a halted machine (is there a bootable disk?)"
            )
        return f"vCPU 0 is at {registers['rip']:#x} in a kernel that is no Windows: {self._reason}"
