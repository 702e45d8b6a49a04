"""Physical memory of a Windows guest, made in Python from any kernel's type information.

The builder encodes: it sets bit-fields by the names that the kernel's types give them, and knows nothing of how
`coldframe.paging` decodes them. Whoever needs more of a guest (an EPROCESS list, VADs, a kernel PE) builds on
`allocate_page`, `map`, `allocate_pool`, `write_struct` and `write`.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from coldframe.memory import PhysicalMemory, Run
from coldframe.symbols.model import Array, BitField, Type, Types

PAGE = 4096
MB = 1 << 20
GB = 1 << 30

Swizzle = Literal["none", "windows", "forced"]
"""How invalid PTEs are stored: `none` as they are (a processor without L1TF, mask 0); `windows` by
`MiSwizzleInvalidPte`'s
rule; `forced` with SwizzleBit always set, the value left as it is."""

Value = int | bytes | Sequence[int]


@dataclass(frozen=True)
class Shape:
    """A page-table format, told independently of `coldframe.paging.formats`: entry size, index bits, shifts from the
    root."""

    entry: int
    shifts: tuple[int, ...]
    index_bits: tuple[int, ...]
    kernel_start: int
    pool: int
    self_map: int


SHAPES = {
    "4-level": Shape(8, (39, 30, 21, 12), (9, 9, 9, 9), 1 << 47, 0xFFFF9A0000000000, 0x1ED),
    "5-level": Shape(8, (48, 39, 30, 21, 12), (9, 9, 9, 9, 9), 1 << 56, 0xFFFF9A0000000000, 0x1ED),
    "pae": Shape(8, (30, 21, 12), (2, 9, 9), 1 << 31, 0x8A000000, 3),
    "x86": Shape(4, (22, 12), (10, 10), 1 << 31, 0x8A000000, 0x300),
}

VALID, WRITE, OWNER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80


@dataclass
class Ram:
    """One range of RAM."""

    start: int
    data: bytearray
    free: list[int] = field(default_factory=list)


class ImageBuilder:
    """Builds a guest's physical memory. `physical()` is a live view: what is built later shows in it.

    `format` is "4-level", "5-level", "pae" or "x86"; `ram` lists (start, size) of the ranges. Pages are handed out in a
    scrambled order, so that nothing passes by luck because two pages are neighbours.
    """

    def __init__(
        self,
        types: Types,
        format: str = "4-level",  # noqa: A002
        *,
        swizzle: Swizzle = "none",
        invalid_pte_mask: int | None = None,
        ram: Sequence[tuple[int, int]] = ((0, 16 * MB),),
        seed: int = 1,
        pool: int | None = None,
    ) -> None:
        self.types = types
        self.format = format
        self.shape = SHAPES[format]
        self.swizzle = swizzle
        if invalid_pte_mask is None:
            invalid_pte_mask = 0 if swizzle == "none" else 1 << 45
        self.invalid_pte_mask = invalid_pte_mask
        self._random = random.Random(seed)
        self.ram: list[Ram] = []
        for start, size in ram:
            self.add_ram(start, size)
        self.dtbs: list[int] = []
        self.kernel_dtb = self._new_root()
        self.pool = self.shape.pool if pool is None else pool
        self._pool_next = self._pool_end = self.pool

    # Physical memory

    def add_ram(self, start: int, size: int) -> None:
        """Put `size` bytes of RAM at `start`; page 0 is never handed out, the upper half last (for spans)."""
        pages = [page for page in range(start, start + size, PAGE) if page]
        lower, upper = pages[: len(pages) // 2], pages[len(pages) // 2 :]
        self._random.shuffle(lower)
        self._random.shuffle(upper)
        self.ram.append(Ram(start, bytearray(size), upper + lower))
        self.ram.sort(key=lambda ram: ram.start)

    def physical(self) -> PhysicalMemory:
        """The memory, as a live view."""
        return PhysicalMemory(Run(ram.start, len(ram.data), memoryview(ram.data)) for ram in self.ram)

    def _ram_of(self, physical: int, size: int = 1) -> tuple[bytearray, int]:
        for ram in self.ram:
            if ram.start <= physical and physical + size <= ram.start + len(ram.data):
                return ram.data, physical - ram.start
        raise ValueError(f"the image has no RAM at {physical:#x}")

    def write_physical(self, physical: int, data: bytes) -> None:
        """Put bytes at a guest-physical address."""
        ram, offset = self._ram_of(physical, len(data))
        ram[offset : offset + len(data)] = data

    def read_physical(self, physical: int, size: int) -> bytes:
        """Bytes at a guest-physical address."""
        ram, offset = self._ram_of(physical, size)
        return bytes(ram[offset : offset + size])

    def allocate_page(self, content: bytes = b"", *, at: int | None = None) -> int:
        """Take a page of RAM (the one at `at`, if given), fill it, and return its guest-physical address."""
        for ram in self.ram:
            if at is None and ram.free:
                page = ram.free.pop()
                break
            if at is not None and ram.start <= at < ram.start + len(ram.data):
                if at != ram.free[-1]:
                    ram.free.remove(at)
                    ram.free.append(at)
                page = ram.free.pop()
                break
        else:
            raise ValueError("no free page left" if at is None else f"there is no RAM at {at:#x}")
        self.write_physical(page, content.ljust(PAGE, b"\0"))
        return page

    def allocate_span(self, size: int, *, align: int = PAGE) -> int:
        """Take `size` bytes of adjoining pages, aligned; returns the guest-physical address."""
        for ram in self.ram:
            free = set(ram.free)
            start = -(-ram.start // align) * align
            for base in reversed(range(start, ram.start + len(ram.data) - size + 1, align)):
                wanted = set(range(base, base + size, PAGE))
                if wanted <= free:
                    ram.free = [page for page in ram.free if page not in wanted]
                    self.write_physical(base, bytes(size))
                    return base
        raise ValueError(f"no {size:#x} adjoining free bytes left")

    # Page tables

    def _new_root(self) -> int:
        root = self.allocate_page()
        if self.format == "pae":
            for index in range(4):
                self._put(root + 8 * index, self.allocate_page() | VALID)
            top = self._get(root + 24) & ~0xFFF
            for index in range(4):
                self._put(top + 8 * index, (self._get(root + 8 * index) & ~0xFFF) | VALID | WRITE)
        else:
            self._put(root + self.shape.entry * self.shape.self_map, root | VALID | WRITE | ACCESSED | DIRTY)
        self.dtbs.append(root)
        return root

    def new_dtb(self) -> int:
        """A new address space that shares the kernel's half; returns its DTB."""
        root = self._new_root()
        for index in range(1 << self.shape.index_bits[0]):
            if self._is_kernel_index(index):
                self._put(root + self.shape.entry * index, self._get(self.kernel_dtb + self.shape.entry * index))
        return root

    def _is_kernel_index(self, index: int) -> bool:
        own = self.shape.self_map if self.format != "pae" else -1
        return bool(index >> (self.shape.index_bits[0] - 1)) and index != own

    def _put(self, physical: int, value: int) -> None:
        self.write_physical(physical, value.to_bytes(self.shape.entry, "little"))

    def _get(self, physical: int) -> int:
        return int.from_bytes(self.read_physical(physical, self.shape.entry), "little")

    def _index(self, va: int, depth: int) -> int:
        return va >> self.shape.shifts[depth] & ((1 << self.shape.index_bits[depth]) - 1)

    def depth_of(self, level: str) -> int:
        """The depth of "PML5E", "PML4E", "PDPTE", "PDE" or "PTE" in this format, from 0 at the root."""
        names = ["PML5E", "PML4E", "PDPTE", "PDE", "PTE"]
        if self.format == "x86":
            names = ["PDE", "PTE"]
        return names[-len(self.shape.shifts) :].index(level)

    def entry_address(self, dtb: int, va: int, level: str = "PTE") -> int:
        """Where the entry of `va` at `level` stands (guest-physical); tables on the way are made where there are
        none."""
        return self._entry(dtb, va, self.depth_of(level))

    def _entry(self, dtb: int, va: int, depth: int) -> int:
        table = dtb
        user = OWNER if va < self.shape.kernel_start else 0
        for above in range(depth):
            at = table + self.shape.entry * self._index(va, above)
            entry = self._get(at)
            if not entry & VALID:
                if entry:
                    raise ValueError(f"the table of {va:#x} at depth {above} left; build its pages before")
                flags = VALID if self.format == "pae" and above == 0 else VALID | WRITE | ACCESSED | DIRTY | user
                entry = self.allocate_page() | flags
                self._put(at, entry)
                if above == 0 and self._is_kernel_index(self._index(va, 0)):
                    for root in self.dtbs:
                        self._put(root + at - table, entry)
            table = entry & ((1 << 52) - PAGE)
        return table + self.shape.entry * self._index(va, depth)

    def map(
        self,
        dtb: int,
        va: int,
        content: bytes = b"",
        *,
        physical: int | None = None,
        size: int = PAGE,
        writable: bool = True,
    ) -> int:
        """Map valid pages for `content` (at least one) at `va`; returns the guest-physical address of the first.

        `physical` maps what is there already instead of new pages (`content` is written to it if given). `size` of 2
        MB, 1 GB (or 4 MB) makes one large page, with RAM behind it only where `physical` says or where it fits.
        """
        flags = VALID | ACCESSED | DIRTY | (WRITE if writable else 0) | (OWNER if va < self.shape.kernel_start else 0)
        flags |= self.encode("_MMPTE_HARDWARE", Write=int(writable)) if self._has("_MMPTE_HARDWARE", "Write") else 0
        if size != PAGE:
            depth = self.shape.shifts.index(size.bit_length() - 1)
            if physical is None:
                physical = self.allocate_span(size, align=size)
            if content:
                self.write_physical(physical, content)
            low = physical & 0xFFFFFFFF if self.format == "x86" else physical
            pse36 = (physical >> 32) << 13 if self.format == "x86" else 0
            self._put(self._entry(dtb, va, depth), low | pse36 | flags | LARGE)
            return physical
        first = None
        for offset in range(0, max(len(content), 1), PAGE):
            part = content[offset : offset + PAGE]
            if physical is None:
                page = self.allocate_page(part)
            else:
                page = physical + offset
                if part:
                    self.write_physical(page, part)
            first = page if first is None else first
            self._put(self._entry(dtb, va + offset, len(self.shape.shifts) - 1), page | flags)
        assert first is not None
        return first

    # Software PTEs

    def _has(self, structure: str, name: str) -> bool:
        return self.types.has_field(structure, name)

    def encode(self, structure: str, **fields: int) -> int:
        """An entry of type `structure` (`_MMPTE_TRANSITION`) with these bit-fields set."""
        value = 0
        for name, content in fields.items():
            offset, kind = self.types.field(structure, name)
            position, length = 8 * offset, 8 * self.types.size(kind)
            if isinstance(kind, BitField):
                position, length = 8 * offset + kind.position, kind.length
            if content >> length:
                raise ValueError(f"{structure}.{name} has {length} bits; {content:#x} does not fit")
            value |= content << position
        return value

    def stored(self, value: int) -> int:
        """An invalid PTE as it stands in memory, by the builder's `swizzle`. Zero stays zero, as in
        `MiWriteZeroPte`."""
        if self.swizzle == "none" or value == 0:
            return value
        bit = self.encode("_MMPTE_SOFTWARE", SwizzleBit=1)
        if self.swizzle == "forced" or value & self.invalid_pte_mask:
            return value | bit
        return value | self.invalid_pte_mask

    def set_entry(self, dtb: int, va: int, value: int, level: str = "PTE") -> int:
        """Put an entry as it is; returns where it stands."""
        at = self.entry_address(dtb, va, level)
        self._put(at, value)
        return at

    def get_entry(self, dtb: int, va: int, level: str = "PTE") -> int:
        """The entry of `va` at `level`, as it stands."""
        return self._get(self.entry_address(dtb, va, level))

    def hardware(self, physical: int, **fields: int) -> int:
        """A valid PTE's value."""
        return self.encode("_MMPTE_HARDWARE", Valid=1, PageFrameNumber=physical >> 12, **fields)

    def transition(self, physical: int, protection: int = 4) -> int:
        """A transition PTE's value, as stored."""
        return self.stored(
            self.encode("_MMPTE_TRANSITION", Transition=1, Protection=protection, PageFrameNumber=physical >> 12)
        )

    def paged(self, number: int, offset: int, protection: int = 4) -> int:
        """A paging-file PTE's value, as stored; `offset` in bytes."""
        return self.stored(
            self.encode("_MMPTE_SOFTWARE", PageFileLow=number, PageFileHigh=offset >> 12, Protection=protection)
        )

    def demand_zero(self, protection: int = 4) -> int:
        """A demand-zero PTE's value, as stored."""
        return self.stored(self.encode("_MMPTE_SOFTWARE", Protection=protection))

    def prototype(self, pointer: int) -> int:
        """The value, as stored, of a PTE that points to the prototype PTE at kernel-virtual `pointer`."""
        return self.stored(self._address("_MMPTE_PROTOTYPE", "ProtoAddress", pointer))

    def subsection(self, pointer: int, protection: int = 1) -> int:
        """The value, as stored, of a prototype PTE that points to the `_SUBSECTION` at kernel-virtual `pointer`."""
        value = self._address("_MMPTE_SUBSECTION", "SubsectionAddress", pointer)
        return self.stored(value | self.encode("_MMPTE_SUBSECTION", Protection=protection))

    def _address(self, structure: str, name: str, pointer: int) -> int:
        if self._has(structure, name):
            _, kind = self.types.field(structure, name)
            width = kind.length if isinstance(kind, BitField) else 8 * self.types.size(kind)
            return self.encode(structure, Prototype=1, **{name: pointer & ((1 << width) - 1)})
        offset = pointer - self.pool  # 32-bit without PAE: relative to the pool, and in two halves
        high, low = (9, 2) if name == "ProtoAddress" else (7, 3)
        halves = {f"{name}High": offset >> high, f"{name}Low": (offset & ((1 << high) - 1)) >> low}
        if name == "SubsectionAddress":
            halves["WhichPool"] = 1
        return self.encode(structure, Prototype=1, **halves)

    def vad_marker(self, protection: int = 4) -> int:
        """The value, as stored, that says "look in the VAD": PageFileHigh all ones and the prototype bit."""
        _, kind = self.types.field("_MMPTE_SOFTWARE", "PageFileHigh")
        width = kind.length if isinstance(kind, BitField) else 8 * self.types.size(kind)
        return self.stored(
            self.encode("_MMPTE_SOFTWARE", Prototype=1, Protection=protection, PageFileHigh=(1 << width) - 1)
        )

    # Virtual memory

    def allocate_pool(self, size: int, *, align: int = 16) -> int:
        """`size` zeroed bytes of kernel memory, mapped in every address space; returns the virtual address."""
        va = -(-self._pool_next // align) * align
        while self._pool_end < va + size:
            self.map(self.kernel_dtb, self._pool_end)
            self._pool_end += PAGE
        self._pool_next = va + size
        return va

    def physical_of(self, va: int, dtb: int | None = None) -> int:
        """The guest-physical address of a *valid* `va`; raises `ValueError` for anything else."""
        table = self.kernel_dtb if dtb is None else dtb
        for depth, shift in enumerate(self.shape.shifts):
            entry = self._get(table + self.shape.entry * self._index(va, depth))
            if not entry & VALID:
                raise ValueError(f"{va:#x} is not mapped")
            frame = entry & ((1 << 52) - PAGE)
            if entry & LARGE and 12 < shift < 39:
                return (frame & ~((1 << shift) - 1)) | va & ((1 << shift) - 1)
            table = frame
        return table | va & 0xFFF

    def write(self, va: int, data: bytes, dtb: int | None = None) -> None:
        """Put bytes at a valid virtual address (of the kernel's address space unless `dtb` says another)."""
        position = 0
        while position < len(data):
            length = min(len(data) - position, PAGE - ((va + position) & 0xFFF))
            self.write_physical(self.physical_of(va + position, dtb), data[position : position + length])
            position += length

    def read(self, va: int, size: int, dtb: int | None = None) -> bytes:
        """Bytes at a valid virtual address."""
        out = bytearray()
        while len(out) < size:
            at = va + len(out)
            out += self.read_physical(self.physical_of(at, dtb), min(size - len(out), PAGE - (at & 0xFFF)))
        return bytes(out)

    def allocate_struct(self, name: str, fields: Mapping[str, Value] | None = None, *, header: int = 0) -> int:
        """A zeroed structure in the pool, `header` bytes before it; its fields are set; returns the virtual address."""
        va = self.allocate_pool(header + self.types.size(name)) + header
        self.write_struct(name, va, fields or {})
        return va

    def write_struct(self, name: str, va: int, fields: Mapping[str, Value], dtb: int | None = None) -> None:
        """Set fields of the structure `name` at `va`, by dotted paths (`Pcb.DirectoryTableBase`, `Name[3]`).

        A value is an int, bytes (no longer than the field), or ints for an array's first elements. Bit-fields keep
        their neighbours.
        """
        for path, value in fields.items():
            offset, kind = self._field(name, path)
            self._write_value(f"{name}.{path}", va + offset, kind, value, dtb)

    def _field(self, name: str, path: str) -> tuple[int, Type]:
        match = re.fullmatch(r"(.*?)\[(\d+)\](?:\.(.*))?", path)
        if match is None:
            return self.types.field(name, path)
        offset, kind = self.types.field(name, match[1])
        assert isinstance(kind, Array), f"{name}.{match[1]} is no array"
        offset += int(match[2]) * self.types.size(kind.element)
        if match[3] is None:
            return offset, kind.element
        inner, kind = self._field(getattr(kind.element, "name", ""), match[3])
        return offset + inner, kind

    def _write_value(self, what: str, va: int, kind: Type, value: Value, dtb: int | None) -> None:
        size = self.types.size(kind)
        if isinstance(value, bytes):
            assert len(value) <= size, f"{what} has {size} bytes"
            self.write(va, value, dtb)
        elif not isinstance(value, int):
            assert isinstance(kind, Array) and len(value) <= kind.count, f"{what} is no such array"
            for index, element in enumerate(value):
                self._write_value(what, va + index * self.types.size(kind.element), kind.element, element, dtb)
        elif isinstance(kind, BitField):
            old = int.from_bytes(self.read(va, size, dtb), "little")
            mask = ((1 << kind.length) - 1) << kind.position
            new = old & ~mask | (value << kind.position) & mask
            self.write(va, new.to_bytes(size, "little"), dtb)
        else:
            self.write(va, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"), dtb)

    def read_field(self, name: str, va: int, path: str, dtb: int | None = None) -> int:
        """An integer, pointer or bit-field back."""
        offset, kind = self._field(name, path)
        raw = int.from_bytes(self.read(va + offset, self.types.size(kind), dtb), "little")
        return raw >> kind.position & ((1 << kind.length) - 1) if isinstance(kind, BitField) else raw

    def write_unicode_string(self, va: int, text: str, dtb: int | None = None) -> None:
        """A `_UNICODE_STRING` at `va`, its text in the pool."""
        data = text.encode("utf-16-le")
        buffer = self.allocate_pool(max(len(data), 2))
        self.write(buffer, data)
        fields = {"Length": len(data), "MaximumLength": len(data), "Buffer": buffer}
        self.write_struct("_UNICODE_STRING", va, fields, dtb)


@cache
def pattern(seed: int) -> bytes:
    """A page of content that tells which page it is, and which of its 8-byte words, at every word."""
    return b"".join(
        struct.pack("<II", seed & 0xFFFFFFFF, index * 0x9E3779B1 & 0xFFFFFFFF) for index in range(PAGE // 8)
    )
