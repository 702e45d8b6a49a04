"""Entries in words, as kd's `!pte` says them."""

from __future__ import annotations

from coldframe.paging.formats import LARGE
from coldframe.paging.layout import Bits, PteLayout

_ACCESS = (
    "NoAccess",
    "ReadOnly",
    "Execute",
    "ExecuteRead",
    "ReadWrite",
    "WriteCopy",
    "ExecuteReadWrite",
    "ExecuteWriteCopy",
)
_MODIFIERS = ("", " NoCache", " Guard", " WriteCombine")

# x86 processors' bits, Intel SDM volume 3A, table 4-20.
_WRITABLE, _USER, _WRITE_THROUGH, _CACHE_DISABLE, _ACCESSED, _DIRTY, _GLOBAL, _NO_EXECUTE = (
    1 << 1,
    1 << 2,
    1 << 3,
    1 << 4,
    1 << 5,
    1 << 6,
    1 << 8,
    1 << 63,
)


def entry(level: str, address: int, value: int, size: int, meaning: str) -> str:
    """`PDE at 0x1ab000 contains 0x0A00000001234863: ...`; `size` is the entry's, in bytes."""
    return f"{level} at {address:#x} contains 0x{value:0{2 * size}X}: {meaning}"


def frame(physical: int, value: int, layout: PteLayout | None, *, large: bool) -> str:
    """A valid entry: `pfn 1234 ---DA--KWEV`.

    The letters are kd's: copy-on-write, global, large, dirty, accessed, cache disabled (N), write-through, kernel or
    user, writable or read-only, executable, valid. Copy-on-write and Windows' own Write bit are the kernel's, so they
    need `layout`.
    """
    writable, copy_on_write = _WRITABLE, 0
    if layout is not None:
        writable |= layout.writable
        copy_on_write = layout.copy_on_write
    letters = "".join(
        (
            "C" if value & copy_on_write else "-",
            "G" if value & _GLOBAL else "-",
            "L" if large and value & LARGE else "-",
            "D" if value & _DIRTY else "-",
            "A" if value & _ACCESSED else "-",
            "N" if value & _CACHE_DISABLE else "-",
            "T" if value & _WRITE_THROUGH else "-",
            "U" if value & _USER else "K",
            "W" if value & writable else "R",
            "-" if value & _NO_EXECUTE else "E",
            "V",
        )
    )
    return f"pfn {physical >> 12:x} {letters}"


def protection(value: int, layout: PteLayout, where: Bits | None = None) -> str:
    """`protect 4 - ReadWrite`, from a software PTE; `where` its bits are, if not where most have them."""
    bits = (where or layout.protection).get(value)
    return f"protect {bits:x} - {_ACCESS[bits & 7]}{_MODIFIERS[bits >> 3 & 3]}"


def not_valid(meaning: str, value: int, layout: PteLayout, stored: int, where: Bits | None = None) -> str:
    """An invalid entry that means something: `not valid; transition: pfn 1234, protect 4 - ReadWrite`."""
    unmasked = f" (unswizzled 0x{value:0{2 * layout.entry_size}X})" if value != stored else ""
    protect = f", {protection(value, layout, where)}" if where is None or where.length else ""
    return f"not valid{unmasked}; {meaning}{protect}"
