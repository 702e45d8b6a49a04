"""Translation by hardware rules alone, for the time before the kernel's types are known.

Only valid entries are followed: enough for what finding the kernel reads, which is never paged out. Table pages are
kept for the object's lifetime, so an object must not outlive a pause of the guest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory

FRAME = 0x000F_FFFF_FFFF_F000  # bits 12 to 51 of CR3 and of a table entry: Intel SDM 3A, 4.5
_VALID = 1
_LARGE = 1 << 7
_TABLE = struct.Struct("<512Q")


class BareSpace:
    """The virtual addresses of one set of x64 page tables; `levels` is 4 or 5. Reads like any memory."""

    def __init__(self, physical: PhysicalMemory, dtb: int, levels: int = 4) -> None:
        self.physical = physical
        self.dtb = dtb & FRAME
        self.levels = levels
        self._tables: dict[int, tuple[int, ...] | None] = {}

    def lookup(self, address: int) -> tuple[int | None, int]:
        """The physical address of `address` (None where it is not mapped) and the size of its page or hole."""
        table = self.dtb
        for level in range(self.levels - 1, -1, -1):
            shift = 12 + 9 * level
            entries = self._table(table)
            if entries is None:
                return None, 1 << shift + 9
            entry = entries[address >> shift & 511]
            if not entry & _VALID:
                return None, 1 << shift
            if not level or (entry & _LARGE and level <= 2):
                mask = (1 << shift) - 1
                return entry & FRAME & ~mask | address & mask, 1 << shift
            table = entry & FRAME
        raise AssertionError("the last level is a leaf")

    def translate(self, address: int) -> int | None:
        """The physical address of `address`, or None."""
        return self.lookup(address)[0]

    def _table(self, address: int) -> tuple[int, ...] | None:
        if address not in self._tables:
            try:
                self._tables[address] = _TABLE.unpack(self.physical.read(address, 4096))
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
        """Each mapped page from PML4 (or PML5) slot `first` to slot `last`, ascending.

        `spend` is told how many entries were read, and ends the walk by saying False.
        """
        stack = [(self.dtb, self.levels - 1, 0, first, last)]
        while stack:
            table, level, base, low, high = stack.pop()
            entries = self._table(table)
            if entries is None:
                continue
            shift = 12 + 9 * level
            below: list[tuple[int, int, int, int, int]] = []
            for index in range(low, high + 1):
                entry = entries[index]
                if not entry & _VALID:
                    continue
                address = base | index << shift
                if level == self.levels - 1 and entry & FRAME == self.dtb:
                    continue  # the self-map: tables, not contents
                if not level or (entry & _LARGE and level <= 2):
                    yield canonical(address, self.levels), entry & FRAME & -(1 << shift), 1 << shift
                else:
                    below.append((entry & FRAME, level - 1, address, 0, 511))
            if not spend(high + 1 - low):
                return
            stack.extend(reversed(below))


def canonical(address: int, levels: int = 4) -> int:
    """`address` with its upper bits set as the highest bit that the tables translate."""
    bits = 12 + 9 * levels
    return address | ((1 << 64) - (1 << bits)) if address >> bits - 1 & 1 else address & (1 << bits) - 1
