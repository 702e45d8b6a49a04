"""What an instruction of a stopped vCPU can reach in memory without a fault and without a bit of a PTE changing.

Source: Intel SDM volume 3, 4.6 (access rights) and 4.8 (accessed and dirty flags). Where the processor would set a
flag or fault, `NotOursError` leaves the instruction to it; the same for what is not RAM, or lies on two pages.
"""

from __future__ import annotations

from collections.abc import Mapping

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging.formats import FORMATS, LARGE, PAGE_MASK, PAGE_SIZE, VALID
from coldframe.qemu.emulation import NotOursError

_WRITE, _USER, _ACCESSED, _DIRTY = 1 << 1, 1 << 2, 1 << 5, 1 << 6
_WRITE_PROTECT = 1 << 16  # CR0.WP
_LA57 = 1 << 12  # CR4
_USER_MODE = 3

_ENTRY_SHIFT = 3  # entries have 8 bytes
_STEPS = {
    name: tuple(
        (level.shift - _ENTRY_SHIFT, (1 << level.bits) - 1 << _ENTRY_SHIFT, level.large_frame)
        for level in FORMATS[name].levels
    )
    for name in ("4-level", "5-level")
}
"""For each level: how far an address is shifted, and which bits then are the entry's offset in its table."""


class Reach:
    """Memory as one vCPU with these registers reaches it; good while the guest is paused."""

    def __init__(self, physical: PhysicalMemory, registers: Mapping[str, int]) -> None:
        self._physical = physical
        name = "5-level" if registers["cr4"] & _LA57 else "4-level"
        self._format, self._steps = FORMATS[name], _STEPS[name]
        self._root = registers["cr3"] & self._format.root
        self._user = registers["cs"] & 3 == _USER_MODE
        self._protects = self._user or bool(registers["cr0"] & _WRITE_PROTECT)

    def read(self, address: int, size: int) -> int:
        """The `size` bytes at virtual `address`, little-endian."""
        return int.from_bytes(self._bytes(address, size), "little")

    def code(self, address: int, most: int) -> bytes:
        """Up to `most` bytes at virtual `address`, as far as its page goes."""
        return self._bytes(address, min(most, PAGE_SIZE - (address & PAGE_MASK)))

    def check_write(self, address: int, size: int) -> None:
        """Raises `NotOursError` unless a write changes those bytes and nothing else."""
        physical, flags = self._walk(address, size)
        if not flags & _DIRTY or (self._protects and not flags & _WRITE) or physical not in self._physical:
            raise NotOursError

    def _bytes(self, address: int, size: int) -> bytes:
        physical, _ = self._walk(address, size)
        try:
            return self._physical.read(physical, size)
        except UnreadableMemoryError:
            raise NotOursError from None

    def _walk(self, address: int, size: int) -> tuple[int, int]:
        """(physical address, flags that hold on every level; DIRTY is the last one's)."""
        if (address & PAGE_MASK) + size > PAGE_SIZE or not self._format.is_canonical(address):
            raise NotOursError
        table, flags = self._root, _WRITE | _USER | _ACCESSED | VALID
        read, frame = self._physical.u64, self._format.frame
        try:
            for shift, within, large_frame in self._steps:
                entry = read(table + (address >> shift & within))
                flags &= entry
                if entry & LARGE and large_frame:
                    return self._leaf(entry & large_frame | address & ((1 << shift + _ENTRY_SHIFT) - 1), flags, entry)
                table = entry & frame
        except UnreadableMemoryError:
            raise NotOursError from None
        return self._leaf(table | address & PAGE_MASK, flags, entry)

    def _leaf(self, physical: int, flags: int, entry: int) -> tuple[int, int]:
        if not flags & VALID or not flags & _ACCESSED or bool(flags & _USER) != self._user:
            raise NotOursError
        return physical, flags | entry & _DIRTY
