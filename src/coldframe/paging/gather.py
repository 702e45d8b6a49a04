"""The bytes of long spans of virtual memory: listed in bulk, then taken in as few pieces as can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from coldframe.memory import PhysicalMemory
from coldframe.paging.arrays import NOWHERE, PageArrays

_ZEROS = memoryview(bytes(1 << 20))


class Span(NamedTuple):
    """Virtual addresses `start` to `end` that lie side by side in RAM from `physical` on, or that read as zeros
    (`physical` None)."""

    start: int
    end: int
    physical: int | None

    def after(self, address: int) -> Span:
        """What is left of it from `address` on."""
        return Span(address, self.end, None if self.physical is None else self.physical + address - self.start)


def spans(pages: PageArrays, start: int, end: int) -> Iterator[Span]:
    """What can be read from `start` to `end`, by address, in the largest pieces; the rest are holes."""
    if end <= start:
        return
    last = pages.address + (pages.size - np.uint64(1))
    chosen = np.flatnonzero(pages.in_memory & (last >= np.uint64(start)) & (pages.address <= np.uint64(end - 1)))
    if not len(chosen):
        return
    address, physical = pages.address[chosen], pages.physical[chosen]
    low, high = np.maximum(address, np.uint64(start)), np.minimum(last[chosen], np.uint64(end - 1))
    zero = physical == np.uint64(NOWHERE)
    place = np.where(zero, low, physical + (low - address))
    after = np.uint64(1) + high[:-1]
    beside = (low[1:] == after) & (zero[1:] == zero[:-1]) & (place[1:] - place[:-1] == low[1:] - low[:-1])
    first = np.concatenate(([0], np.flatnonzero(~beside) + 1))
    final = np.concatenate((first[1:] - 1, [len(low) - 1]))
    columns = (low[first].tolist(), high[final].tolist(), place[first].tolist(), zero[first].tolist())
    for begin, final_byte, where, promised in zip(*columns, strict=True):
        yield Span(begin, final_byte + 1, None if promised else where)


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
