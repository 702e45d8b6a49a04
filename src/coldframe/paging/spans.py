"""What can be read of an address space, in as few pieces as can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coldframe.memory import PhysicalMemory
from coldframe.paging.arrays import NOWHERE, PageArrays
from coldframe.paging.formats import PAGE_SHIFT, PAGE_SIZE
from coldframe.paging.sources import AbsentPages

_ZEROS = memoryview(bytes(1 << 20))


class Span(NamedTuple):
    """Virtual addresses `start` to `end` that lie side by side in RAM from `physical` on, or that read as zeros
    (`physical` None), or that are whole pages which a page source has (`absent`)."""

    start: int
    end: int
    physical: int | None
    absent: AbsentPages | None = None

    def after(self, address: int) -> Span:
        """What is left of it from `address` on, which is a page's start where a page source has the pages."""
        physical = None if self.physical is None else self.physical + address - self.start
        absent = None if self.absent is None else self.absent.where(slice((address - self.start) >> PAGE_SHIFT, None))
        return Span(address, self.end, physical, absent)


def spans(pages: PageArrays, start: int, end: int, *, supplied: bool = False) -> Iterator[Span]:
    """What can be read from `start` to `end`, by address, in the largest pieces; the rest are holes.

    What a page source has is told only where `supplied` asks for it; such a span's first and last page may reach beyond
    `start` and `end`.
    """
    if end <= start:
        return
    last = pages.address + (pages.size - np.uint64(1))
    wanted = pages.readable if supplied else pages.in_memory
    chosen = np.flatnonzero(wanted & (last >= np.uint64(start)) & (pages.address <= np.uint64(end - 1)))
    if not len(chosen):
        return
    address, physical = pages.address[chosen], pages.physical[chosen]
    foreign = pages.supplied[chosen] & ~pages.in_memory[chosen]
    low, high = np.maximum(address, np.uint64(start)), np.minimum(last[chosen], np.uint64(end - 1))
    low, high = np.where(foreign, address, low), np.where(foreign, last[chosen], high)
    zero = physical == np.uint64(NOWHERE)
    place = np.where(zero, low, physical + (low - address))
    after = np.uint64(1) + high[:-1]
    beside = (low[1:] == after) & (zero[1:] == zero[:-1]) & (place[1:] - place[:-1] == low[1:] - low[:-1])
    beside &= foreign[1:] == foreign[:-1]
    first = np.concatenate(([0], np.flatnonzero(~beside) + 1))
    final = np.concatenate((first[1:], [len(low)])) - 1
    columns = (first, final, low[first], high[final], place[first], zero[first], foreign[first])
    for row, to, begin, final_byte, where, promised, away in zip(*(column.tolist() for column in columns), strict=True):
        absent = pages.absent(chosen[row : to + 1]) if away else None
        yield Span(begin, final_byte + 1, None if promised else where, absent)


def span_bytes(memory: PhysicalMemory, span: Span) -> Iterator[memoryview | bytes]:
    """The bytes of a span, without a copy where a buffer holds them; `UnreadableMemoryError` in a hole of RAM."""
    size = span.end - span.start
    if span.physical is None:
        return zeros(size)
    run = memory.run_at(span.physical)
    if run is not None and isinstance(run.backing, memoryview) and span.physical + size <= run.end:
        offset = run.offset + span.physical - run.start
        return iter((run.backing[offset : offset + size],))
    return iter((memory.read(span.physical, size),))


def zeros(size: int) -> Iterator[memoryview]:
    """`size` zero bytes, in pieces that take no memory of their own."""
    while size > 0:
        yield _ZEROS[:size]
        size -= len(_ZEROS)


def pages_of(span: Span, start: int, most: int) -> tuple[AbsentPages, NDArray[np.uint8], int]:
    """The pages of a span of a page source's from the one that holds `start` on, no more than `most`; an array for
    their bytes; and the address behind the last."""
    assert span.absent is not None
    row = (start - span.start) >> PAGE_SHIFT
    some = span.absent.where(slice(row, row + most))
    return some, np.empty((len(some), PAGE_SIZE), np.uint8), span.start + (row + len(some)) * PAGE_SIZE
