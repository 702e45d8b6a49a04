"""What a vCPU runs: its current thread and that thread's process, by as few reads as possible.

In kernel mode GS leads to the vCPU's `_KPCR`, in user mode the swapped base does (`swapgs`); `Prcb.CurrentThread` is
the thread. In a 32-bit kernel FS leads there, and in user mode only nt!KiProcessorBlock does. A breakpoint's filter
asks this at every hit, so the two reads are made on plain addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coldframe.errors import UnreadableMemoryError
from coldframe.windows.guest import Guest
from coldframe.windows.process import Process, Thread
from coldframe.windows.processor import processor_blocks, processor_region
from coldframe.windows.typed import first_field

_WIDE = 8


@dataclass(frozen=True, slots=True)
class Arrival:
    """A vCPU at a stop: its registers, and the addresses of its thread and of that thread's process (0: not known).

    `accessed` is the address of the data that a watchpoint saw.
    """

    vcpu: int
    registers: Mapping[str, int]
    ethread: int
    eprocess: int
    accessed: int | None = None


class Current:
    """Current threads of one guest; knows the offsets, keeps nothing that changes."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        types = guest.types
        region = processor_region(types)
        self._bases = region.bases
        self._current_thread = types.offset(region.record, f"{region.block}.CurrentThread")
        self._process = types.offset("_ETHREAD", first_field(types, "_ETHREAD", "Tcb.Process", "ThreadsProcess"))

    def thread_address(self, registers: Mapping[str, int], vcpu: int | None = None) -> int:
        """The `_ETHREAD` that a vCPU with these registers runs; 0 where it cannot be told (early in boot)."""
        start = self._guest.kernel_start
        for name in self._bases:
            base = registers.get(name, 0)
            if base >= start:
                try:
                    thread = self._pointer(base + self._current_thread)
                except UnreadableMemoryError:
                    continue
                if thread >= start:
                    return thread
        return 0 if vcpu is None or len(self._bases) > 1 else self._by_number(vcpu)

    def _pointer(self, address: int) -> int:
        memory = self._guest.memory
        return memory.u64(address) if self._guest.types.pointer_size == _WIDE else memory.u32(address)

    def _by_number(self, vcpu: int) -> int:
        """By nt!KiProcessorBlock: a 32-bit kernel has its KPCR in no register while user mode runs."""
        blocks = processor_blocks(self._guest)
        try:
            return blocks[vcpu].integer("CurrentThread") if vcpu < len(blocks) else 0
        except UnreadableMemoryError:
            return 0

    def process_address(self, thread: int) -> int:
        """The `_EPROCESS` that owns the `_ETHREAD` at `thread`; 0 where it cannot be read."""
        try:
            return self._pointer(thread + self._process) if thread else 0
        except UnreadableMemoryError:
            return 0

    def arrival(self, vcpu: int, registers: Mapping[str, int], accessed: int | None = None) -> Arrival:
        """Who is at a stop."""
        ethread = self.thread_address(registers, vcpu)
        return Arrival(vcpu, registers, ethread, self.process_address(ethread), accessed)

    def thread(self, registers: Mapping[str, int]) -> Thread | None:
        """The thread that a vCPU with these registers runs."""
        address = self.thread_address(registers)
        return thread_at(self._guest, address) if address else None


def thread_at(guest: Guest, address: int) -> Thread:
    """The thread whose `_ETHREAD` is at `address`."""
    return Thread(guest, guest.struct("_ETHREAD", address))


def process_at(guest: Guest, address: int) -> Process:
    """The process whose `_EPROCESS` is at `address`."""
    return Process(guest, guest.struct("_EPROCESS", address))


def current_thread(guest: Guest, registers: Mapping[str, int]) -> Thread | None:
    """The thread that a vCPU with these registers runs."""
    return Current(guest).thread(registers)
