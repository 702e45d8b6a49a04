"""Translation by hardware rules alone, for the time before the kernel's types are known.

Only valid entries are followed: enough for what finding the kernel reads, which is never paged out. Table pages are
kept for the object's lifetime, so an object must not outlive a pause of the guest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging.formats import FORMATS, LARGE, VALID, PageTableFormat

FRAME = 0x000F_FFFF_FFFF_F000  # bits 12 to 51 of CR3 and of a 64-bit table entry: Intel SDM 3A, 4.5
_KERNEL_HALF = 0xFFFF_8000_0000_0000


class BareSpace:
    """The virtual addresses of one set of page tables; `format` is a name of `FORMATS`. Reads like any memory."""

    def __init__(self, physical: PhysicalMemory, dtb: int, format: str = "4-level") -> None:  # noqa: A002 - its name
        self.physical = physical
        self.format: PageTableFormat = FORMATS[format]
        self.dtb = dtb & self.format.root
        self._tables: dict[int, tuple[int, ...] | None] = {}
        self._structs = [
            struct.Struct(f"<{1 << level.bits}{'Q' if self.format.entry_size == 8 else 'I'}")
            for level in self.format.levels
        ]

    @property
    def kernel_half(self) -> int:
        """The first address that may be the kernel's, whatever the depth of the tables."""
        return _KERNEL_HALF if self.format.canonical else self.format.kernel_start

    def lookup(self, address: int) -> tuple[int | None, int]:
        """The physical address of `address` (None where it is not mapped) and the size of its page or hole."""
        table, frame = self.dtb, self.format.frame
        for depth, level in enumerate(self.format.levels):
            entries = self._table(table, depth)
            if entries is None:
                return None, 1 << level.shift + level.bits
            entry = entries[address >> level.shift & (1 << level.bits) - 1]
            if not entry & VALID:
                return None, 1 << level.shift
            if entry & LARGE and level.large_frame:
                return self._large(entry, depth) | address & (1 << level.shift) - 1, 1 << level.shift
            table = entry & frame
        return table | address & 0xFFF, 0x1000

    def _large(self, entry: int, depth: int) -> int:
        frame = entry & self.format.levels[depth].large_frame
        return frame | (entry >> 13 & 0xFF) << 32 if self.format.pse36 else frame

    def translate(self, address: int) -> int | None:
        """The physical address of `address`, or None."""
        return self.lookup(address)[0]

    def _table(self, address: int, depth: int) -> tuple[int, ...] | None:
        if address not in self._tables:
            layout = self._structs[depth]
            try:
                self._tables[address] = layout.unpack(self.physical.read(address, layout.size))
            except UnreadableMemoryError:
                self._tables[address] = None
        return self._tables[address]

    def read(self, address: int, size: int) -> bytes:
        """Return exactly `size` bytes at `address`, or raise `UnreadableMemoryError`."""
        parts = []
        while size > 0:
            physical, span = self.lookup(address)
            length = min(size, span - address % span)
            if physical is None:
                raise UnreadableMemoryError(address, length, f"not mapped by the tables at {self.dtb:#x}")
            parts.append(self.physical.read(physical, length))
            address += length
            size -= length
        return b"".join(parts)

    def mapped_down(self, top: int, bottom: int) -> Iterator[tuple[int, int, int]]:
        """Each mapped page from the one of `top` down to `bottom`: its virtual address, physical address and size."""
        address = top
        while address >= bottom:
            physical, span = self.lookup(address)
            start = address & ~(span - 1)
            if physical is not None:
                yield start, physical & ~(span - 1), span
            address = start - 1

    def mapped(self, first: int, last: int, spend: Callable[[int], bool]) -> Iterator[tuple[int, int, int]]:
        """Each mapped page from slot `first` of the top-level table to slot `last`, ascending.

        `spend` is told how many entries were read, and ends the walk by saying False.
        """
        levels, frame = self.format.levels, self.format.frame
        own = self._own_tables()
        stack = [(self.dtb, 0, 0, first, last)]
        while stack:
            table, depth, base, low, high = stack.pop()
            entries = self._table(table, depth)
            if entries is None:
                continue
            level = levels[depth]
            below: list[tuple[int, int, int, int, int]] = []
            for index in range(low, high + 1):
                entry = entries[index]
                if not entry & VALID:
                    continue
                address = base | index << level.shift
                if level is levels[-1]:
                    yield self.format.sign_extend(address), entry & frame, 1 << level.shift
                elif entry & LARGE and level.large_frame:
                    yield self.format.sign_extend(address), self._large(entry, depth), 1 << level.shift
                elif entry & frame not in own or (self.format.name == "pae" and not depth):
                    below.append((entry & frame, depth + 1, address, 0, (1 << levels[depth + 1].bits) - 1))
            if not spend(high + 1 - low):
                return
            stack.extend(reversed(below))

    def _own_tables(self) -> frozenset[int]:
        """The tables that a self-map leads to, tables all below them: with PAE the page directories."""
        if self.format.name != "pae":
            return frozenset({self.dtb})
        entries = self._table(self.dtb, 0) or ()
        return frozenset(entry & self.format.frame for entry in entries if entry & VALID)
