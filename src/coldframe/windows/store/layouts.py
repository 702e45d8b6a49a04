"""Where the store manager keeps things: the one table of numbers that no kernel's type information has.

`SMKM_STORE`, `ST_STORE` and their like are in no public PDB (none of 213 kernels' from 7 SP1 to 11 has one of them, and
all have the symbol `?SmGlobals@@3U_SM_GLOBALS@@A`), so the offsets come from published research:

- Windows 10 1607 to 1903, both widths: mandiant/win10_volatility, `overlays/windows/win10_memcompression.py`;
- the same, and 2004 to 11 24H2: ufrisk/MemProcFS, `vmm/mm/mm_win.c` (`MmWin_MemCompress_InitializeOffsets32`, `...64`,
  `MmWin_MemCompress_Initialize`);
- the bytes before a page's data (`header`), and that a record's size 0 is 4096: listings of the kernels' own
  `ST_STORE<SM_TRAITS>::StDmpSinglePageAdd`, `StDmpSinglePageRetrieve`, `StDmSinglePageCopy` and `StDmCombinePageEntry`.

Offsets are bytes from the beginning of the structure that a field belongs to. A row holds from its build on up to the
next one's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from coldframe.errors import FormatError

NEWEST = 26200
"""The newest build that a row is known to hold for (11 25H2, which shares 24H2's kernel)."""


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """The offsets of one width and range of builds; None where this range has no such field.

    In `SMKM_STORE`: `pages_tree` (root of page key -> page record), `chunks` (`SMHP_CHUNK_METADATA`), `itself` (a
    pointer back to the store), `region_mask` and `region_shift` (a record's key: offset in 16-byte units, region
    number), `header` (how many bytes stand before a page's data), `algorithm` (RtlCompressBuffer's format), `regions`
    (pointer to the array of regions' addresses) and `owner` (the `_EPROCESS` that they are in).

    In `SMKM_STORE_MGR`: `key_tree` (root of page key -> store). `manager` tells where that is: None at `nt!SmGlobals`
    itself, else (a, b): the pointer at `nt!SmGlobals` + a, less b.
    """

    pointer_size: int
    key_tree: int
    metadata_size: int
    pages_tree: int
    chunks: int
    itself: int
    region_mask: int
    region_shift: int
    header: int | None
    algorithm: int | None
    regions: int
    owner: int
    chunk_entry_size: int
    manager: tuple[int, int] | None = None
    key_has_number: bool = True
    compression: Literal["by field", "lz4"] = "by field"


_X64_1607 = StoreLayout(
    pointer_size=8,
    key_tree=0x1C0,
    metadata_size=0x28,
    pages_tree=0x50,
    chunks=0x110,
    itself=0x370,
    region_mask=0x378,
    region_shift=0x37C,
    header=None,
    algorithm=0x420,
    regions=0x17A8,
    owner=0x1918,
    chunk_entry_size=16,
)
_X64_1709 = replace(_X64_1607, header=0x388, algorithm=0x430, regions=0x1848, owner=0x19A8)
_X64_2004 = replace(_X64_1709, owner=0x19B8)
_X86_1607 = StoreLayout(
    pointer_size=4,
    key_tree=0xF4,
    metadata_size=0x14,
    pages_tree=0x38,
    chunks=0xA4,
    itself=0x1F8,
    region_mask=0x1FC,
    region_shift=0x200,
    header=None,
    algorithm=0x258,
    regions=0x1124,
    owner=0x1204,
    chunk_entry_size=8,
)
_X86_1709 = replace(_X86_1607, algorithm=0x25C, regions=0x1184, owner=0x1254, chunk_entry_size=12)

# (first build, last build, layout). What lies between two rows is known to differ from both, and not how.
_ROWS: tuple[tuple[int, int, StoreLayout], ...] = (
    (14393, 15062, _X64_1607),
    (15063, 16298, replace(_X64_1607, regions=0x1828, owner=0x1988)),
    (16299, 19040, _X64_1709),
    (19041, 22600, _X64_2004),
    (22601, 22635, replace(_X64_2004, manager=(0x8, 0x7A8))),
    (
        26100,
        NEWEST,
        replace(
            _X64_2004,
            manager=(0x10, 0xC30),
            key_has_number=False,
            compression="lz4",
            algorithm=None,
            regions=0x1B70,
            owner=0x1D08,
        ),
    ),
    (14393, 15062, _X86_1607),
    (15063, 16298, replace(_X86_1607, regions=0x1174, owner=0x1244, chunk_entry_size=12)),
    (16299, 19040, _X86_1709),
    (19041, 19045, replace(_X86_1709, owner=0x125C)),
)


def store_layout(build: int | None, pointer_size: int) -> StoreLayout:
    """The row for a kernel; raises `FormatError` naming the build where there is none."""
    for first, last, layout in _ROWS:
        if layout.pointer_size == pointer_size and build is not None and first <= build <= last:
            return layout
    known = ", ".join(f"{first} to {last}" for first, last, layout in _ROWS if layout.pointer_size == pointer_size)
    found = "this kernel's build cannot be read" if build is None else f"this kernel is build {build}"
    width = 8 * pointer_size
    raise FormatError(f"store: {found}; where the store manager keeps things is known of {width}-bit builds {known}")
