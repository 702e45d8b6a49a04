"""Physical memory into a file: raw, ELF core, or Windows crash dump. What is written reads back byte for byte.

A raw file has zeros (a sparse file's holes) where there is no memory; the others keep the map of what there is. Every
writer makes the whole file or none (`Output`), and needs no memory that grows with the image.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from coldframe.images import crashheader
from coldframe.images.elf import core_head
from coldframe.images.output import Output, OutputError, Progress
from coldframe.memory import PAGE_SIZE, PhysicalMemory

PathLike = str | os.PathLike[str]

_MOST_BITMAP_PAGES = 1 << 34
_BITMAP_HEADER = struct.Struct("<8s24xQQQ")
_BITMAP_PIECE = b"\xff" * (1 << 20)


def write_raw(path: PathLike, physical: PhysicalMemory, progress: Progress | None = None) -> None:
    """Write a raw image: the offset in the file is the physical address. Raises `OutputError`."""
    with Output(Path(path)) as output:
        output.copy(physical, ((run.start, run.size, run.start) for run in physical.runs), progress)


def write_elf(
    path: PathLike,
    physical: PhysicalMemory,
    registers: Sequence[Mapping[str, int]] = (),
    progress: Progress | None = None,
) -> None:
    """Write an ELF core as QEMU's `dump-guest-memory` does: a PT_LOAD a run, a note for each of `registers`.

    Each run's bytes begin at a page of the file. Raises `OutputError`.
    """
    head, offset = core_head([(run.start, run.size) for run in physical.runs], registers, PAGE_SIZE)
    places = []
    for run in physical.runs:
        places.append((run.start, run.size, offset))
        offset += -(-run.size // PAGE_SIZE) * PAGE_SIZE
    with Output(Path(path)) as output:
        output.write(0, head)
        output.copy(physical, places, progress)


def write_crash_dump(path: PathLike, physical: PhysicalMemory, header: bytes, progress: Progress | None = None) -> None:
    """Write a crash dump: `header` is a `DUMP_HEADER64` or `DUMP_HEADER32` whose memory runs are filled in here.

    Complete (type 1) up to 42 runs, or 86 of 32 bits, which is what the header has room for, else by bitmap (type 5).
    A page that is there in part is written with zeros for the rest. Raises `OutputError`.
    """
    extents = page_extents(physical)
    pages = sum(count for _, count in extents)
    form = crashheader.FORMS[header[:8]]
    full = len(extents) <= form.most_runs
    last = -(-sum(extents[-1]) // 64) * 64 if extents else 0  # readers take the bitmap by whole words
    if not full and last > _MOST_BITMAP_PAGES:
        raise OutputError(f"cannot write {path} as a crash dump: memory goes up to {last * PAGE_SIZE:#x}")
    first = form.size
    if not full:
        first += -(-(_BITMAP_HEADER.size + (last + 7) // 8) // PAGE_SIZE) * PAGE_SIZE
    with Output(Path(path)) as output:
        if full:
            head = form.with_memory(header, crashheader.FULL, extents, pages, first + pages * PAGE_SIZE)
        else:
            head = form.with_memory(header, crashheader.BITMAP, (), pages, first + pages * PAGE_SIZE)
            output.write(form.size, _BITMAP_HEADER.pack(b"FDMPDUMP", first, pages, last))
            for offset, data in _bitmap(extents):
                output.write(form.size + _BITMAP_HEADER.size + offset, data)
        output.write(0, head)
        output.extend(first + pages * PAGE_SIZE)
        output.copy(physical, _in_extents(physical, extents, first), progress)


def page_extents(physical: PhysicalMemory) -> list[tuple[int, int]]:
    """The pages that are there, even in part, as runs (first page, how many) that neither touch nor overlap."""
    found: list[tuple[int, int]] = []
    for run in physical.runs:
        first, end = run.start // PAGE_SIZE, -(-run.end // PAGE_SIZE)
        if found and first <= sum(found[-1]):
            start, count = found[-1]
            found[-1] = (start, max(count, end - start))
        else:
            found.append((first, end - first))
    return found


def _in_extents(
    physical: PhysicalMemory, extents: Sequence[tuple[int, int]], offset: int
) -> Iterator[tuple[int, int, int]]:
    """(address, size, offset in the file) of each run, where the extents lie one after the other from `offset`."""
    runs = iter(physical.runs)
    run = next(runs, None)
    for first, count in extents:
        start = first * PAGE_SIZE
        while run is not None and run.start < start + count * PAGE_SIZE:
            yield run.start, run.size, offset + run.start - start
            run = next(runs, None)
        offset += count * PAGE_SIZE


def _bitmap(extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The bytes of the bitmap that are not zero, as (offset, bytes)."""
    shared: dict[int, int] = {}  # a byte in which one extent ends and the next begins
    for first, count in extents:
        end = first + count
        begin, stop = -(-first // 8), end // 8
        for bit in [*range(first, min(begin * 8, end)), *range(max(stop * 8, first), end)]:
            shared[bit // 8] = shared.get(bit // 8, 0) | 1 << bit % 8
        for piece in range(begin, stop, len(_BITMAP_PIECE)):
            yield piece, _BITMAP_PIECE[: stop - piece]
    for offset, value in shared.items():
        yield offset, bytes([value])
