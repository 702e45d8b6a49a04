"""What page-table entries say, many at once: the decoding half of the bulk resolver.

The order of tests is the single resolver's (`paging.resolver`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError
from coldframe.paging.arrays import BIT, CODE, NOWHERE, U64, Columns, Entries, Index, Rows
from coldframe.paging.formats import PAGE_MASK, PAGE_SIZE, VALID
from coldframe.paging.layout import Bits, PteLayout, SplitAddress
from coldframe.paging.notes import ABSENT, ZERO
from coldframe.paging.page import State, Via
from coldframe.paging.resolver import Resolver


class BulkEntries:
    """Decodes PTEs and prototype PTEs of the guest that `resolver` is of."""

    def __init__(self, resolver: Resolver) -> None:
        if resolver.layout is None:
            raise FormatError("an address space cannot be listed before the kernel's types are known")
        self.resolver = resolver
        self.layout: PteLayout = resolver.layout
        self.format = resolver.format
        self.physical = resolver.physical
        self.kind = "<u8" if self.format.entry_size == 8 else "<u4"
        self._frame = np.uint64(self.format.frame & self.layout.hardware_frame)
        self.transition_frame = np.uint64(self.format.frame & self.layout.transition_frame)

    # PTEs

    def leaves(self, entries: Entries, rows: Rows) -> None:
        """Rows for PTEs, none of them zero."""
        address, stored, via = entries
        valid = (stored & np.uint64(VALID)).astype(np.bool_)
        if valid.all():
            rows.add(address, PAGE_SIZE, State.VALID, via, physical=self._in_ram(stored & self._frame))
            return
        columns = Columns(address, via)
        columns.state, columns.physical, rest, value = self._resident(stored, valid)
        gap = (value == 0) | self.is_marker(stored.take(rest))
        prototype = has(value, self.layout.prototype) & ~gap
        software = ~(prototype | gap)
        self._software(columns, rest.compress(software), value.compress(software))
        if prototype.any():
            pointer = self.prototype_addresses(value.compress(prototype))
            self.prototypes(columns, rest.compress(prototype), pointer)
        keep = None
        if gap.any():
            keep = np.ones(len(address), np.bool_)
            keep[rest.compress(gap)] = False
        rows.add_columns(columns, keep)

    def _resident(self, stored: U64, valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], U64, Index, U64]:
        """What is said by entries that are valid or in transition: state and physical address, shape (n,), of all; and
        the rows and (unswizzled) values of the others, whose state is `unmapped` so far."""
        state = np.full(len(stored), CODE[State.VALID], np.uint8)
        physical = stored & self._frame
        invalid = np.flatnonzero(~valid)
        value = self.unswizzled(stored.take(invalid))
        transition = self.is_transition(value)
        state[invalid] = np.where(transition, CODE[State.TRANSITION], CODE[State.UNMAPPED]).astype(np.uint8)
        runs = self.physical.runs
        anywhere = np.uint64(runs[0].start if runs else 0)  # so that the others do not slow the look-up in RAM down
        physical[invalid] = np.where(transition, value & self.transition_frame, anywhere)
        physical = self._in_ram(physical)
        rest = invalid.compress(~transition)
        physical[rest] = NOWHERE
        return state, physical, rest, value.compress(~transition)

    def _in_ram(self, frame: U64) -> U64:
        """The frames' physical addresses, `NOWHERE` for one outside the guest's RAM."""
        there = self.physical.contains_many(frame)
        return frame if there.all() else np.where(there, frame, np.uint64(NOWHERE))

    def _software(self, columns: Columns, where: Index, value: U64) -> None:
        """Demand-zero, compressed and paging-file entries."""
        paged = get(value, self.layout.page_file_high) != 0
        columns.state[where] = CODE[State.DEMAND_ZERO]
        gone = where.compress(paged)
        if len(gone):
            state, number, offset = self.slots(value.compress(paged))
            columns.state[gone] = state
            columns.put(gone, number=number, offset=offset)

    # Prototype PTEs

    def prototypes(self, columns: Columns, where: Index, pointer: U64) -> None:
        """The rows `where`, whose prototype PTEs are at kernel-virtual `pointer`.

        Those stand in few pages of the pool: the single resolver finds each of these, their entries are read at once.
        """
        if not len(where):
            return
        columns.via[where] |= np.uint8(BIT[Via.PROTOTYPE])
        size = self.format.entry_size
        aligned = (pointer & np.uint64(size - 1)) == 0
        if not aligned.all():
            where, pointer = where.compress(aligned), pointer.compress(aligned)
        holders, which = _distinct(pointer & ~np.uint64(PAGE_MASK))
        kernel = self.resolver.kernel_dtb
        found = [self.resolver.locate(kernel, holder, depth=1) for holder in holders.tolist()]
        answer = np.array(found, dtype=np.int64).take(which)
        there = answer >= 0
        if there.all():
            self._inner(columns, where, pointer, *self._read_ptes(answer, pointer))
            return
        columns.state[where.compress(answer == ZERO)] = CODE[State.DEMAND_ZERO]
        held, at = where.compress(there), pointer.compress(there)
        self._inner(columns, held, at, *self._read_ptes(answer.compress(there), at))
        for number in [number for number, place in enumerate(found) if place == ABSENT]:
            mine = which == number
            self._lost_prototypes(int(holders[number]), columns, where.compress(mine), pointer.compress(mine))

    def _read_ptes(self, holder: Index, pointer: U64) -> tuple[U64, NDArray[np.bool_]]:
        places = holder.astype(np.uint64) | (pointer & np.uint64(PAGE_MASK))
        held, fine = self.physical.read_many(places, self.format.entry_size)
        return held.view(self.kind).ravel().astype(np.uint64, copy=False), fine

    def _lost_prototypes(self, holder: int, columns: Columns, where: Index, pointer: U64) -> None:
        """Prototype PTEs whose own page, `holder`, left RAM."""
        page = self.resolver.resolve(self.resolver.kernel_dtb, holder, depth=1)
        held = self.resolver.supplied(page)
        if held is not None:
            index = (pointer & np.uint64(PAGE_MASK)).astype(np.int64) // self.format.entry_size
            stored = np.frombuffer(held, dtype=self.kind).astype(np.uint64).take(index)
            self._inner(columns, where, pointer, stored, np.ones(len(where), np.bool_))
        elif page.pagefile is not None:
            slot = page.pagefile
            columns.state[where] = CODE[page.state]
            number, offset = np.full(len(where), slot.number, np.uint8), np.full(len(where), slot.offset, np.uint64)
            columns.put(where, number=number, offset=offset)

    def _inner(self, columns: Columns, where: Index, pointer: U64, stored: U64, fine: NDArray[np.bool_]) -> None:
        """What prototype PTEs say; those that could not be read leave their rows unmapped."""
        if not fine.all():
            where, pointer, stored = where.compress(fine), pointer.compress(fine), stored.compress(fine)
        valid = (stored & np.uint64(VALID)).astype(np.bool_)
        columns.state[where], columns.physical[where], rest, value = self._resident(stored, valid)
        if not len(rest):
            return
        file = has(value, self.layout.prototype)
        self._software(columns, where.take(rest.compress(~file)), value.compress(~file))
        behind = rest.compress(file)
        subsection = self.subsection_addresses(value.compress(file))
        columns.state[where.take(behind)] = CODE[State.SUBSECTION]
        columns.put(where.take(behind), subsection=subsection, prototype_pte=pointer.take(behind))

    # Fields

    def unswizzled(self, stored: U64) -> U64:
        """The invalid entries that Windows meant by what is stored."""
        mask, bit = np.uint64(self.resolver.invalid_pte_mask), np.uint64(self.layout.swizzle_bit)
        if not mask or not bit:
            return stored
        return np.where(stored & bit, stored, stored & ~mask)

    def is_transition(self, value: U64) -> NDArray[np.bool_]:
        """Which invalid entries are in transition."""
        both = np.uint64(self.layout.transition | self.layout.prototype)
        found: NDArray[np.bool_] = (value & both) == np.uint64(self.layout.transition)
        if self.layout.swap_entries:
            found &= has(value, self.layout.protection.mask)
        return found

    def is_marker(self, stored: U64) -> NDArray[np.bool_]:
        """Which invalid entries, as stored, say "look in the VAD"."""
        marker = np.uint64(self.layout.vad_marker)
        found: NDArray[np.bool_] = (stored & marker) == marker
        return found

    def slots(self, value: U64) -> tuple[NDArray[np.uint8], NDArray[np.uint8], U64]:
        """State, number and offset of entries in paging files."""
        number = get(value, self.layout.page_file_low)
        slot = get(value, self.layout.page_file_high) - np.uint64(self.layout.swap_entries)
        offset = slot * np.uint64(PAGE_SIZE)
        store = self.resolver.store_number()
        compressed = number == np.uint64(NOWHERE if store is None else store)
        state = np.where(compressed, CODE[State.COMPRESSED], CODE[State.PAGEFILE]).astype(np.uint8)
        return state, number.astype(np.uint8), offset

    def prototype_addresses(self, value: U64) -> U64:
        """Kernel-virtual addresses of prototype PTEs; one that no PTE can have (1) where it is not known."""
        decode = self.layout.prototype_address
        return self._addresses(value, self.layout.prototype_address_bits, lambda entry: decode(entry) or 1)

    def subsection_addresses(self, value: U64) -> U64:
        """Kernel-virtual addresses of subsections; 0 where one is not known."""
        decode = self.layout.subsection_address
        return self._addresses(value, self.layout.subsection_address_bits, lambda entry: decode(entry) or 0)

    def _addresses(self, value: U64, split: SplitAddress, decode: Callable[[int], int]) -> U64:
        if split.is_split:
            return np.array([decode(entry) for entry in value.tolist()], dtype=np.uint64)
        address = get(value, split.high)
        if split.high.length > 32:
            sign = np.uint64(1 << (split.high.length - 1))
            address = np.where(address & sign, address | np.uint64((1 << 64) - (1 << split.high.length)), address)
        return address


def has(values: U64, mask: int) -> NDArray[np.bool_]:
    """Which values have a bit of the mask."""
    found: NDArray[np.bool_] = (values & np.uint64(mask)) != 0
    return found


def get(values: U64, bits: Bits) -> U64:
    """A field of each value."""
    return (values >> np.uint64(bits.position)) & np.uint64(bits.largest)


def _distinct(values: U64) -> tuple[U64, Index]:
    """The distinct values, and of each value which it is; quick where equal ones stand side by side."""
    if not len(values):
        return values, np.empty(0, np.int64)
    changes = np.empty(len(values), np.bool_)
    changes[0] = True
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    distinct, which = np.unique(values.compress(changes), return_inverse=True)
    return distinct, which.take(np.cumsum(changes) - 1)
