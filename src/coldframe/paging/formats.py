"""Page-table formats of x86 processors, as data.

Source: Intel SDM volume 3A, chapter 4 ("Paging"): figures 4-4 (32-bit), 4-7 (PAE) and 4-11 (4-level and 5-level).
One walker reads all of them; a new format is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1

VALID = 1
LARGE = 1 << 7

_FRAME_52 = ((1 << 52) - 1) & ~PAGE_MASK


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables: its entries' name, the address bits that index it, and what a large entry maps.

    `large_frame` masks the physical address of a large page in an entry whose bit 7 is set; 0 where bit 7 has no such
    meaning at this level.
    """

    name: str
    shift: int
    bits: int
    large_frame: int = 0


@dataclass(frozen=True, slots=True)
class PageTableFormat:
    """How a processor mode reads page tables.

    `entry_size` is in bytes; `frame` masks the physical address in an entry, `root` the one in CR3; `levels` run from
    the root to the PTE. Addresses have `address_bits` bits; in 64-bit modes (`canonical`) the bits above repeat the
    highest of them. `pse36` says that a 4 MB entry keeps bits 32 to 39 of the address in its bits 13 to 20. `split` is
    where the kernel's half begins in 32-bit modes, which the guest chooses (2 GB or 3 GB); 0 while it is not known.
    """

    name: str
    entry_size: int
    address_bits: int
    canonical: bool
    frame: int
    root: int
    levels: tuple[Level, ...]
    pse36: bool = False
    split: int = 0

    @property
    def user_end(self) -> int:
        """The first address that no VAD can hold.

        In 32-bit modes, where the guest's choice is not known: 3 GB, where Windows maps the page tables themselves.
        """
        return 1 << (self.address_bits - 1) if self.canonical else self.split or 0xC0000000

    @property
    def kernel_start(self) -> int:
        """The first address that may be the kernel's."""
        return (1 << 64) - (1 << (self.address_bits - 1)) if self.canonical else self.split or 0x80000000

    def is_canonical(self, address: int) -> bool:
        """Whether the processor would walk for `address` at all."""
        if self.canonical:
            half = 1 << (self.address_bits - 1)
            return 0 <= address < half or (1 << 64) - half <= address < 1 << 64
        return 0 <= address < 1 << self.address_bits

    def sign_extend(self, address: int) -> int:
        """The canonical address with these low bits."""
        address &= (1 << self.address_bits) - 1
        if self.canonical and address >> (self.address_bits - 1):
            address |= (1 << 64) - (1 << self.address_bits)
        return address


_PTE = Level("PTE", 12, 9)
_PDE = Level("PDE", 21, 9, large_frame=_FRAME_52 & ~((1 << 21) - 1))
_PDPTE = Level("PDPTE", 30, 9, large_frame=_FRAME_52 & ~((1 << 30) - 1))
_PML4E = Level("PML4E", 39, 9)

FORMATS: Mapping[str, PageTableFormat] = {
    row.name: row
    for row in (
        PageTableFormat("4-level", 8, 48, True, _FRAME_52, _FRAME_52, (_PML4E, _PDPTE, _PDE, _PTE)),
        PageTableFormat(
            "5-level", 8, 57, True, _FRAME_52, _FRAME_52, (Level("PML5E", 48, 9), _PML4E, _PDPTE, _PDE, _PTE)
        ),
        PageTableFormat("pae", 8, 32, False, _FRAME_52, 0xFFFFFFE0, (Level("PDPTE", 30, 2), _PDE, _PTE)),
        PageTableFormat(
            "x86",
            4,
            32,
            False,
            0xFFFFF000,
            0xFFFFF000,
            (Level("PDE", 22, 10, large_frame=0xFFC00000), Level("PTE", 12, 10)),
            pse36=True,
        ),
    )
}
"""The formats by name: "4-level", "5-level", "pae", "x86" (32-bit without PAE)."""
