"""Pages as arrays: what the bulk resolver answers, and the rows it gathers on the way."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError
from coldframe.paging.formats import PAGE_MASK, PAGE_SIZE
from coldframe.paging.intervals import overlaps
from coldframe.paging.page import State, Via
from coldframe.paging.sources import AbsentPages

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
Index = NDArray[np.int64]

_NONE = np.empty(0, np.uint64)

CODE = {state: code for code, state in enumerate(STATES)}
BIT = {via: 1 << number for number, via in enumerate(VIAS)}


@dataclass(frozen=True)
class PageArrays:
    """n rows, by address. All arrays have shape (n,).

    `address` and `size` are in bytes; `state` indexes `STATES`, `via` is a set of bits by `VIAS`; `physical` is the
    guest-physical address of the row's first byte, or `NOWHERE`; `number` and `offset` are the paging file's number
    and the byte offset in it (state pagefile or compressed); `subsection` and `prototype_pte` are the kernel-virtual
    addresses of the `_SUBSECTION` and of the page's prototype PTE (state subsection). Columns that do not apply are 0.
    `supplied` says of which pages a page source has the bytes.
    """

    address: U64
    size: U64
    state: NDArray[np.uint8]
    via: NDArray[np.uint8]
    physical: U64
    number: NDArray[np.uint8]
    offset: U64
    subsection: U64
    prototype_pte: U64
    supplied: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.address)

    @property
    def in_memory(self) -> NDArray[np.bool_]:
        """Which rows' bytes can be had without a page source: in RAM, or promised zeros."""
        found: NDArray[np.bool_] = self.physical != np.uint64(NOWHERE)
        found |= self.state == CODE[State.DEMAND_ZERO]
        return found

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which rows' bytes can be had: in RAM, promised zeros, or supplied by a page source."""
        return self.in_memory | self.supplied

    def absent(self, rows: NDArray[np.int64]) -> AbsentPages:
        """Those rows as a source of pages is asked for them."""
        paging_file = self.state[rows], self.number[rows], self.offset[rows]
        return AbsentPages(*paging_file, self.subsection[rows], self.prototype_pte[rows])

    def within(self, low: U64, high: U64) -> PageArrays:
        """The rows, those of tables that cannot be had cut to where the ranges from `low` to `high` (in order) are.

        Such a table may map every address that it could; where there is no VAD it maps nothing.
        """
        tables = (self.via & BIT[Via.PAGED_TABLE] != 0) & (self.size > PAGE_SIZE)
        if not tables.any():
            return self
        rows = np.flatnonzero(tables)
        pieces, _ = overlaps(self.address[rows], self.address[rows] + self.size[rows], low, high)
        which = np.concatenate((np.flatnonzero(~tables), rows[pieces.of]))
        columns = {column.name: getattr(self, column.name)[which] for column in fields(self)}
        columns["address"][len(which) - len(pieces.of) :] = pieces.low
        columns["size"][len(which) - len(pieces.of) :] = pieces.high - pieces.low
        order = np.argsort(columns["address"], kind="stable")
        return PageArrays(**{name: column[order] for name, column in columns.items()})

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

    def where(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> Entries:
        """Those of the mask, shape (n,), or of those rows."""
        return Entries(self.address[mask], self.stored[mask], self.via[mask])


class Tables(NamedTuple):
    """Tables of one level: where each is, the first address it maps, the indirections passed, how many bytes each
    maps, and bytes from a source by row."""

    physical: U64
    base: U64
    via: NDArray[np.uint8]
    span: int
    supplied: dict[int, bytes]


class Views(NamedTuple):
    """Ranges of user addresses whose prototype PTEs stand side by side, from kernel-virtual `pointer` on."""

    low: U64
    high: U64
    pointer: U64
    via: NDArray[np.uint8]

    def where(self, mask: NDArray[np.bool_]) -> Views:
        """Those of the mask, shape (n,)."""
        return Views(self.low[mask], self.high[mask], self.pointer[mask], self.via[mask])

    @classmethod
    def none(cls) -> Views:
        """No range at all."""
        empty = np.empty(0, np.uint64)
        return cls(empty, empty, empty, np.empty(0, np.uint8))


class Columns:
    """Rows of one page each in the making, at known addresses: unmapped until something is put in them.

    `address`, `via`, `state` and `physical` have shape (n,); the other columns are made when something is put in them.
    """

    def __init__(self, address: U64, via: NDArray[np.uint8]) -> None:
        self.address = address
        self.via = via
        self.state = np.full(len(address), CODE[State.UNMAPPED], np.uint8)
        self.physical = np.full(len(address), NOWHERE, np.uint64)
        self._others: dict[str, NDArray[Any]] = {}

    def put(self, where: Index, **columns: U64 | NDArray[np.uint8]) -> None:
        """Put values in the rows `where` of the columns number, offset, subsection or prototype_pte."""
        if not len(where):
            return
        for name, values in columns.items():
            if name not in self._others:
                self._others[name] = np.zeros(len(self.address), values.dtype)
            self._others[name][where] = values

    def others(self, keep: NDArray[np.bool_] | None) -> dict[str, NDArray[Any]]:
        """The columns that something was put in; of those rows."""
        if keep is None:
            return self._others
        return {name: column.compress(keep) for name, column in self._others.items()}


class Rows:
    """Rows in the making: columns of blocks, each by address."""

    KINDS = ("u8", "u1", "u1", "u8", "u1", "u8", "u8", "u8")

    def __init__(self) -> None:
        self.blocks: list[tuple[U64, tuple[NDArray[np.generic] | int, ...]]] = []
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
        prototype_pte: int | U64 = 0,
    ) -> None:
        """Append rows; a plain number stands for a column of it."""
        count = len(address)
        if not count:
            return
        self.expect(count)
        self.count += count
        code = CODE[state] if isinstance(state, State) else state
        self.blocks.append((address, (size, code, via, physical, number, offset, subsection, prototype_pte)))

    def add_columns(self, columns: Columns, keep: NDArray[np.bool_] | None = None) -> None:
        """Append rows of one page each: all, or those of the mask."""
        address, state, via, physical = columns.address, columns.state, columns.via, columns.physical
        if keep is not None:
            address, state, via = address.compress(keep), state.compress(keep), via.compress(keep)
            physical = physical.compress(keep)
        self.add(address, PAGE_SIZE, state, via, physical=physical, **columns.others(keep))

    def expect(self, count: int) -> None:
        """Raise `FormatError` where so many more rows would be more than there can be."""
        if self.count + count > MOST_ROWS:
            raise FormatError(
                f"the page tables map more than {MOST_ROWS} pages, more than any process has: they point to themselves"
            )

    def arrays(self) -> PageArrays:
        """The rows, by address, none supplied. A column that says the same of every row takes no memory, and is
        read-only."""
        addresses = [block[0] for block in self.blocks]
        address = np.concatenate(addresses) if len(addresses) > 1 else addresses[0] if addresses else _NONE
        order = None if (address[1:] > address[:-1]).all() else np.argsort(address, kind="stable")
        columns = [self._column(number, kind, order) for number, kind in enumerate(self.KINDS)]
        columns.append(np.broadcast_to(np.False_, (self.count,)))
        return PageArrays(address if order is None else address[order], *columns)

    def _column(self, number: int, kind: str, order: Index | None) -> NDArray[Any]:
        parts = [columns[number] for _, columns in self.blocks]
        told = {part for part in parts if isinstance(part, int)}
        if len(told) <= 1 and all(isinstance(part, int) for part in parts):
            return np.broadcast_to(np.array(told.pop() if told else 0, dtype=kind), (self.count,))
        out = np.empty(self.count, dtype=kind)
        at = 0
        for (address, _), part in zip(self.blocks, parts, strict=True):
            out[at : at + len(address)] = part
            at += len(address)
        return out if order is None else out[order]
