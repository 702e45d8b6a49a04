"""A whole address space at once: every page's state as arrays.

The tables are read level by level, each level's entries classified together; prototype PTEs are read in batches. What
the single resolver says of a page is what stands here of it (the tests hold them together on every state and on
random tables); where an entry is rare and odd, the single resolver is asked.

One row is a page, a large page, or a span of pages that are alike: promised zeros, or a table that cannot be read.
Pages of which neither the tables nor the VADs say anything have no row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError
from coldframe.paging.absent import read_absent, supplies
from coldframe.paging.arrays import (
    BIT,
    CODE,
    MOST_ROWS,
    NO_TABLE,
    NOWHERE,
    U64,
    Entries,
    PageArrays,
    Rows,
    Tables,
)
from coldframe.paging.bulkentries import BulkEntries, get, has
from coldframe.paging.bulkvads import BulkVads
from coldframe.paging.formats import LARGE, PAGE_MASK, PAGE_SIZE, VALID, Level
from coldframe.paging.page import State, Via
from coldframe.paging.sources import AbsentPages, ListsVads

_BATCH = 256
_PART = 1 << 12
_AWAY = np.array([CODE[state] for state in (State.PAGEFILE, State.COMPRESSED, State.SUBSECTION)], np.uint8)


class BulkResolver(BulkEntries):
    """Resolves whole address spaces of the guest that `resolver` is of."""

    def pages(self, dtb: int, vads: ListsVads | None = None, *, start: int = 0, end: int | None = None) -> PageArrays:
        """What lies from `start` to `end` in the address space of `dtb`; by default the user half.

        A row may reach beyond either end where a large page or a span does. Raises `FormatError` for tables that map
        more pages than there can be.
        """
        rows = Rows()
        start &= ~PAGE_MASK
        end = self.format.user_end if end is None else -(-end // PAGE_SIZE) * PAGE_SIZE
        passed = self.walk(dtb, start, end - 1, rows)
        if vads is not None and start < self.format.user_end:
            BulkVads(self).add(vads, start, min(end, self.format.user_end), passed, rows)
        return self._with_supplied(rows.arrays())

    def parts(
        self, dtb: int, vads: ListsVads | None = None, *, start: int = 0, end: int | None = None
    ) -> Iterator[PageArrays]:
        """As `pages`, in parts by address that take no more memory than `_PART` tables of PTEs do; no row is in two."""
        start &= ~PAGE_MASK
        end = self.format.user_end if end is None else end
        tables, _ = self._tables(dtb, start, end - 1, Rows())
        cuts = [start, *(cut for cut in tables.base[_PART::_PART].tolist() if start < cut < end), end]
        for low, high in pairwise(cuts):
            yield self.pages(dtb, vads, start=low, end=high)

    def _with_supplied(self, pages: PageArrays) -> PageArrays:
        """The rows, with what the page source has of them."""
        if self.resolver.pages is None:
            return pages
        absent = np.flatnonzero(np.isin(pages.state, _AWAY) & (pages.size == PAGE_SIZE))
        if not len(absent):
            return pages
        supplied = np.zeros(len(pages), np.bool_)
        supplied[absent] = supplies(self.resolver, pages.absent(absent))
        return replace(pages, supplied=supplied)

    def kernel_pages(self, dtb: int) -> PageArrays:
        """The kernel half of the address space of `dtb`."""
        return self.pages(dtb, start=self.format.kernel_start, end=1 << (64 if self.format.canonical else 32))

    # Tables

    def walk(self, dtb: int, first: int, last: int, rows: Rows) -> list[Tables]:
        """Rows for what the tables map from `first` to `last`; returns the tables that were reached in an odd way."""
        tables, passed = self._tables(dtb, first, last, rows)
        for some in _batches(tables):
            self.leaves(self._entries(self.format.levels[-1], some, first, last, rows), rows)
        return passed

    def _tables(self, dtb: int, first: int, last: int, rows: Rows) -> tuple[Tables, list[Tables]]:
        """The tables of PTEs from `first` to `last`, rows for what the levels above them map, and the tables on the
        way that were reached in an odd way."""
        tables = Tables(
            np.array([dtb & self.format.root], np.uint64), np.zeros(1, np.uint64), np.zeros(1, np.uint8), 0, {}
        )
        passed: list[Tables] = []
        for level in self.format.levels[:-1]:
            self._check(level, tables)
            tables = self._next(level, self._entries(level, tables, first, last, rows), rows)
            odd = tables.via != 0
            if odd.any():
                passed.append(Tables(tables.physical[odd], tables.base[odd], tables.via[odd], tables.span, {}))
        self._check(self.format.levels[-1], tables)
        return tables, passed

    def _check(self, level: Level, tables: Tables) -> None:
        if len(tables.physical) > MOST_ROWS >> level.bits:
            raise FormatError(f"{len(tables.physical)} tables of {level.name}s: they point to themselves")

    def _entries(self, level: Level, tables: Tables, first: int, last: int, rows: Rows) -> Entries:
        """The entries of all tables that are not zero and map something from `first` to `last`, by address."""
        span = 1 << level.shift
        count = 1 << level.bits
        stored = self._read_tables(level, tables, first, last, rows).ravel()
        offset = np.arange(0, count << level.shift, span, dtype=np.uint64)
        address = (tables.base[:, None] + offset).ravel()
        via = np.repeat(tables.via, count) if tables.via.any() else np.zeros(len(address), np.uint8)
        there = stored != 0
        if not there.all():
            address, stored, via = address.compress(there), stored.compress(there), via.compress(there)
        if level is self.format.levels[0]:  # below, the tables' addresses are whole
            address = self._extended(address)
        low = int(np.searchsorted(address, np.uint64(max(first - span + 1, 0)), side="left"))
        high = int(np.searchsorted(address, np.uint64(last), side="right"))
        return Entries(address[low:high], stored[low:high], via[low:high])

    def _extended(self, address: U64) -> U64:
        if not self.format.canonical:
            return address
        sign = np.uint64(1 << (self.format.address_bits - 1))
        return (address & (sign | (sign - np.uint64(1))) ^ sign) - sign

    def _read_tables(self, level: Level, tables: Tables, first: int, last: int, rows: Rows) -> U64:
        """The entries of n tables, shape (n, count); zeros, and rows that say so, for those that cannot be read."""
        size, count = self.format.entry_size, 1 << level.bits
        held, fine = self.physical.read_many(tables.physical, count * size)
        entries = held.view(self.kind).astype(np.uint64, copy=False)
        for row in np.flatnonzero(~fine).tolist():
            if row in tables.supplied:
                entries[row] = np.frombuffer(tables.supplied[row], dtype=self.kind)
                continue
            places = tables.physical[row] + np.arange(0, count * size, size, dtype=np.uint64)
            each, some = self.physical.read_many(places, size)  # RAM may end within a table
            entries[row] = each.view(self.kind).ravel()
            address = tables.base[row] + (np.flatnonzero(~some).astype(np.uint64) << np.uint64(level.shift))
            address = self._extended(address)
            inside = (address + np.uint64((1 << level.shift) - 1) >= np.uint64(first)) & (address <= np.uint64(last))
            rows.add(address[inside], 1 << level.shift, State.UNMAPPED, int(tables.via[row]))
        return entries

    def _next(self, level: Level, entries: Entries, rows: Rows) -> Tables:
        """What entries above the PTEs say, and the tables that they lead to."""
        stored, span = entries.stored, 1 << level.shift
        value = self.unswizzled(stored)
        valid = has(stored, VALID)
        large = valid & has(stored, LARGE) if level.large_frame else np.zeros_like(valid)
        self._large(level, entries.where(large), rows)
        transition = ~valid & self.is_transition(value)
        rest = ~valid & ~transition
        gap = rest & ((value == 0) | self.is_marker(stored))
        prototype = rest & ~gap & has(value, self.layout.prototype)
        odd = entries.where(prototype)
        rows.add(odd.address, span, State.UNMAPPED, odd.via)
        gap |= rest & ~prototype & (get(value, self.layout.page_file_high) == 0)
        paged = rest & ~prototype & ~gap
        supplied = self._paged_tables(span, entries, value, paged, rows)
        via = entries.via | np.where(transition, BIT[Via.TRANSITION_TABLE], 0).astype(np.uint8)
        via |= np.where(paged, BIT[Via.PAGED_TABLE], 0).astype(np.uint8)
        follow = (valid & ~large) | transition
        follow[list(supplied)] = True
        table = np.where(valid, stored & np.uint64(self.format.frame), value & self.transition_frame)
        table[paged] = NO_TABLE
        place = np.cumsum(follow) - 1
        bytes_of = {int(place[row]): data for row, data in supplied.items()}
        return Tables(table[follow], entries.address[follow], via[follow], span, bytes_of)

    def _large(self, level: Level, entries: Entries, rows: Rows) -> None:
        span = 1 << level.shift
        frame = entries.stored & np.uint64(level.large_frame)
        if self.format.pse36:
            frame |= (entries.stored >> np.uint64(13) & np.uint64(0xFF)) << np.uint64(32)
        via = entries.via | np.uint8(BIT[Via.LARGE_PAGE])
        whole = self.physical.contains_spans(frame, span)
        rows.add(entries.address[whole], span, State.VALID, via[whole], physical=frame[whole])
        for row in np.nonzero(~whole)[0]:
            self._partly(int(entries.address[row]), int(frame[row]), span, int(via[row]), rows)

    def _partly(self, address: int, frame: int, span: int, via: int, rows: Rows) -> None:
        """A large page of which RAM has a part, or nothing: a row for each part."""
        cuts = {frame, frame + span}
        for run in self.physical.runs:
            cuts |= {-(-edge // PAGE_SIZE) * PAGE_SIZE for edge in (run.start, run.end) if frame < edge < frame + span}
        starts = np.array(sorted(cuts), dtype=np.uint64)
        pieces = starts[:-1]
        found = np.where(self.physical.contains_many(pieces), pieces, np.uint64(NOWHERE))
        where = np.uint64(address) + (pieces - np.uint64(frame))
        rows.add(where, np.diff(starts), State.VALID, via, physical=found)

    def _paged_tables(
        self, span: int, entries: Entries, value: U64, paged: NDArray[np.bool_], rows: Rows
    ) -> dict[int, bytes]:
        """Tables that left RAM: rows for those that cannot be had; by row, the bytes of those that can."""
        supplied: dict[int, bytes] = {}
        if self.resolver.pages is not None:
            which = np.flatnonzero(paged)
            for at in range(0, len(which), _BATCH):
                some = which[at : at + _BATCH]
                none = np.zeros(len(some), np.uint64)
                out = np.empty((len(some), PAGE_SIZE), np.uint8)
                found = read_absent(self.resolver, AbsentPages(*self.slots(value[some]), none, none), out)
                supplied |= {int(some[row]): out[row].tobytes() for row in np.flatnonzero(found)}
        gone = paged.copy()
        gone[list(supplied)] = False
        state, number, offset = self.slots(value[gone])
        via = entries.via[gone] | np.uint8(BIT[Via.PAGED_TABLE])
        rows.add(entries.address[gone], span, state, via, number=number, offset=offset)
        return supplied


def _batches(tables: Tables) -> Iterator[Tables]:
    """Tables a few at a time, so that what is made of them stays in the processor's cache."""
    for at in range(0, len(tables.physical), _BATCH):
        part = slice(at, at + _BATCH)
        supplied = {row - at: held for row, held in tables.supplied.items() if at <= row < at + _BATCH}
        yield Tables(tables.physical[part], tables.base[part], tables.via[part], tables.span, supplied)
