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
class Width:
    """What all builds of one width have.

    ST_DATA_MGR in SMKM_STORE; in it SMHP_CHUNK_METADATA, the pointer back, mask and shift of a record's key; in the
    chunk metadata four numbers; the forms of a tree's node and entry; where regions may lie.
    """

    pointer: int
    key_to_store_tree: int
    store_metadata: int
    data_mgr: int
    chunks: int
    smkm_store: int
    region_mask: int
    region_shift: int
    chunk_numbers: tuple[int, int, int, int]
    node: str
    entry: str
    base: int


X64 = Width(8, 0x1C0, 0x28, 0x50, 0xC0, 0x320, 0x328, 0x32C, (0x108, 0x10C, 0x110, 0x118), "<HBBIQ", "<IIQ", 1 << 32)
X86 = Width(4, 0xF4, 0x14, 0x38, 0x6C, 0x1C0, 0x1C4, 0x1C8, (0x88, 0x8C, 0x90, 0x98), "<HBBI", "<II", 0x200_0000)


@dataclass(frozen=True)
class Numbers:
    """One build's: (SmGlobals + where, less what) or None; the rest relative to SMKM_STORE."""

    build: int
    pointer: tuple[int, int] | None
    algorithm: int | None
    regions: int
    owner: int
    header: int | None
    number_in_key: bool = True
    width: Width = X64
    chunk_entry: int = 16


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
BUILDS_32 = [
    Numbers(14393, None, 0x38 + 0x220, 0x1124, 0x1204, None, width=X86, chunk_entry=8),
    Numbers(15063, None, 0x38 + 0x220, 0x1174, 0x1244, None, width=X86, chunk_entry=12),
    Numbers(16299, None, 0x38 + 0x224, 0x1184, 0x1254, None, width=X86, chunk_entry=12),
    Numbers(17763, None, 0x38 + 0x224, 0x1184, 0x1254, None, width=X86, chunk_entry=12),
    Numbers(19041, None, 0x38 + 0x224, 0x1184, 0x125C, None, width=X86, chunk_entry=12),
    Numbers(19045, None, 0x38 + 0x224, 0x1184, 0x125C, None, width=X86, chunk_entry=12),
]
KEY_TO_STORE_TREE = X64.key_to_store_tree
DATA_MGR = PAGES_TREE = X64.data_mgr
GLOBALS = "?SmGlobals@@3U_SM_GLOBALS@@A"
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

    image: WindowsBuilder  # or a Windows32Builder, which is one
    numbers: Numbers
    owner: BuiltProcess
    number: int = 2
    shape: Shape = field(default_factory=Shape)
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
        return self.numbers.width.base + region * (size + 0x10000)

    # What is written

    def finish(self, map_page: Callable[[int, bytes], object] | None = None) -> None:
        """Write the structures; `map_page(address, bytes)` puts a page of a region into the owner's memory."""
        put = map_page or (lambda address, data: self.image.map(self.owner.dtb, address, data))
        for number, data in self._regions.items():
            used = len(data.rstrip(b"\0"))
            for offset in range(0, max(used, 1), PAGE):
                put(self.region_address(number) + offset, bytes(data[offset : offset + PAGE]))
        image, numbers, width = self.image, self.numbers, self.numbers.width
        manager = self._manager()
        self.manager = manager
        self.store = image.allocate_pool(0x2000, align=PAGE)
        metadata = self._tagged(32 * width.store_metadata, b"smSa")
        row, column = divmod(self.shape.index, 32)
        self._pointer(manager + width.pointer * row, metadata)
        self._pointer(metadata + width.store_metadata * column, self.store)
        keys = {record.key: record for record in self.records if record.key >= 0}
        flags = 0x400  # bits above the index, as Windows has them
        self.key_root = self._tree(dict.fromkeys(keys, self.shape.index | flags))
        self._pointer(manager + width.key_to_store_tree, self.key_root)
        self.pages_root = self._tree({key: record.number for key, record in keys.items()})
        data_mgr = self.store + width.data_mgr
        self._pointer(data_mgr, self.pages_root)
        self._pointer(data_mgr + width.smkm_store, self.store)
        self._u32(data_mgr + width.region_mask, (1 << self.shape.region_shift) - 1)
        self._u32(data_mgr + width.region_shift, self.shape.region_shift)
        if numbers.header is not None:
            self._u32(self.store + numbers.header, self.shape.data_header)
        if numbers.algorithm is not None:
            self._u32(self.store + numbers.algorithm, XPRESS)
        self._pointer(self.store + numbers.owner, self.owner.address)
        regions = image.allocate_pool(width.pointer * (max(self._regions, default=0) + 1))
        for number in self._regions:
            flags = self.random.getrandbits(3) | 1 << (8 * width.pointer - 1)
            self._pointer(regions + width.pointer * number, self.region_address(number) | flags)
        self._pointer(self.store + numbers.regions, regions)
        self._chunks()

    def _manager(self) -> int:
        image = self.image
        start = image.variable(GLOBALS)
        if self.numbers.pointer is None:
            return start
        block = image.allocate_pool(0x1000 + PAGE, align=PAGE)
        where, back = self.numbers.pointer
        self._pointer(start + where, block + back)
        return block

    def _chunks(self) -> None:
        shape, width, entry = self.shape, self.numbers.width, self.numbers.chunk_entry
        chunks = self.store + width.data_mgr + width.chunks
        told = (shape.chunk_shift, (1 << shape.chunk_shift) - 1, shape.record_size, shape.chunk_header)
        for at, value in zip(width.chunk_numbers, told, strict=True):
            self._u32(chunks + at, value)
        arrays: dict[int, int] = {}
        pages: dict[int, int] = {}
        for record in self.records:
            chunk, index = divmod(record.number, 1 << shape.chunk_shift)
            if chunk not in pages:
                which = chunk.bit_length() - 1
                if which not in arrays:
                    arrays[which] = self._tagged(entry << which, b"smBA")
                    self._pointer(chunks + width.pointer * which, arrays[which])
                pages[chunk] = self.image.allocate_pool(PAGE, align=PAGE)
                self._pointer(arrays[which] + entry * (chunk - (1 << which)), pages[chunk])
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
                form = self.numbers.width.entry
                gap = (0xAAAAAAAA,) * (len(struct.unpack(form, bytes(struct.calcsize(form)))) - 2)
                entries = b"".join(struct.pack(form, key, *gap, child) for key, child in some[1:])
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
        gap = (0xBBBBBBBB,) * (self.numbers.width.pointer // 4 - 1)
        self.image.write(address, struct.pack(self.numbers.width.node, count, level + 1, leaf, *gap, first) + entries)
        return address

    def _tagged(self, size: int, tag: bytes) -> int:
        """A pool block, its header before it."""
        address = self.image.allocate_pool(size + 32) + 16
        self.image.write(address - 12, tag)
        return address

    def _pointer(self, at: int, value: int) -> None:
        self.image.write(at, value.to_bytes(self.numbers.width.pointer, "little"))

    def _u32(self, at: int, value: int) -> None:
        self.image.write(at, struct.pack("<I", value))
