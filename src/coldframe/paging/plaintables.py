"""The plain part of an address space: tables that are reached by valid entries, and full of valid entries.

Nearly all memory is. A table's entries are looked at together, once, and their pages gathered out of RAM at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coldframe.paging.formats import PAGE_MASK, PAGE_SHIFT, VALID
from coldframe.paging.resolver import Resolver

_TABLES = 512
"""Tables that are kept: those of a gigabyte."""


class Table(NamedTuple):
    """The pages of one table of PTEs by their rows in the memory's grid; -1 where an entry is not plainly valid, or its
    page not in the grid. `full` says that there is no such."""

    rows: NDArray[np.int64]
    full: bool


class PlainTables:
    """The tables of one address space that are reached by valid entries; kept until the resolver's `drop_caches`."""

    def __init__(self, resolver: Resolver, dtb: int) -> None:
        self._resolver = resolver
        self._dtb = dtb
        self._span = resolver.table_span
        self._kind = np.dtype("<u8" if resolver.format.entry_size == 8 else "<u4")
        self._kept: dict[int, Table] = {}
        self._epoch = resolver.epoch

    def fill(self, address: int, out: memoryview) -> Iterator[tuple[int, int]]:
        """Fill `out` from `address` on with what is plain, by address; yields start and end of what is not, when all
        before it is filled, and leaves that to others."""
        memory, end = self._resolver.physical, address + len(out)
        start = odd = address
        while start < end:
            stop = min(end, (start | (self._span - 1)) + 1)
            rows = self._rows(start, stop)
            if rows is not None:
                if odd < start:
                    yield odd, start
                memory.grid.copy(rows, start & PAGE_MASK, out[start - address : stop - address])
                odd = stop
            start = stop
        if odd < end:
            yield odd, end

    def _rows(self, start: int, end: int) -> NDArray[np.int64] | None:
        """The rows of the pages from `start` to `end`, which share a table; None where not all of them are plain."""
        base = start & -self._span
        table = self._kept.get(base) if self._epoch == self._resolver.epoch else None
        if table is None:
            table = self._look(base)
        if table is None:
            return None
        rows = table.rows[(start - base) >> PAGE_SHIFT : ((end - 1 - base) >> PAGE_SHIFT) + 1]
        return rows if table.full or bool((rows >= 0).all()) else None

    def _look(self, base: int) -> Table | None:
        """The table that maps `base`, looked at and kept."""
        resolver = self._resolver
        if self._epoch != resolver.epoch or len(self._kept) >= _TABLES:
            self._kept.clear()
            self._epoch = resolver.epoch
        physical = resolver.plain_table(self._dtb, base)
        if physical < 0:
            return None
        size = (self._span >> PAGE_SHIFT) * self._kind.itemsize
        stored = resolver.physical.view(physical, size).view(self._kind).astype(np.uint64)
        rows = resolver.physical.grid.rows(stored & np.uint64(resolver.frame))
        rows[stored & np.uint64(VALID) == 0] = -1
        table = self._kept[base] = Table(rows, bool((rows >= 0).all()))
        return table
