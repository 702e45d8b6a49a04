"""One store: from a page's key to its record, and to where its bytes lie in the owner's address space.

A page's key leads through the pages tree to the number of an `ST_PAGE_RECORD`. Records lie in chunks of one page: the
number's upper bits, less their highest, index the array that the highest one chooses; its lower bits count records in
the chunk. A record is {u32 key, u32 whose lower 12 bits are the size, 0 for 4096: such a page is stored as it is}. A
key of all ones means that the page was found to equal another: the second word is then the number of *its* record
(`StDmCombinePageEntry`). Any other key is region number and offset in 16-byte units.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.windows.process import Process
from coldframe.windows.store.layouts import StoreLayout
from coldframe.windows.store.tree import StoreTree

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_COMBINED = 0xFFFF_FFFF
_MOST_COMBINED = 64
_SIZE = PAGE_SIZE - 1
_ARRAYS = 32
_CHUNK_GAP = 8
_UNIT = 4  # regions are counted in units of 16 bytes
_LARGEST_REGION = 24
_LONGEST_HEADER = 64
_REGION_FLAGS = 0xFFFF  # a region's pointer: 64 KB aligned, the rest and the highest bit say other things
_SMALLEST_RECORD = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a page's bytes are: `size` bytes (4096: as they are, else compressed) at `address` in the owner's memory.

    `record` is the kernel-virtual address of its record and `record_key` that record's first word; `combined` counts
    the records passed on the way that only named another.
    """

    key: int
    record: int
    record_key: int
    region: int
    address: int
    size: int
    combined: int


@dataclass(frozen=True, slots=True)
class _Chunks:
    """`SMHP_CHUNK_METADATA`."""

    arrays: tuple[int, ...]
    shift: int
    mask: int
    record_size: int
    header_size: int


class Store:
    """The `SMKM_STORE` number `index` at `address`; raises `FormatError` where it is none."""

    def __init__(self, guest: Guest, index: int, address: int, layout: StoreLayout) -> None:
        self.index = index
        self.address = address
        self._guest = guest
        self._layout = layout
        self._memory = guest.memory
        size = layout.pointer_size
        with naming(f"store {index} at {address:#x}"):
            itself = self._pointer(layout.itself)
            if itself != address:
                where = f"store {index} at {address:#x} names {itself:#x} at +{layout.itself:#x} where it names itself"
                raise FormatError(f"store: {where}: damaged, or laid out as in no build that is known")
            self.pages = StoreTree(self._memory, self._pointer(layout.pages_tree), size, f"store {index}'s pages tree")
            self._chunks = self._read_chunks()
            self._mask = self._memory.u32(address + layout.region_mask)
            self._shift = self._memory.u32(address + layout.region_shift) & 0xFF
            self._header = 0 if layout.header is None else self._memory.u32(address + layout.header)
            self._regions = self._pointer(layout.regions)
            self.owner = self._owner(self._pointer(layout.owner))
            self.owned_by = f"{self.owner.name} ({self.owner.pid})"
            self.format = None if layout.algorithm is None else self._memory.u16(address + layout.algorithm)
        if not 0 < self._shift <= _LARGEST_REGION or self._mask >> self._shift:
            raise FormatError(f"store: store {index} has regions of {self._mask:#x} units under {self._shift} bits")
        if self._header > _LONGEST_HEADER:
            raise FormatError(f"store: store {index} claims {self._header:#x} bytes before each page's data")

    def _pointer(self, offset: int) -> int:
        return _word(self._memory.read(self.address + offset, self._layout.pointer_size))

    def _owner(self, eprocess: int) -> Process:
        for process in self._guest.processes:
            if process.eprocess.address == eprocess:
                return process
        raise FormatError(f"store: store {self.index} is owned by {eprocess:#x}, which is no process that runs")

    def _read_chunks(self) -> _Chunks:
        pointer = self._layout.pointer_size
        rest = _ARRAYS * pointer + _CHUNK_GAP
        data = self._memory.read(self.address + self._layout.chunks, rest + 20)
        arrays = tuple(_word(data[at : at + pointer]) for at in range(0, _ARRAYS * pointer, pointer))
        shift, mask, record_size, _, header_size = struct.unpack_from("<5I", data, rest)
        if not _SMALLEST_RECORD <= record_size <= PAGE_SIZE or header_size >= PAGE_SIZE:
            claims = f"records of {record_size} bytes behind a header of {header_size}"
            raise FormatError(f"store: store {self.index} has {claims} in chunks of {PAGE_SIZE}")
        return _Chunks(arrays, shift & 0xFF, mask, record_size, header_size)

    def locate(self, key: int) -> Stored:
        """Where the page of `key` is; raises `FormatError` naming the step that failed."""
        with naming(f"the pages tree of store {self.index}"):
            number = self.pages.find(key)
        if number is None:
            raise FormatError(f"store: store {self.index} has no record for key {key:#x}")
        for combined in range(_MOST_COMBINED):
            record = self._record(number)
            with naming(f"record {number:#x} of store {self.index}"):
                record_key, info = struct.unpack("<2I", self._memory.read(record, 8))
            if record_key != _COMBINED:
                return self._stored(key, record, record_key, info, combined)
            number = info
        raise FormatError(f"store: record of key {key:#x} leads through {_MOST_COMBINED} others: a circle")

    def _record(self, number: int) -> int:
        chunks = self._chunks
        upper = number >> chunks.shift
        if not upper:
            raise FormatError(f"store: record {number:#x} lies in no chunk of store {self.index}")
        array = upper.bit_length() - 1
        base = chunks.arrays[array]
        entry = base + (upper ^ 1 << array) * self._layout.chunk_entry_size
        with naming(f"chunk {upper:#x} of store {self.index}"):
            chunk = _word(self._memory.read(entry, self._layout.pointer_size))
        offset = chunks.header_size + (number & chunks.mask) * chunks.record_size
        if offset + _SMALLEST_RECORD > PAGE_SIZE:
            raise FormatError(f"store: record {number:#x} would lie at {offset:#x} in a chunk of {PAGE_SIZE} bytes")
        return chunk + offset

    def _stored(self, key: int, record: int, record_key: int, info: int, combined: int) -> Stored:
        region = record_key >> self._shift
        with naming(f"region {region} of store {self.index}"):
            width = self._layout.pointer_size
            pointer = _word(self._memory.read(self._regions + region * width, width))
        base = pointer & ((1 << (8 * width - 1)) - 1) & ~_REGION_FLAGS
        size = info & _SIZE or PAGE_SIZE
        offset = ((record_key & self._mask) << _UNIT) + self._header
        if not base:
            raise FormatError(f"store: store {self.index} has no region {region}; the record at {record:#x} names it")
        if offset + size > self._mask + 1 << _UNIT:
            raise FormatError(
                f"store: the record at {record:#x} claims {size:#x} bytes at {offset:#x}, past its region"
            )
        return Stored(key, record, record_key, region, base + offset, size, combined)

    def data(self, stored: Stored) -> bytes:
        """The bytes as stored; raises `FormatError` saying what of the owner's memory cannot be read."""
        with naming(f"region {stored.region} of store {self.index}, in {self.owned_by}"):
            return self.owner.memory.read(stored.address, stored.size)


def _word(data: bytes) -> int:
    return int.from_bytes(data, "little")


@contextmanager
def naming(step: str) -> Iterator[None]:
    """Say at which step of the way memory could not be read."""
    try:
        yield
    except UnreadableMemoryError as error:
        raise FormatError(f"store: {step}: {error}") from None
