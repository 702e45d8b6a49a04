"""The anchors of 32-bit kernels: where their page tables, KUSER_SHARED_DATA and KPCR are fixed.

Every 32-bit NT maps its page tables to themselves at 0xC0000000, KUSER_SHARED_DATA at 0xFFDF0000 and, to Windows 2003,
the first processor's KPCR at 0xFFDFF000. KPCR.KdVersionBlock leads to DBGKD_GET_VERSION64, which has the kernel's base:
the fields that these use are documented (wdm.h and ntddk.h: `KPCR`; wdbgexts.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.windows.anchors import Found, from_tables, pages_of, shared_pages
from coldframe.windows.bare import FRAME, BareSpace
from coldframe.windows.kernel import KUSER_SHARED_DATA32, KernelLocation, Search, kernel_at

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KPCR = 0xFFDF_F000
SELF, PRCB, _VERSION_BLOCK = 0x1C, 0x20, 0x34
_PRCB_IN_KPCR = 0x120
_KERNEL_BASE = 0x10
_SELF_SLOT = 0x300  # of a page directory: 0xC0000000 >> 22
_FRAME32 = 0xFFFF_F000
_PDPTE_RESERVED = 0x1E6  # bits 1 and 2, 5 to 8: Intel SDM 3A, table 4-8
_MOST_HOLDERS = 256
_MOST_DIRECTORIES = 1 << 16


def processor_region(search: Search) -> Found:
    """FS base, or its fixed address, leads to the KPCR, its KdVersionBlock to the kernel's base."""
    said = ""
    for vcpu, registers in enumerate(search.registers):
        for space in search.spaces(vcpu):
            if space.format.canonical:
                continue
            for base in dict.fromkeys((registers.get("fs_base", 0), KPCR)):
                found = by_version_block(space, base) if base >= space.kernel_half else f"{base:#x} is no KPCR"
                if isinstance(found, KernelLocation):
                    return found
                said = found
    if said:
        search.fail("KPCR", said)
    return None


def by_version_block(space: BareSpace, kpcr: int) -> KernelLocation | str:
    """The kernel that the KPCR at that address names."""
    try:
        own, prcb, _, block = struct.unpack_from("<II16sI", space.read(kpcr + SELF, 0x20))
        if own != kpcr or not prcb:
            return f"{kpcr:#x} is no KPCR"
        (base,) = struct.unpack("<I", space.read(block + _KERNEL_BASE, 4))
    except UnreadableMemoryError as error:
        return f"the KPCR at {kpcr:#x}: {error}"
    if base & 0xFFF or base < space.kernel_half:
        return f"KdVersionBlock of the KPCR at {kpcr:#x} names no kernel"
    return kernel_at(space, base, f"KdVersionBlock of the KPCR at {kpcr:#x}")


def page_directory(search: Search) -> Found:
    """A page directory without PAE whose entry 0x300 is itself."""
    return from_tables(search, "self-referencing page directory", _self_referencing(search), ("x86",))


def _self_referencing(search: Search) -> Iterator[int]:
    import numpy as np  # noqa: PLC0415 - slow to load

    for address, pages in pages_of(search):
        own = address + np.arange(len(pages), dtype=np.uint64) * np.uint64(PAGE_SIZE)
        entries = pages.view(np.uint32)[:, _SELF_SLOT].astype(np.uint64)
        rows = np.flatnonzero((entries & np.uint64(_FRAME32 | 0x81)) == (own | np.uint64(1)))
        yield from (int(own[row]) for row in rows)


def page_directory_pointers(search: Search) -> Found:
    """With PAE: four entries that lead to page directories, the fourth of which leads to the same four again."""
    return from_tables(search, "self-referencing PAE page directories", _pointer_tables(search), ("pae",))


def _pointer_tables(search: Search) -> Iterator[int]:
    import numpy as np  # noqa: PLC0415 - slow to load

    tops: dict[int, NDArray[np.uint64]] = {}
    for address, pages in pages_of(search):
        own = address + np.arange(len(pages), dtype=np.uint64) * np.uint64(PAGE_SIZE)
        rows = np.flatnonzero((pages[:, 3] & np.uint64(FRAME | 0x81)) == (own | np.uint64(1)))
        for row in rows[: _MOST_DIRECTORIES - len(tops)]:
            tops[int(own[row])] = pages[row, :4] & np.uint64(FRAME)
    wanted = np.array(sorted(tops), dtype=np.uint64)
    for address, pages in pages_of(search):
        quads = pages.reshape(-1, 4)
        last = quads[:, 3]
        rows = np.flatnonzero((last & np.uint64(1)).astype(bool) & np.isin(last & np.uint64(FRAME), wanted))
        for row in rows:
            entries = quads[row]
            if (entries & np.uint64(_PDPTE_RESERVED)).any():
                continue  # the page directory itself
            if ((entries & np.uint64(FRAME)) == tops[int(last[row]) & FRAME]).all():
                yield address + 32 * int(row)


def shared_data(search: Search) -> Found:
    """From the page of KUSER_SHARED_DATA, known by its text, up through the tables that map it."""
    pages = shared_pages(search)
    if not pages:
        search.fail("32-bit KUSER_SHARED_DATA", "no page with a system root (X:\\WINDOWS) in physical memory")
        return None
    return _upwards(search, "32-bit KUSER_SHARED_DATA", set(pages), KUSER_SHARED_DATA32)


def fixed_processor_region(search: Search) -> Found:
    """From the page of the first processor's KPCR, known by its pointers to itself, up through the tables."""
    import numpy as np  # noqa: PLC0415 - slow to load

    found: set[int] = set()
    for address, pages in pages_of(search):
        words = pages.view(np.uint32)
        own = words[:, SELF // 4] == np.uint32(KPCR)
        rows = np.flatnonzero(own & (words[:, PRCB // 4] == np.uint32(KPCR + _PRCB_IN_KPCR)))
        found.update(address + int(row) * PAGE_SIZE for row in rows[:_MOST_HOLDERS])
    if not found:
        search.fail("KPCR at 0xffdff000", "no page in physical memory is one")
        return None
    return _upwards(search, "KPCR at 0xffdff000", found, KPCR)


def _upwards(search: Search, anchor: str, pages: set[int], address: int) -> Found:
    """The kernel under the tables, of either format, that map one of `pages` at `address`."""
    import numpy as np  # noqa: PLC0415 - slow to load

    tables = _holders(search, pages, np.uint32, address >> 12 & 0x3FF)
    roots = _holders(search, tables, np.uint32, address >> 22) if tables else set()
    found = from_tables(search, anchor, iter(sorted(roots)), ("x86",))
    if found is not None:
        return found
    tables = _holders(search, pages, np.uint64, address >> 12 & 0x1FF)
    directories = _holders(search, tables, np.uint64, address >> 21 & 0x1FF) if tables else set()
    pointers = _pointers_to(search, directories, address >> 30) if directories else iter(())
    return from_tables(search, anchor, pointers, ("pae",))


def _holders(search: Search, targets: set[int], width: type[np.uint32] | type[np.uint64], column: int) -> set[int]:
    """The pages whose entry number `column` is valid and leads to one of `targets`."""
    import numpy as np  # noqa: PLC0415 - slow to load

    wanted = np.array(sorted(targets), dtype=np.uint64)
    found: set[int] = set()
    for address, pages in pages_of(search):
        entries = pages.view(width)[:, column].astype(np.uint64)
        valid = (entries & np.uint64(1)).astype(bool)
        rows = np.flatnonzero(valid & np.isin(entries & np.uint64(FRAME), wanted))
        found.update(address + int(row) * PAGE_SIZE for row in rows[:_MOST_HOLDERS])
    return found


def _pointers_to(search: Search, directories: set[int], slot: int) -> Iterator[int]:
    """Tables of four page-directory pointers whose entry `slot` leads to one of `directories`."""
    import numpy as np  # noqa: PLC0415 - slow to load

    wanted = np.array(sorted(directories), dtype=np.uint64)
    for address, pages in pages_of(search):
        entries = pages.reshape(-1, 4)[:, slot]
        valid = (entries & np.uint64(1 | _PDPTE_RESERVED)) == 1
        rows = np.flatnonzero(valid & np.isin(entries & np.uint64(FRAME), wanted))
        yield from (address + 32 * int(row) for row in rows[:_MOST_HOLDERS])


BY_REGISTERS = (processor_region,)
BY_MEMORY = (page_directory, page_directory_pointers, shared_data, fixed_processor_region)
