"""A whole address space at once: every page's state as arrays.

The tables are read level by level, each level's entries classified together; prototype PTEs are read in batches. What
the single resolver says of a page is what stands here of it (the tests hold them together on every state and on
random tables); where an entry is rare and odd, the single resolver is asked.

One row is a page, a large page, or a span of pages that are alike: promised zeros, or a table that cannot be read.
Pages of which neither the tables nor the VADs say anything have no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError
from coldframe.paging.arrays import (
    BIT,
    CODE,
    MOST_ROWS,
    NO_TABLE,
    NOWHERE,
    U64,
    Entries,
    Gaps,
    PageArrays,
    Rows,
    Tables,
)
from coldframe.paging.formats import LARGE, PAGE_MASK, PAGE_SIZE, VALID, Level
from coldframe.paging.layout import Bits, PteLayout, SplitAddress
from coldframe.paging.notes import ABSENT, ZERO
from coldframe.paging.page import State, Via
from coldframe.paging.resolver import Resolver
from coldframe.paging.sources import ListsVads


class BulkResolver:
    """Resolves whole address spaces of the guest that `resolver` is of."""

    def __init__(self, resolver: Resolver) -> None:
        if resolver.layout is None:
            raise FormatError("an address space cannot be listed before the kernel's types are known")
        self.resolver = resolver
        self.layout: PteLayout = resolver.layout
        self.format = resolver.format
        self.physical = resolver.physical
        self._kind = "<u8" if self.format.entry_size == 8 else "<u4"
        self._frame = np.uint64(self.format.frame & self.layout.hardware_frame)
        self._transition_frame = np.uint64(self.format.frame & self.layout.transition_frame)

    def pages(self, dtb: int, vads: ListsVads | None = None, *, start: int = 0, end: int | None = None) -> PageArrays:
        """What lies from `start` to `end` in the address space of `dtb`; by default the user half.

        A row may reach beyond either end where a large page or a span does. Raises `FormatError` for tables that map
        more pages than there can be.
        """
        rows, gaps = Rows(), Gaps([], [], [])
        self._walk(dtb, start, (self.format.user_end if end is None else end) - 1, rows, gaps)
        if vads is not None:
            self._vads(vads, gaps, rows)
        return rows.arrays()

    def kernel_pages(self, dtb: int) -> PageArrays:
        """The kernel half of the address space of `dtb`."""
        return self.pages(dtb, start=self.format.kernel_start, end=1 << (64 if self.format.canonical else 32))

    # Tables

    def _walk(self, dtb: int, first: int, last: int, rows: Rows, gaps: Gaps) -> None:
        tables = Tables(
            np.array([dtb & self.format.root], np.uint64), np.zeros(1, np.uint64), np.zeros(1, np.uint8), {}
        )
        for level in self.format.levels:
            count, span = 1 << level.bits, 1 << level.shift
            if len(tables.physical) > MOST_ROWS // count:
                raise FormatError(f"{len(tables.physical)} tables of {level.name}s: they point to themselves")
            stored, readable = self._read_tables(tables, count)
            index = np.arange(count, dtype=np.uint64) << np.uint64(level.shift)
            address = self._extended((tables.base[:, None] + index).ravel())
            wanted = (address + np.uint64(span - 1) >= np.uint64(first)) & (address <= np.uint64(last))
            entries = Entries(address, stored.ravel(), np.repeat(tables.via, count))
            lost = entries.where(wanted & ~readable.ravel())
            rows.add(lost.address, span, State.UNMAPPED, lost.via)
            entries = entries.where(wanted & readable.ravel())
            if level is self.format.levels[-1]:
                self._leaves(entries, rows, gaps)
            else:
                tables = self._next(level, entries, rows, gaps)

    def _extended(self, address: U64) -> U64:
        if not self.format.canonical:
            return address
        high = np.uint64((1 << 64) - (1 << self.format.address_bits))
        sign = np.uint64(1 << (self.format.address_bits - 1))
        return np.where(address & sign, address | high, address)

    def _read_tables(self, tables: Tables, count: int) -> tuple[U64, NDArray[np.bool_]]:
        """The entries of n tables, shape (n, count), and which of them could be read."""
        size = self.format.entry_size
        held, fine = self.physical.read_many(tables.physical, count * size)
        entries = held.view(self._kind).astype(np.uint64)
        readable = np.repeat(fine[:, None], count, axis=1)
        for row in np.nonzero(~fine)[0].tolist():
            if row in tables.supplied:
                entries[row], readable[row] = np.frombuffer(tables.supplied[row], dtype=self._kind), True
                continue
            places = tables.physical[row] + np.arange(0, count * size, size, dtype=np.uint64)
            each, some = self.physical.read_many(places, size)  # RAM may end within a table
            entries[row], readable[row] = each.view(self._kind).ravel().astype(np.uint64), some
        return entries, readable

    def _next(self, level: Level, entries: Entries, rows: Rows, gaps: Gaps) -> Tables:
        """What entries above the PTEs say, and the tables that they lead to."""
        stored, span = entries.stored, 1 << level.shift
        value = self._unswizzled(stored)
        valid = _has(stored, VALID)
        large = valid & _has(stored, LARGE) if level.large_frame else np.zeros_like(valid)
        self._large(level, entries.where(large), rows)
        transition = ~valid & self._is_transition(value)
        rest = ~valid & ~transition
        gap = rest & ((value == 0) | self._is_marker(stored))
        prototype = rest & ~gap & _has(value, self.layout.prototype)
        odd = entries.where(prototype)
        rows.add(odd.address, span, State.UNMAPPED, odd.via)
        gap |= rest & ~prototype & (_get(value, self.layout.page_file_high) == 0)
        gaps.add(entries.where(gap), span)
        paged = rest & ~prototype & ~gap
        supplied = self._paged_tables(span, entries, value, paged, rows)
        via = entries.via | np.where(transition, BIT[Via.TRANSITION_TABLE], 0).astype(np.uint8)
        via |= np.where(paged, BIT[Via.PAGED_TABLE], 0).astype(np.uint8)
        follow = (valid & ~large) | transition
        follow[list(supplied)] = True
        table = np.where(valid, stored & np.uint64(self.format.frame), value & self._transition_frame)
        table[paged] = NO_TABLE
        place = np.cumsum(follow) - 1
        bytes_of = {int(place[row]): data for row, data in supplied.items()}
        return Tables(table[follow], entries.address[follow], via[follow], bytes_of)

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
            for row in np.nonzero(paged)[0].tolist():
                held = self.resolver.supplied_table(int(entries.address[row]), int(value[row]))
                if held is not None:
                    supplied[row] = held
        gone = paged.copy()
        gone[list(supplied)] = False
        state, number, offset = self._slots(value[gone])
        via = entries.via[gone] | np.uint8(BIT[Via.PAGED_TABLE])
        rows.add(entries.address[gone], span, state, via, number=number, offset=offset)
        return supplied

    # PTEs

    def _leaves(self, entries: Entries, rows: Rows, gaps: Gaps) -> None:
        valid = _has(entries.stored, VALID)
        value = self._unswizzled(entries.stored)
        gap = ~valid & ((value == 0) | (self._is_marker(entries.stored) & ~self._is_transition(value)))
        gaps.add(entries.where(gap), PAGE_SIZE)
        prototype = ~valid & ~gap & _has(value, self.layout.prototype)
        behind = entries.where(prototype)
        self._prototypes(behind.address, self._prototype_addresses(value[prototype]), behind.via, rows)
        self._software(entries.where(~(gap | prototype)), rows)

    def _software(self, entries: Entries, rows: Rows) -> None:
        """Valid, transition, demand-zero, compressed and paging-file entries."""
        address, stored, via = entries
        valid = _has(stored, VALID)
        value = self._unswizzled(stored)
        transition = ~valid & self._is_transition(value)
        frame = np.where(valid, stored & self._frame, value & self._transition_frame)
        frame = np.where(self.physical.contains_many(frame), frame, np.uint64(NOWHERE))
        for mask, state in ((valid, State.VALID), (transition, State.TRANSITION)):
            rows.add(address[mask], PAGE_SIZE, state, via[mask], physical=frame[mask])
        rest = ~(valid | transition)
        zero = rest & (_get(value, self.layout.page_file_high) == 0)
        rows.add(address[zero], PAGE_SIZE, State.DEMAND_ZERO, via[zero])
        paged = rest & ~zero
        code, number, offset = self._slots(value[paged])
        rows.add(address[paged], PAGE_SIZE, code, via[paged], number=number, offset=offset)

    # Prototype PTEs

    def _prototypes(self, address: U64, pointer: U64, via: NDArray[np.uint8], rows: Rows) -> None:
        """Pages behind the prototype PTEs at kernel-virtual `pointer`.

        Those stand in few pages of the pool: the single resolver finds each of these, their entries are read at once.
        """
        via = via | np.uint8(BIT[Via.PROTOTYPE])
        size = np.uint64(self.format.entry_size)
        aligned = (pointer & (size - np.uint64(1))) == 0
        rows.add(address[~aligned], PAGE_SIZE, State.UNMAPPED, via[~aligned])
        address, pointer, via = address[aligned], pointer[aligned], via[aligned]
        holders, which = np.unique(pointer & ~np.uint64(PAGE_MASK), return_inverse=True)
        kernel = self.resolver.kernel_dtb
        found = [self.resolver.locate(kernel, holder, depth=1) for holder in holders.tolist()]
        answer = np.array(found, dtype=np.int64)[which]
        zero = answer == ZERO
        rows.add(address[zero], PAGE_SIZE, State.DEMAND_ZERO, via[zero])
        there = answer >= 0
        places = answer[there].astype(np.uint64) | (pointer[there] & np.uint64(PAGE_MASK))
        held, fine = self.physical.read_many(places, int(size))
        entries = Entries(address[there], held.view(self._kind).ravel().astype(np.uint64), via[there])
        lost = entries.where(~fine)
        rows.add(lost.address, PAGE_SIZE, State.UNMAPPED, lost.via)
        self._inner(entries.where(fine), rows)
        for number in [number for number, where in enumerate(found) if where == ABSENT]:
            mine = which == number
            self._lost_prototypes(int(holders[number]), address[mine], pointer[mine], via[mine], rows)

    def _lost_prototypes(self, holder: int, address: U64, pointer: U64, via: NDArray[np.uint8], rows: Rows) -> None:
        """Prototype PTEs whose own page, `holder`, left RAM."""
        page = self.resolver.resolve(self.resolver.kernel_dtb, holder, depth=1)
        held = self.resolver.supplied(page)
        if held is not None:
            index = (pointer & np.uint64(PAGE_MASK)).astype(np.int64) // self.format.entry_size
            stored = np.frombuffer(held, dtype=self._kind).astype(np.uint64)[index]
            self._inner(Entries(address, stored, via), rows)
        elif page.pagefile is not None:
            slot = page.pagefile
            rows.add(address, PAGE_SIZE, page.state, via, number=slot.number, offset=slot.offset)
        else:
            rows.add(address, PAGE_SIZE, State.UNMAPPED, via)

    def _inner(self, entries: Entries, rows: Rows) -> None:
        """What prototype PTEs say."""
        value = self._unswizzled(entries.stored)
        file = ~_has(entries.stored, VALID) & _has(value, self.layout.prototype)
        subsection = self._subsection_addresses(value[file])
        rows.add(entries.address[file], PAGE_SIZE, State.SUBSECTION, entries.via[file], subsection=subsection)
        self._software(entries.where(~file), rows)

    # VADs

    def _vads(self, vads: ListsVads, gaps: Gaps, rows: Rows) -> None:
        """The parts of each VAD of which the tables say nothing."""
        start, end, via = gaps.merged()
        for vad in vads.vad_ranges():
            first = int(np.searchsorted(end, np.uint64(vad.start), side="right"))
            last = int(np.searchsorted(start, np.uint64(vad.end), side="left"))
            if first >= last:
                continue
            low = np.maximum(start[first:last], np.uint64(vad.start))
            high = np.minimum(end[first:last], np.uint64(vad.end))
            passed = via[first:last] | np.uint8(BIT[Via.VAD])
            if vad.private:
                rows.add(low, high - low, State.DEMAND_ZERO, passed)
                continue
            self._mapped(low, high, passed, vad.prototypes, rows)

    def _mapped(
        self,
        low: U64,
        high: U64,
        via: NDArray[np.uint8],
        prototypes: Iterable[tuple[int, int, int]],
        rows: Rows,
    ) -> None:
        """Gaps in a view: the pages that have prototype PTEs, and those that have none."""
        size = np.uint64(self.format.entry_size)
        covered = [(start, start + count * PAGE_SIZE, pointer) for start, pointer, count in prototypes]
        for begin, end, passed in zip(low.tolist(), high.tolist(), via.tolist(), strict=True):
            at = begin
            for start, stop, pointer in sorted(covered):
                if stop <= at or start >= end:
                    continue
                if start > at:
                    self._bare(at, start, passed, rows)
                    at = start
                until = min(stop, end)
                address = np.arange(at, until, PAGE_SIZE, dtype=np.uint64)
                offset = np.uint64((at - start) // PAGE_SIZE) + np.arange(len(address), dtype=np.uint64)
                via_each = np.full(len(address), passed, dtype=np.uint8)
                self._prototypes(address, np.uint64(pointer) + offset * size, via_each, rows)
                at = until
            if at < end:
                self._bare(at, end, passed, rows)

    def _bare(self, start: int, end: int, via: int, rows: Rows) -> None:
        rows.add(np.array([start], dtype=np.uint64), end - start, State.UNMAPPED, via)

    # Entries

    def _unswizzled(self, stored: U64) -> U64:
        mask, bit = np.uint64(self.resolver.invalid_pte_mask), np.uint64(self.layout.swizzle_bit)
        if not mask or not bit:
            return stored
        return np.where(stored & bit, stored, stored & ~mask)

    def _is_transition(self, value: U64) -> NDArray[np.bool_]:
        both = np.uint64(self.layout.transition | self.layout.prototype)
        found: NDArray[np.bool_] = (value & both) == np.uint64(self.layout.transition)
        return found

    def _is_marker(self, stored: U64) -> NDArray[np.bool_]:
        high = self.layout.page_file_high
        found: NDArray[np.bool_] = _get(stored, high) == np.uint64(high.largest)
        return found

    def _slots(self, value: U64) -> tuple[NDArray[np.uint8], NDArray[np.uint8], U64]:
        """State, number and offset of entries in paging files."""
        number = _get(value, self.layout.page_file_low)
        offset = _get(value, self.layout.page_file_high) * np.uint64(PAGE_SIZE)
        store = self.resolver.store_number()
        compressed = number == np.uint64(NOWHERE if store is None else store)
        state = np.where(compressed, CODE[State.COMPRESSED], CODE[State.PAGEFILE]).astype(np.uint8)
        return state, number.astype(np.uint8), offset

    def _prototype_addresses(self, value: U64) -> U64:
        """Kernel-virtual addresses of prototype PTEs; one that no PTE can have (1) where it is not known."""
        decode = self.layout.prototype_address
        return self._addresses(value, self.layout.prototype_address_bits, lambda entry: decode(entry) or 1)

    def _subsection_addresses(self, value: U64) -> U64:
        """Kernel-virtual addresses of subsections; 0 where one is not known."""
        decode = self.layout.subsection_address
        return self._addresses(value, self.layout.subsection_address_bits, lambda entry: decode(entry) or 0)

    def _addresses(self, value: U64, split: SplitAddress, decode: Callable[[int], int]) -> U64:
        if split.is_relative:
            return np.array([decode(entry) for entry in value.tolist()], dtype=np.uint64)
        address = _get(value, split.high)
        if split.high.length > 32:
            sign = np.uint64(1 << (split.high.length - 1))
            address = np.where(address & sign, address | np.uint64((1 << 64) - (1 << split.high.length)), address)
        return address


def _has(values: U64, mask: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (values & np.uint64(mask)) != 0
    return found


def _get(values: U64, bits: Bits) -> U64:
    return (values >> np.uint64(bits.position)) & np.uint64(bits.largest)
