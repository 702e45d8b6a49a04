"""An address space as the pieces that have bytes of their own: what a search goes through."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

import numpy as np

from coldframe.errors import UnreadableMemoryError
from coldframe.paging.arrays import CODE, NOWHERE, PageArrays
from coldframe.paging.formats import PAGE_SIZE
from coldframe.paging.page import State
from coldframe.paging.space import AddressSpace
from coldframe.paging.spans import Span, span_bytes, spans

LARGEST = 1 << 22
"""Bytes: the most in one piece."""

_ELSEWHERE = [CODE[State.PAGEFILE], CODE[State.COMPRESSED], CODE[State.SUBSECTION]]


def pieces(space: AddressSpace, start: int | None = None, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Address and bytes of what lies from `start` to `end` (defaults as in `AddressSpace.pages`), by address.

    Pages in RAM, and those that a page source supplies; not those that only promise zeros. A piece may go on where
    the one before it ends.
    """
    pages = space.pages(start, end)
    low, high = start or 0, 1 << 64 if end is None else end
    in_ram = (span for span in spans(pages, low, high) if span.physical is not None)
    absent = _absent(pages, low, high) if space.resolver.pages is not None else iter(())
    for span in merge(in_ram, absent):
        if span.physical is None and span.end - span.start > LARGEST and not space.readable(span.start):
            continue  # a page table that nobody has
        for at in range(span.start, span.end, LARGEST):
            part = span.after(at)
            yield from _bytes(space, part._replace(end=min(span.end, at + LARGEST)))


def _bytes(space: AddressSpace, span: Span) -> Iterator[tuple[int, bytes]]:
    """The bytes of a span, without those that cannot be had: the page source has not all, RAM may end in a page."""
    start, end = span.start, span.end
    if span.physical is not None:
        try:
            data = b"".join(span_bytes(space.resolver.physical, span))
        except UnreadableMemoryError:
            pass
        else:
            yield start, data
            return
    data, holes = space.read_padded(start, end - start)
    at = start
    for hole, size in (*holes, (end, 0)):
        if hole > at:
            yield at, data[at - start : hole - start]
        at = hole + size


def _absent(pages: PageArrays, low: int, high: int) -> Iterator[Span]:
    """Rows whose bytes are elsewhere; those that are beside each other, a page each, as one."""
    rows = np.flatnonzero((pages.physical == np.uint64(NOWHERE)) & np.isin(pages.state, _ELSEWHERE))
    held = Span(0, 0, None)
    for address, size in zip(pages.address[rows].tolist(), pages.size[rows].tolist(), strict=True):
        if size == PAGE_SIZE and address == held.end and held.end - held.start < LARGEST:
            held = held._replace(end=address + size)
            continue
        if held.end > held.start:
            yield held
        held = Span(max(address, low), min(address + size, high), None)
    if held.end > held.start:
        yield held
