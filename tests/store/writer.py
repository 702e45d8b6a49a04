"""A compressed store as Windows lays it out, written into a built image from the published offsets.

The offsets stand here once more, build by build, as MemProcFS and FLARE publish them relative to `SMKM_STORE` and
`ST_DATA_MGR`; nothing is shared with the code that reads. `add` remembers each page's bytes for tests to compare with.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import cramjam

from builder.image import PAGE
from builder.windows import BuiltProcess, WindowsBuilder
from store.xpress import compress

Kind = Literal["compressed", "raw", "combined", "zeros"]


@dataclass(frozen=True)
class Numbers:
    """One build's: (SmGlobals + where, less what) or None; the rest relative to SMKM_STORE, ST_DATA_MGR at +0x50."""

    build: int
    pointer: tuple[int, int] | None
    algorithm: int | None
    regions: int
    owner: int
    header: int | None
    number_in_key: bool = True


BUILDS = [
    Numbers(14393, None, 0x50 + 0x3D0, 0x17A8, 0x1918, None),
    Numbers(15063, None, 0x50 + 0x3D0, 0x1828, 0x1988, None),
    Numbers(16299, None, 0x50 + 0x3E0, 0x1848, 0x19A8, 0x50 + 824),
    Numbers(17134, None, 0x50 + 0x3E0, 0x1848, 0x19A8, 0x50 + 824),
    Numbers(17763, None, 0x50 + 0x3E0, 0x1848, 0x19A8, 0x50 + 824),
    Numbers(18363, None, 0x50 + 0x3E0, 0x1848, 0x19A8, 0x50 + 824),
    Numbers(19041, None, 0x50 + 0x3E0, 0x1848, 0x19B8, 0x50 + 824),
    Numbers(19045, None, 0x50 + 0x3E0, 0x1848, 0x19B8, 0x50 + 824),
    Numbers(20348, None, 0x50 + 0x3E0, 0x1848, 0x19B8, 0x50 + 824),
    Numbers(22000, None, 0x50 + 0x3E0, 0x1848, 0x19B8, 0x50 + 824),
    Numbers(22621, (8, 0x7A8), 0x50 + 0x3E0, 0x1848, 0x19B8, 0x50 + 824),
    Numbers(22631, (8, 0x7A8), 0x50 + 0x3E0, 0x1848, 0x19B8, 0x50 + 824),
    Numbers(26100, (0x10, 0xC30), None, 0x1B70, 0x1D08, 0x50 + 824, number_in_key=False),
]
KEY_TO_STORE_TREE = 0x1C0
STORE_METADATA = 0x28
DATA_MGR = 0x50
PAGES_TREE, CHUNKS, SMKM_STORE, REGION_MASK, REGION_SHIFT = (
    DATA_MGR + offset for offset in (0, 0xC0, 0x320, 0x328, 0x32C)
)
BIT_VALUE, PER_CHUNK, RECORD_SIZE, HEADER_SIZE = 0x108, 0x10C, 0x110, 0x118
XPRESS = 3
ALL_ONES = 0xFFFF_FFFF


@dataclass
class Shape:
    """How a store is laid out, as far as Windows chooses it at run time."""

    region_shift: int = 13  # 128 KB
    chunk_shift: int = 7
    record_size: int = 16
    chunk_header: int = 0x18
    leaf: int = 510
    inner: int = 255
    index: int = 3
    data_header: int = 0
    gaps: bool = True


@dataclass
class _Record:
    key: int
    number: int
    first: int
    second: int


@dataclass
class StoreWriter:
    """A store whose regions lie in `owner`'s memory from `base` on; `finish` writes what was added."""

    image: WindowsBuilder
    numbers: Numbers
    owner: BuiltProcess
    number: int = 2
    shape: Shape = field(default_factory=Shape)
    base: int = 0x1_0000_0000
    seed: int = 1

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.truth: dict[int, bytes] = {}
        self.records: list[_Record] = []
        self.address_of: dict[int, int] = {}
        self._next_record = 1 << self.shape.chunk_shift  # numbers below lie in no chunk
        self._regions: dict[int, bytearray] = {}
        self._region, self._unit = 0, 0
        self.image.set_variable("NtBuildNumber", struct.pack("<I", 0xF000_0000 | self.numbers.build))

    # What is stored

    def key(self, page: int) -> int:
        """The key of page `page` of the virtual paging file."""
        return self.number << 28 | page if self.numbers.number_in_key else page

    def add(self, page: int, data: bytes, kind: Kind = "compressed") -> None:
        """Store `data` as page `page`. `combined` makes a record that names another's, over one or more steps."""
        self.truth[page] = data
        packed = self._packed(data) if kind != "raw" else data
        if len(packed) > 0xFF0:
            packed = data
        first = self._place(packed)
        info = (len(packed) & 0xFFF) | self.random.getrandbits(4) << 16
        number = self._take()
        self.address_of[page] = self._address(first)
        if kind == "combined":
            for _ in range(self.random.randint(1, 3)):
                shared = number
                self.records.append(_Record(-1, shared, first, info))
                number = self._take()
                first, info = ALL_ONES, shared
        self.records.append(_Record(self.key(page), number, first, info))

    def _packed(self, data: bytes) -> bytes:
        if self.numbers.algorithm is None:
            return bytes(cramjam.lz4.compress_block(data, store_size=False))
        return compress(data)

    def _take(self) -> int:
        number = self._next_record
        step = self.random.randint(1, 9) if self.shape.gaps else 1
        per_chunk = (PAGE - self.shape.chunk_header) // self.shape.record_size
        per_chunk = min(per_chunk, 1 << self.shape.chunk_shift)
        self._next_record += step
        inside = self._next_record & ((1 << self.shape.chunk_shift) - 1)
        if inside >= per_chunk:
            self._next_record += (1 << self.shape.chunk_shift) - inside
        return number

    def _place(self, data: bytes) -> int:
        """Room in the current region, or the next one; returns a record's first word."""
        units = -(-(self.shape.data_header + len(data)) // 16)
        if self.shape.gaps:
            self._unit += self.random.randint(0, 5)
        if self._unit + units > 1 << self.shape.region_shift:
            self._region, self._unit = self._region + self.random.randint(1, 3), 0
        region = self._regions.setdefault(self._region, bytearray(16 << self.shape.region_shift))
        at = 16 * self._unit + self.shape.data_header
        region[at : at + len(data)] = data
        first = self._region << self.shape.region_shift | self._unit
        self._unit += units
        return first

    def _address(self, first: int) -> int:
        region, unit = divmod(first, 1 << self.shape.region_shift)
        return self.region_address(region) + 16 * unit + self.shape.data_header

    def region_address(self, region: int) -> int:
        """Where region `region` lies in the owner."""
        size = max(16 << self.shape.region_shift, 0x10000)
        return self.base + region * (size + 0x10000)

    # What is written

    def finish(self, map_page: Callable[[int, bytes], object] | None = None) -> None:
        """Write the structures; `map_page(address, bytes)` puts a page of a region into the owner's memory."""
        put = map_page or (lambda address, data: self.image.map(self.owner.dtb, address, data))
        for number, data in self._regions.items():
            used = len(data.rstrip(b"\0"))
            for offset in range(0, max(used, 1), PAGE):
                put(self.region_address(number) + offset, bytes(data[offset : offset + PAGE]))
        image, numbers = self.image, self.numbers
        manager = self._manager()
        self.manager = manager
        self.store = image.allocate_pool(0x2000, align=PAGE)
        metadata = self._tagged(32 * STORE_METADATA, b"smSa")
        row, column = divmod(self.shape.index, 32)
        self._pointer(manager + 8 * row, metadata)
        self._pointer(metadata + STORE_METADATA * column, self.store)
        keys = {record.key: record for record in self.records if record.key >= 0}
        flags = 0x400  # bits above the index, as Windows has them
        self.key_root = self._tree(dict.fromkeys(keys, self.shape.index | flags))
        self._pointer(manager + KEY_TO_STORE_TREE, self.key_root)
        self.pages_root = self._tree({key: record.number for key, record in keys.items()})
        self._pointer(self.store + PAGES_TREE, self.pages_root)
        self._pointer(self.store + SMKM_STORE, self.store)
        self._u32(self.store + REGION_MASK, (1 << self.shape.region_shift) - 1)
        self._u32(self.store + REGION_SHIFT, self.shape.region_shift)
        if numbers.header is not None:
            self._u32(self.store + numbers.header, self.shape.data_header)
        if numbers.algorithm is not None:
            self._u32(self.store + numbers.algorithm, XPRESS)
        self._pointer(self.store + numbers.owner, self.owner.address)
        regions = image.allocate_pool(8 * (max(self._regions, default=0) + 1))
        for number in self._regions:
            self._pointer(regions + 8 * number, self.region_address(number) | self.random.getrandbits(3) | 1 << 63)
        self._pointer(self.store + numbers.regions, regions)
        self._chunks()

    def _manager(self) -> int:
        image = self.image
        name = "?SmGlobals@@3U_SM_GLOBALS@@A"
        start = image.variable(name)
        if self.numbers.pointer is None:
            return start
        block = image.allocate_pool(0x1000 + PAGE, align=PAGE)
        where, back = self.numbers.pointer
        self._pointer(start + where, block + back)
        return block

    def _chunks(self) -> None:
        shape, chunks = self.shape, self.store + CHUNKS
        self._u32(chunks + BIT_VALUE, shape.chunk_shift)
        self._u32(chunks + PER_CHUNK, (1 << shape.chunk_shift) - 1)
        self._u32(chunks + RECORD_SIZE, shape.record_size)
        self._u32(chunks + HEADER_SIZE, shape.chunk_header)
        arrays: dict[int, int] = {}
        pages: dict[int, int] = {}
        for record in self.records:
            chunk, index = divmod(record.number, 1 << shape.chunk_shift)
            if chunk not in pages:
                which = chunk.bit_length() - 1
                if which not in arrays:
                    arrays[which] = self._tagged(16 << which, b"smBA")
                    self._pointer(chunks + 8 * which, arrays[which])
                pages[chunk] = self.image.allocate_pool(PAGE, align=PAGE)
                self._pointer(arrays[which] + 16 * (chunk - (1 << which)), pages[chunk])
                self._u32(pages[chunk] + 0x10, chunk)
            at = pages[chunk] + shape.chunk_header + index * shape.record_size
            words = struct.pack("<3I", record.first, record.second, self.random.getrandbits(32))
            self.image.write(at, words[: shape.record_size])

    def _tree(self, pairs: dict[int, int]) -> int:
        """A B+ tree of these pairs, its nodes filled unevenly; returns its root."""
        level: list[tuple[int, int]] = []
        for some in self._parted(sorted(pairs.items()), self.shape.leaf):
            entries = b"".join(struct.pack("<II", key, value) for key, value in some)
            level.append((some[0][0] if some else 0, self._node(0, entries, len(some), leaf=True, first=0)))
        depth = 1
        while len(level) > 1:
            above: list[tuple[int, int]] = []
            for some in self._parted(level, self.shape.inner + 1):
                entries = b"".join(struct.pack("<IIQ", key, 0xAAAAAAAA, child) for key, child in some[1:])
                node = self._node(depth, entries, len(some) - 1, leaf=False, first=some[0][1])
                above.append((some[0][0], node))
            level, depth = above, depth + 1
        return level[0][1]

    def _parted(self, pairs: Sequence[tuple[int, int]], most: int) -> list[Sequence[tuple[int, int]]]:
        parts: list[Sequence[tuple[int, int]]] = []
        at = 0
        while at < len(pairs) or not parts:
            size = self.random.randint(max(most // 2, 2), most)
            if len(pairs) - at - size == 1:
                size -= 1  # no inner node with one child only
            parts.append(pairs[at : at + max(size, 2)])
            at += max(size, 2)
        return parts

    def _node(self, level: int, entries: bytes, count: int, *, leaf: bool, first: int) -> int:
        address = self.image.allocate_pool(PAGE, align=PAGE)
        self.image.write(address, struct.pack("<HBBIQ", count, level + 1, leaf, 0xBBBBBBBB, first) + entries)
        return address

    def _tagged(self, size: int, tag: bytes) -> int:
        """A pool block, its header before it."""
        address = self.image.allocate_pool(size + 32) + 16
        self.image.write(address - 12, tag)
        return address

    def _pointer(self, at: int, value: int) -> None:
        self.image.write(at, value.to_bytes(8, "little"))

    def _u32(self, at: int, value: int) -> None:
        self.image.write(at, struct.pack("<I", value))
