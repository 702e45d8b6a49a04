"""A whole address space at once: every page's state as arrays.

The tables are read level by level, each level's entries classified together; prototype PTEs are read in batches. What
the single resolver says of a page is what stands here of it (the tests hold them together on every state and on
random tables); where an entry is rare and odd, the single resolver is asked.

One row is a page, a large page, or a span of pages that are alike: promised zeros, or a table that cannot be read.
Pages of which neither the tables nor the VADs say anything have no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    PageArrays,
    Rows,
    Tables,
)
from coldframe.paging.bulkvads import BulkVads
from coldframe.paging.formats import LARGE, PAGE_MASK, PAGE_SIZE, VALID, Level
from coldframe.paging.layout import Bits, PteLayout, SplitAddress
from coldframe.paging.notes import ABSENT, ZERO
from coldframe.paging.page import State, Via
from coldframe.paging.resolver import Resolver
from coldframe.paging.sources import ListsVads

_BATCH = 256


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
        rows = Rows()
        start &= ~PAGE_MASK
        end = self.format.user_end if end is None else -(-end // PAGE_SIZE) * PAGE_SIZE
        passed = self.walk(dtb, start, end - 1, rows)
        if vads is not None and start < self.format.user_end:
            BulkVads(self).add(vads, start, min(end, self.format.user_end), passed, rows)
        return rows.arrays()

    def kernel_pages(self, dtb: int) -> PageArrays:
        """The kernel half of the address space of `dtb`."""
        return self.pages(dtb, start=self.format.kernel_start, end=1 << (64 if self.format.canonical else 32))

    # Tables

    def walk(self, dtb: int, first: int, last: int, rows: Rows) -> list[Tables]:
        """Rows for what the tables map from `first` to `last`; returns the tables that were reached in an odd way."""
        tables = Tables(
            np.array([dtb & self.format.root], np.uint64), np.zeros(1, np.uint64), np.zeros(1, np.uint8), 0, {}
        )
        passed: list[Tables] = []
        for level in self.format.levels:
            count = 1 << level.bits
            if len(tables.physical) > MOST_ROWS // count:
                raise FormatError(f"{len(tables.physical)} tables of {level.name}s: they point to themselves")
            if level is self.format.levels[-1]:
                for some in _batches(tables):
                    self._leaves(self._entries(level, some, first, last, rows), rows)
                break
            tables = self._next(level, self._entries(level, tables, first, last, rows), rows)
            odd = tables.via != 0
            if odd.any():
                passed.append(Tables(tables.physical[odd], tables.base[odd], tables.via[odd], tables.span, {}))
        return passed

    def _entries(self, level: Level, tables: Tables, first: int, last: int, rows: Rows) -> Entries:
        """The entries of all tables that are not zero and map something from `first` to `last`, by address."""
        span = 1 << level.shift
        count = 1 << level.bits
        stored = self._read_tables(level, tables, first, last, rows).ravel()
        if stored.all():
            offset = np.arange(0, count << level.shift, span, dtype=np.uint64)
            address = (tables.base[:, None] + offset).ravel()
            via = np.repeat(tables.via, count)
        else:
            index = np.flatnonzero(stored)
            stored, table = stored[index], index >> level.bits
            address = ((index & (count - 1)) << level.shift).view(np.uint64)
            address += tables.base[table]
            via = tables.via[table]
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
        entries = held.view(self._kind).astype(np.uint64, copy=False)
        for row in np.flatnonzero(~fine).tolist():
            if row in tables.supplied:
                entries[row] = np.frombuffer(tables.supplied[row], dtype=self._kind)
                continue
            places = tables.physical[row] + np.arange(0, count * size, size, dtype=np.uint64)
            each, some = self.physical.read_many(places, size)  # RAM may end within a table
            entries[row] = each.view(self._kind).ravel()
            address = tables.base[row] + (np.flatnonzero(~some).astype(np.uint64) << np.uint64(level.shift))
            address = self._extended(address)
            inside = (address + np.uint64((1 << level.shift) - 1) >= np.uint64(first)) & (address <= np.uint64(last))
            rows.add(address[inside], 1 << level.shift, State.UNMAPPED, int(tables.via[row]))
        return entries

    def _next(self, level: Level, entries: Entries, rows: Rows) -> Tables:
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

    def _leaves(self, entries: Entries, rows: Rows) -> None:
        valid = (entries.stored & np.uint64(VALID)).astype(np.bool_)
        if valid.all():
            self._valid(entries, rows)
            return
        self._valid(entries.where(np.flatnonzero(valid)), rows)
        entries = entries.where(np.flatnonzero(~valid))
        value = self._unswizzled(entries.stored)
        gap = (value == 0) | (self._is_marker(entries.stored) & ~self._is_transition(value))
        prototype = ~gap & _has(value, self.layout.prototype)
        behind = entries.where(prototype)
        self.prototypes(behind.address, self._prototype_addresses(value[prototype]), behind.via, rows)
        self._software(entries.where(~(gap | prototype)), rows)

    def _valid(self, entries: Entries, rows: Rows) -> None:
        rows.add(
            entries.address, PAGE_SIZE, State.VALID, entries.via, physical=self._in_ram(entries.stored & self._frame)
        )

    def _in_ram(self, frame: U64) -> U64:
        """The frames' physical addresses, `NOWHERE` for one outside the guest's RAM."""
        there = self.physical.contains_many(frame)
        return frame if there.all() else np.where(there, frame, np.uint64(NOWHERE))

    def _software(self, entries: Entries, rows: Rows) -> None:
        """Valid, transition, demand-zero, compressed and paging-file entries."""
        address, stored, via = entries
        valid = _has(stored, VALID)
        value = self._unswizzled(stored)
        transition = ~valid & self._is_transition(value)
        frame = self._in_ram(np.where(valid, stored & self._frame, value & self._transition_frame))
        for mask, state in ((valid, State.VALID), (transition, State.TRANSITION)):
            if mask.any():
                rows.add(address[mask], PAGE_SIZE, state, via[mask], physical=frame[mask])
        rest = ~(valid | transition)
        zero = rest & (_get(value, self.layout.page_file_high) == 0)
        rows.add(address[zero], PAGE_SIZE, State.DEMAND_ZERO, via[zero])
        paged = rest & ~zero
        code, number, offset = self._slots(value[paged])
        rows.add(address[paged], PAGE_SIZE, code, via[paged], number=number, offset=offset)

    # Prototype PTEs

    def prototypes(self, address: U64, pointer: U64, via: NDArray[np.uint8], rows: Rows) -> None:
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


def _batches(tables: Tables) -> Iterator[Tables]:
    """Tables a few at a time, so that what is made of them stays in the processor's cache."""
    for at in range(0, len(tables.physical), _BATCH):
        part = slice(at, at + _BATCH)
        supplied = {row - at: held for row, held in tables.supplied.items() if at <= row < at + _BATCH}
        yield Tables(tables.physical[part], tables.base[part], tables.via[part], tables.span, supplied)


def _has(values: U64, mask: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (values & np.uint64(mask)) != 0
    return found


def _get(values: U64, bits: Bits) -> U64:
    return (values >> np.uint64(bits.position)) & np.uint64(bits.largest)
