"""Where Windows maps the page tables themselves, so that each entry has a virtual address: what kd names them by.

One entry of the root table points to the root table. Its index was fixed up to Windows 10 1511 (0x1ed: PTEs from
0xfffff68000000000 on) and is random since; 32-bit Windows maps the tables from 0xc0000000 on.
"""

from __future__ import annotations

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging.formats import VALID, PageTableFormat

_BASE_32 = 0xC0000000


def self_map(physical: PhysicalMemory, page_format: PageTableFormat, dtb: int) -> int | None:
    """The virtual address of the first PTE (nt!MmPteBase) in the address space of `dtb`; None without a self-map."""
    root, size = dtb & page_format.root, page_format.entry_size
    top = page_format.levels[0]

    def frame(table: int, index: int) -> int | None:
        try:
            stored = int.from_bytes(physical.read(table + index * size, size), "little")
        except UnreadableMemoryError:
            return None
        return stored & page_format.frame if stored & VALID else None

    if page_format.canonical:
        for index in range(1 << (top.bits - 1), 1 << top.bits):
            if frame(root, index) == root:
                return page_format.sign_extend(index << top.shift)
        return None
    last = _BASE_32 >> top.shift
    if top.bits > 2:  # x86
        return _BASE_32 if frame(root, last) == root else None
    directory = frame(root, last)  # PAE: the last directory's first entries are the four directories
    if directory is None or frame(directory, 0) != frame(root, 0) or frame(directory, last) != directory:
        return None
    return _BASE_32


def entry_addresses(page_format: PageTableFormat, base: int, address: int) -> dict[str, int]:
    """The virtual address of each level's entry for `address`, by the level's name; PAE's top level has none."""
    found = {}
    span = (1 << page_format.address_bits) - 1
    size = page_format.entry_size
    for level in reversed(page_format.levels):
        if level.bits == 2:
            break
        address = base + ((address & span) >> 12) * size
        found[level.name] = address
    return found
