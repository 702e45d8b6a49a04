"""Base relocations: what makes an image file's bytes those that a process sees.

Format: Microsoft's PE specification, "The .reloc Section". The kernel relocates an image's pages as they come in from
the file, for the base that its segment has (`_SEGMENT.BasedAddress`), and writes that base into the header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError

PAGE = 4096
_LARGEST_TABLE = 64 << 20  # bytes
_LARGEST_HEADERS = 1 << 16
_ABSOLUTE, _HIGH, _LOW, _HIGHLOW, _DIR64 = 0, 1, 2, 3, 10
_SIZES = {_HIGH: 2, _LOW: 2, _HIGHLOW: 4, _DIR64: 8}


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image's headers say. `base` is the preferred base, `base_at` the file offset of that field.

    `identity` is what tells one image from another: the headers up to the section table's end, without the base.
    """

    base: int
    base_at: int
    base_size: int
    timestamp: int
    size: int
    checksum: int
    entry: int
    relocations: tuple[int, int]
    sections: tuple[tuple[int, int, int, int], ...]
    identity: bytes

    @classmethod
    def parse(cls, data: bytes) -> ImageHeader:
        """The headers of an image file (or of its first page in RAM, as far as that has them); `FormatError`."""
        try:
            at = struct.unpack_from("<I", data, 0x3C)[0]
            if data[:2] != b"MZ" or at > len(data) - 24 or data[at : at + 4] != b"PE\0\0":
                raise FormatError("no PE image: it has no MZ and PE signatures")
            count, timestamp, optional_size = struct.unpack_from("<HI8xH", data, at + 6)
            optional = at + 24
            wide = struct.unpack_from("<H", data, optional)[0] == 0x20B
            base_at, base_size = (optional + 24, 8) if wide else (optional + 28, 4)
            base = int.from_bytes(data[base_at : base_at + base_size], "little")
            entry = struct.unpack_from("<I", data, optional + 16)[0]
            size, headers, checksum = struct.unpack_from("<III", data, optional + 56)
            directories = optional + (112 if wide else 96)
            number = struct.unpack_from("<I", data, directories - 4)[0]
            where = struct.unpack_from("<II", data, directories + 5 * 8) if number > 5 else (0, 0)
            table = optional + optional_size
            end = table + 40 * count
            sections = tuple(struct.unpack_from("<IIII", data, table + 40 * index + 8) for index in range(count))
        except struct.error:
            raise FormatError("no PE image: its headers end too soon") from None
        blank = data[at:base_at] + bytes(base_size) + data[base_at + base_size : min(end, headers or end)]
        return cls(base, base_at, base_size, timestamp, size, checksum, entry, where, sections, blank)

    def difference(self, other: ImageHeader) -> str:
        """How this image, on the disk, differs from `other`, in RAM; empty where it is the same."""
        for name in ("timestamp", "size", "checksum", "entry"):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return f"its {name} is {here:#x}, that of the image in RAM {there:#x}"
        length = min(len(self.identity), len(other.identity))
        return "" if self.identity[:length] == other.identity[:length] else "its headers differ from those in RAM"


class Relocations:
    """The base relocations of an image that is mapped at `base`; `read` gives the file's bytes at an offset.

    Raises `FormatError` for a table that is none.
    """

    def __init__(self, header: ImageHeader, base: int, read: Callable[[int, int], bytes]) -> None:
        self.header = header
        self.base = base
        self.delta = base - header.base
        self._read = read
        self._rva = np.zeros(0, np.int64)
        self._kind = np.zeros(0, np.uint8)
        if self.delta and header.relocations[1]:
            self._parse(self.at_rva(header.relocations[0], min(header.relocations[1], _LARGEST_TABLE)))

    def at_rva(self, rva: int, size: int) -> bytes:
        """What the file has for `size` bytes at `rva`; zeros where it has nothing."""
        out = bytearray(size)
        for virtual_size, start, raw, place in self.header.sections:
            stored = min(raw, -(-virtual_size // PAGE) * PAGE or raw) if place else 0  # slack behind the data is mapped
            low, high = max(rva, start), min(rva + size, start + stored)
            if low < high:
                out[low - rva : high - rva] = self._read(place + low - start, high - low).ljust(high - low, b"\0")
        first = min((start for _, start, _, _ in self.header.sections), default=_LARGEST_HEADERS)
        if rva < first:
            length = min(size, first - rva)
            out[:length] = self._read(rva, length).ljust(length, b"\0")
        return bytes(out)

    def _parse(self, table: bytes) -> None:
        rvas, kinds, at = [], [], 0
        while at + 8 <= len(table):
            page, size = struct.unpack_from("<II", table, at)
            if not size and not page:
                break
            if size < 8 or size > len(table) - at:
                raise FormatError(f"its relocation table has a block of {size} bytes at {at:#x}")
            words = np.frombuffer(table, "<u2", (size - 8) // 2, at + 8)
            kind = (words >> 12).astype(np.uint8)
            used = kind != _ABSOLUTE
            rvas.append(page + (words[used] & 0xFFF).astype(np.int64))
            kinds.append(kind[used])
            at += size
        if not rvas:
            return
        rva, kind = np.concatenate(rvas), np.concatenate(kinds)
        unknown = set(np.unique(kind).tolist()) - set(_SIZES)
        if unknown:
            raise FormatError(f"its relocations have types {sorted(unknown)}, which are not of x86 or x64")
        order = np.argsort(rva, kind="stable")
        self._rva, self._kind = rva[order], kind[order]

    def touches(self, rva: int) -> bool:
        """Whether the page at `rva` is changed at all."""
        low, high = np.searchsorted(self._rva, (rva - 7, rva + PAGE))
        return bool(high > low) or rva <= self.header.base_at < rva + PAGE

    def apply(self, rva: int, page: NDArray[np.uint8]) -> None:
        """Relocate `page`, shape (4096,), that lies at `rva` of the image."""
        if rva <= self.header.base_at <= rva + PAGE - self.header.base_size:
            at, size = self.header.base_at - rva, self.header.base_size
            page[at : at + size] = np.frombuffer((self.base % (1 << 8 * size)).to_bytes(size, "little"), np.uint8)
        low, high = np.searchsorted(self._rva, (rva - 7, rva + PAGE)).tolist()
        where, kinds = self._rva[low:high] - rva, self._kind[low:high]
        for kind, size in _SIZES.items():
            at = where[kinds == kind]
            if not len(at):
                continue
            inside = (at >= 0) & (at <= PAGE - size)
            self._add(page, at[inside], kind, size)
            for place in at[~inside].tolist():
                self._across(page, rva, place, kind, size)

    def _add(self, page: NDArray[np.uint8], at: NDArray[np.int64], kind: int, size: int) -> None:
        index = at[:, None] + np.arange(size)
        values = np.ascontiguousarray(page[index]).view(f"<u{size}").ravel()
        with np.errstate(over="ignore"):
            moved = values + values.dtype.type(self._amount(kind, size))
        page[index] = moved.view(np.uint8).reshape(-1, size)

    def _amount(self, kind: int, size: int) -> int:
        amount = self.delta >> 16 if kind == _HIGH else self.delta
        return amount % (1 << 8 * size)

    def _across(self, page: NDArray[np.uint8], rva: int, place: int, kind: int, size: int) -> None:
        """A value of which this page has a part: the whole of it from the file."""
        value = int.from_bytes(self.at_rva(rva + place, size), "little") + self._amount(kind, size)
        data = (value % (1 << 8 * size)).to_bytes(size, "little")
        for number, byte in enumerate(data):
            if 0 <= place + number < PAGE:
                page[place + number] = byte
