"""Dumps by bitmap (types 2, 5, 6): what Windows left out is told apart from what the machine never had."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from builder import pattern
from coldframe.errors import UnreadableMemoryError
from coldframe.images import open_image
from coldframe.paging import FORMATS, Resolver, State

PAGE = 4096
RAM = [(0, 8), (16, 48)]  # runs of pages that the machine has
LEFT_OUT, NEVER = 20, 10  # a page of RAM that is not in the dump; a page that is no RAM
TABLES = [0, 1, 2, 3]  # PML4, PDPT, PD, PT


def contents() -> dict[int, bytes]:
    """Page tables in pages 0 to 3 that map page 17, the page that was left out, and one that is no RAM."""
    pages = {page: pattern(page) for first, count in RAM for page in range(first, first + count)}
    for table in TABLES[:-1]:
        pages[table] = struct.pack("<Q", (table + 1) * PAGE | 3).ljust(PAGE, b"\0")
    entries = struct.pack("<3Q", 17 * PAGE | 1, LEFT_OUT * PAGE | 1, NEVER * PAGE | 1)
    pages[TABLES[-1]] = entries.ljust(PAGE, b"\0")
    del pages[LEFT_OUT]
    return pages


def bitmap_dump(kind: int, *, old: bool = False, wide: bool = True, described: bool = True, extra: int = 0) -> bytes:
    """ntiodump.h's SUMMARY_DUMP before Windows 8 (`old`), kdmp-parser's BMP_HEADER64 since."""
    pages, size = contents(), 0x2000 if wide else 0x1000
    header = bytearray((b"PAGEDU64" if wide else b"PAGEDUMP").ljust(size, b"\0"))
    struct.pack_into("<I", header, 0x30 if wide else 0x20, 0x8664 if wide else 0x14C)
    struct.pack_into("<I", header, 0xF98 if wide else 0xF88, kind)
    if described:
        form, at = ("<IIQ", 0x88) if wide else ("<II", 0x64)
        counts = (len(RAM), 0, 56) if wide else (len(RAM), 56)
        struct.pack_into(form, header, at, *counts)
        runs = [number for run in RAM for number in run]
        struct.pack_into("<4Q" if wide else "<4I", header, at + (16 if wide else 8), *runs)
    bits = np.zeros(64, dtype=np.uint8)
    bits[list(pages)] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    if old:
        at = 0x28 if wide else 0x20
        second = bytearray(b"SDMPDUMP".ljust(at, b"\0"))
        struct.pack_into("<4I", second, 0x0C, size + 0x200, len(bits), len(pages) + extra, len(bits))
    else:
        second = bytearray(b"FDMPDUMP".ljust(0x38, b"\0"))
        struct.pack_into("<3Q", second, 0x20, size + 0x200, len(pages) + extra, len(bits))
    return (
        bytes(header) + (bytes(second) + bitmap).ljust(0x200, b"\0") + b"".join(pages[page] for page in sorted(pages))
    )


LAYOUTS = [(kind, old, wide) for kind in (2, 5, 6) for old in (False, True) for wide in (False, True)]


@pytest.mark.parametrize(("kind", "old", "wide"), LAYOUTS)
def test_every_layout_of_the_bitmap_gives_the_same_memory(tmp_path, kind, old, wide):
    (tmp_path / "x.dmp").write_bytes(bitmap_dump(kind, old=old, wide=wide))
    image = open_image(tmp_path / "x.dmp")
    assert image.warnings == []
    for page, expected in contents().items():
        assert image.physical.read(page * PAGE, PAGE) == expected
    with pytest.raises(UnreadableMemoryError, match="does not carry it") as caught:
        image.physical.read(LEFT_OUT * PAGE - 8, 16)
    assert caught.value.address == LEFT_OUT * PAGE
    with pytest.raises(UnreadableMemoryError, match="no physical memory"):
        image.physical.read(NEVER * PAGE, 1)


@pytest.mark.parametrize("kind", [2, 5, 6])
def test_a_page_that_was_left_out_keeps_its_state_and_says_who_has_it_not(tmp_path, kind):
    (tmp_path / "x.dmp").write_bytes(bitmap_dump(kind))
    resolver = Resolver(open_image(tmp_path / "x.dmp").physical, FORMATS["4-level"], None, kernel_dtb=0)
    assert resolver.resolve(0, 0x123).physical == 17 * PAGE + 0x123
    page = resolver.resolve(0, PAGE)
    assert (page.state, page.readable) == (State.VALID, False)
    assert page.reason.startswith(f"page frame {LEFT_OUT:x}: this")
    assert "does not carry it" in page.reason
    assert "outside the guest's RAM" in resolver.resolve(0, 2 * PAGE).reason


def test_without_a_description_of_ram_both_are_possible(tmp_path):
    (tmp_path / "x.dmp").write_bytes(bitmap_dump(5, described=False))
    physical = open_image(tmp_path / "x.dmp").physical
    for page in (LEFT_OUT, NEVER):
        with pytest.raises(UnreadableMemoryError, match="or the machine has no memory there"):
            physical.read(page * PAGE, 1)
    with pytest.raises(UnreadableMemoryError, match="no physical memory there"):
        physical.read(64 * PAGE, 1)


def test_a_header_that_counts_other_pages_is_warned_of(tmp_path):
    (tmp_path / "x.dmp").write_bytes(bitmap_dump(6, extra=1))
    (warning,) = open_image(tmp_path / "x.dmp").warnings
    assert "55 pages, its header says 56" in warning
