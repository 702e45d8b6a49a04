"""Pages as arrays: what the bulk resolver answers, and the rows and gaps it gathers on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError
from coldframe.paging.formats import PAGE_MASK, PAGE_SIZE
from coldframe.paging.page import State, Via

STATES: tuple[State, ...] = tuple(State)
"""A row's state is an index into these."""
VIAS: tuple[Via, ...] = tuple(Via)
"""Bit n of a row's via is set when the nth of these was passed."""
NOWHERE = (1 << 64) - 1
"""In `PageArrays.physical`: the page is not in RAM."""
MOST_ROWS = 1 << 25
"""More rows than any process has pages; tables that point to themselves have more."""

NO_TABLE = np.uint64(NOWHERE & ~PAGE_MASK)

U64 = NDArray[np.uint64]

CODE = {state: code for code, state in enumerate(STATES)}
BIT = {via: 1 << number for number, via in enumerate(VIAS)}


@dataclass(frozen=True)
class PageArrays:
    """n rows, by address. All arrays have shape (n,).

    `address` and `size` are in bytes; `state` indexes `STATES`, `via` is a set of bits by `VIAS`; `physical` is the
    guest-physical address of the row's first byte, or `NOWHERE`; `number` and `offset` are the paging file's number
    and the byte offset in it (state pagefile or compressed); `subsection` is the kernel-virtual address of the
    `_SUBSECTION` (state subsection). Columns that do not apply are 0.
    """

    address: U64
    size: U64
    state: NDArray[np.uint8]
    via: NDArray[np.uint8]
    physical: U64
    number: NDArray[np.uint8]
    offset: U64
    subsection: U64

    def __len__(self) -> int:
        return len(self.address)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which rows' bytes can be had: in RAM, or promised zeros."""
        found: NDArray[np.bool_] = (self.physical != np.uint64(NOWHERE)) | (self.state == CODE[State.DEMAND_ZERO])
        return found

    def census(self) -> Census:
        """How many 4 KB pages are in each state, were reached by each indirection, and can be read."""
        pages = self.size // np.uint64(PAGE_SIZE)
        readable = self.readable
        return Census(
            {state: int(pages[self.state == code].sum()) for code, state in enumerate(STATES)},
            {via: int(pages[(self.via & bit) != 0].sum()) for via, bit in BIT.items()},
            int(pages[readable].sum()),
            int(pages[~readable].sum()),
        )


@dataclass(frozen=True)
class Census:
    """Counts of 4 KB pages."""

    pages: dict[State, int]
    via: dict[Via, int]
    readable: int
    unreadable: int


class Entries(NamedTuple):
    """Entries of one level: the address each maps, its stored value, the indirections passed before it."""

    address: U64
    stored: U64
    via: NDArray[np.uint8]

    def where(self, mask: NDArray[np.bool_]) -> Entries:
        """Those of the mask, shape (n,)."""
        return Entries(self.address[mask], self.stored[mask], self.via[mask])


class Tables(NamedTuple):
    """Tables of one level: where each is, the first address it maps, the indirections passed, bytes from a source by
    row."""

    physical: U64
    base: U64
    via: NDArray[np.uint8]
    supplied: dict[int, bytes]


class Rows:
    """Rows in the making: columns of blocks."""

    def __init__(self) -> None:
        self.blocks: list[tuple[NDArray[np.generic], ...]] = []
        self.count = 0

    def add(
        self,
        address: U64,
        size: int | U64,
        state: State | NDArray[np.uint8],
        via: int | NDArray[np.uint8],
        *,
        physical: int | U64 = NOWHERE,
        number: int | NDArray[np.uint8] = 0,
        offset: int | U64 = 0,
        subsection: int | U64 = 0,
    ) -> None:
        """Append rows; a plain number stands for a column of it."""
        count = len(address)
        if not count:
            return
        self.count += count
        if self.count > MOST_ROWS:
            raise FormatError(
                f"the page tables map more than {MOST_ROWS} pages, more than any process has: they point to themselves"
            )
        code = CODE[state] if isinstance(state, State) else state
        columns = ((size, "u8"), (code, "u1"), (via, "u1"), (physical, "u8"))
        more = ((number, "u1"), (offset, "u8"), (subsection, "u8"))
        full = (np.broadcast_to(np.asarray(value, dtype=kind), (count,)) for value, kind in columns + more)
        self.blocks.append((address, *full))

    def arrays(self) -> PageArrays:
        """The rows, by address."""
        kinds = ("u8", "u8", "u1", "u1", "u8", "u1", "u8", "u8")
        columns = [
            np.concatenate([block[number] for block in self.blocks]) if self.blocks else np.empty(0, kind)
            for number, kind in enumerate(kinds)
        ]
        order = np.argsort(columns[0], kind="stable")
        return PageArrays(*(column[order] for column in columns))


@dataclass
class Gaps:
    """Ranges of which only the VADs can tell, with the indirections passed so far."""

    address: list[U64]
    size: list[U64]
    via: list[NDArray[np.uint8]]

    def add(self, entries: Entries, size: int) -> None:
        """Note that entries, each of which maps `size` bytes, say nothing of them."""
        if len(entries.address):
            self.address.append(entries.address)
            self.size.append(np.full(len(entries.address), size, dtype=np.uint64))
            self.via.append(entries.via)

    def merged(self) -> tuple[U64, U64, NDArray[np.uint8]]:
        """Start, end and via of each, in order, neighbours of the same via made one."""
        if not self.address:
            return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint8)
        start = np.concatenate(self.address)
        order = np.argsort(start, kind="stable")
        start = start[order]
        end = start + np.concatenate(self.size)[order]
        via = np.concatenate(self.via)[order]
        first = np.concatenate(([True], (start[1:] != end[:-1]) | (via[1:] != via[:-1])))
        last = np.concatenate((first[1:], [True]))
        return start[first], end[last], via[first]
