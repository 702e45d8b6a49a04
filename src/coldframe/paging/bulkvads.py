"""What the VADs say of a whole address space: promised zeros, and views through their prototype PTEs, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldframe.paging.arrays import BIT, CODE, U64, Columns, Rows, Tables, Views
from coldframe.paging.formats import PAGE_SIZE
from coldframe.paging.intervals import complement, overlaps, remainder
from coldframe.paging.page import State, Via
from coldframe.paging.sources import ListsVads, VadRange

if TYPE_CHECKING:
    from coldframe.paging.bulk import BulkResolver

_LARGE_VIEW = 1 << 15
"""Pages: a view of more is looked at by the pages that its prototype PTEs stand in."""


class BulkVads:
    """Adds to the rows of `bulk` those that only VADs tell of."""

    def __init__(self, bulk: BulkResolver) -> None:
        self.bulk = bulk

    def add(self, vads: ListsVads, start: int, end: int, passed: list[Tables], rows: Rows) -> None:
        """The parts of each VAD of which the tables say nothing: where there is no row yet."""
        told = rows.arrays()
        low, high = complement(told.address, told.address + told.size, start, end)
        if not len(low):
            return
        ranges = sorted(vads.vad_ranges(), key=lambda vad: vad.start)
        gaps, which = overlaps(low, high, *_ends(ranges))
        private = np.array([vad.private for vad in ranges], np.bool_)[which]
        for low, high, via in self._by_table(gaps.low[private], gaps.high[private], passed):
            rows.add(low, high - low, State.DEMAND_ZERO, via)
        runs = [run for vad in ranges if not vad.private for run in vad.prototypes]
        first, pointer, count = np.array(runs, np.uint64).reshape(-1, 3).T
        behind = first + count * np.uint64(PAGE_SIZE)
        for low, high, via in self._by_table(gaps.low[~private], gaps.high[~private], passed):
            pieces, run = overlaps(low, high, first, behind)
            bare = remainder(low, high, pieces.low, pieces.high)
            rows.add(bare.low, bare.high - bare.low, State.UNMAPPED, via[bare.of])
            into = (pieces.low - first[run]) // np.uint64(PAGE_SIZE)
            start_pte = pointer[run] + into * np.uint64(self.bulk.format.entry_size)
            self._views(Views(pieces.low, pieces.high, start_pte, via[pieces.of]), rows)

    def _by_table(self, low: U64, high: U64, passed: list[Tables]) -> list[tuple[U64, U64, NDArray[np.uint8]]]:
        """Gaps with what was passed on the way to each: the VAD, and tables that were reached in an odd way."""
        parts = [(low, high, np.full(len(low), BIT[Via.VAD], np.uint8))]
        for tables in passed:
            base, above = tables.base, tables.base + np.uint64(tables.span)
            split = []
            for start, end, via in parts:
                inside, table = overlaps(start, end, base, above)
                rest = remainder(start, end, inside.low, inside.high)
                split.append((inside.low, inside.high, via[inside.of] | tables.via[table]))
                split.append((rest.low, rest.high, via[rest.of]))
            parts = [part for part in split if len(part[0])]
        return parts

    def _views(self, views: Views, rows: Rows) -> None:
        """Pages of views, through their prototype PTEs; a very large view by what there is of its prototype PTEs."""
        count = (views.high - views.low) // np.uint64(PAGE_SIZE)
        large = count > np.uint64(_LARGE_VIEW)
        pieces = [views.where(~large)]
        for low, high, pointer, via in zip(*(column[large].tolist() for column in views), strict=True):
            pieces.append(self._large_view(low, high, pointer, via, rows))
        low, high, pointer, via = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
        count = (high - low) // np.uint64(PAGE_SIZE)
        rows.expect(int(count.sum()))
        number = count.astype(np.int64)
        total = np.cumsum(number)
        into = (np.arange(total[-1] if len(total) else 0) - np.repeat(total - number, number)).astype(np.uint64)
        address = np.repeat(low, number) + into * np.uint64(PAGE_SIZE)
        place = np.repeat(pointer, number) + into * np.uint64(self.bulk.format.entry_size)
        columns = Columns(address, np.repeat(via, number))
        self.bulk.prototypes(columns, np.arange(len(address)), place)
        rows.add_columns(columns)

    def _large_view(self, low: int, high: int, pointer: int, via: int, rows: Rows) -> Views:
        """The parts of a view whose prototype PTEs there are; rows for the others.

        A view may be of terabytes, most of which nobody ever touched (that of the control-flow bitmap is), and so may
        be its prototype PTEs: their own pages are listed first.
        """
        size = self.bulk.format.entry_size
        via_each = via | BIT[Via.PROTOTYPE]
        if pointer % size or pointer + (high - low) // PAGE_SIZE * size >= 1 << 64:
            rows.add(np.array([low], np.uint64), high - low, State.UNMAPPED, via_each)
            return Views.none()
        inner = Rows()
        end = pointer + (high - low) // PAGE_SIZE * size
        self.bulk.walk(self.bulk.resolver.kernel_dtb, pointer, end - 1, inner)
        held = inner.arrays()
        zero = (held.state == CODE[State.DEMAND_ZERO]) | (held.state == CODE[State.UNMAPPED])
        state = np.where(held.state == CODE[State.DEMAND_ZERO], CODE[State.DEMAND_ZERO], CODE[State.UNMAPPED])
        ptes, row = overlaps(*_one(pointer, end), held.address, held.address + held.size)
        nothing = remainder(*_one(pointer, end), ptes.low, ptes.high)
        scale, base = np.uint64(PAGE_SIZE // size), np.uint64(pointer)
        span = zero[row]
        where = (ptes.low - base) * scale + np.uint64(low)
        until = (ptes.high - base) * scale + np.uint64(low)
        rows.add(where[span], (until - where)[span], state[row][span].astype(np.uint8), via_each)
        rows.add(
            (nothing.low - base) * scale + np.uint64(low),
            (nothing.high - nothing.low) * scale,
            State.UNMAPPED,
            via_each,
        )
        return Views(where[~span], until[~span], ptes.low[~span], np.full(int((~span).sum()), via, np.uint8))


def vad_ends(vads: ListsVads) -> tuple[U64, U64]:
    """The low and the high ends of the VADs, in order, each of shape (n,)."""
    return _ends(sorted(vads.vad_ranges(), key=lambda vad: vad.start))


def _ends(ranges: Sequence[VadRange]) -> tuple[U64, U64]:
    limits = np.array([(vad.start, vad.end) for vad in ranges], np.uint64).reshape(-1, 2)
    return limits[:, 0], limits[:, 1]


def _one(low: int, high: int) -> tuple[U64, U64]:
    return np.array([low], np.uint64), np.array([high], np.uint64)
