"""The entries of DWARF's .debug_info, of versions 2 to 5: https://dwarfstd.org/dwarf5std.html."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from coldframe.errors import FormatError

SIBLING = 0x01  # DW_AT_sibling
_FIXED = {
    0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x19: 0, 0x1C: 4, 0x1E: 16,
    0x20: 8, 0x21: 0, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4,
}  # fmt: skip
_OF_OFFSET_SIZE = (0x0E, 0x17, 0x1D, 0x1F, 0x1F20, 0x1F21)  # strp, sec_offset, line_strp and their kin
_LEB = (0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23)
_BLOCKS = {0x03: 2, 0x04: 4, 0x0A: 1}
_UNIT_REFERENCES = (0x11, 0x12, 0x13, 0x14, 0x15)

Value: TypeAlias = int | bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """An abbreviation: what an entry of it has. `size` is that of its attributes where it does not vary."""

    tag: int
    children: bool
    attributes: Sequence[tuple[int, int, int]]
    size: int | None


@dataclass(frozen=True, slots=True)
class Unit:
    """A compilation unit: from `start` to `end` of .debug_info, its entries from `first` on."""

    start: int
    end: int
    first: int
    offset_size: int
    address_size: int
    version: int
    shapes: Mapping[int, Shape]


@dataclass(frozen=True, slots=True)
class Entry:
    """A debugging information entry: where it is, its attributes, and where its children begin."""

    unit: Unit
    at: int
    tag: int
    attributes: Mapping[int, Value]
    has_children: bool
    end: int

    def number(self, attribute: int, default: int = 0) -> int:
        """An attribute that is a number; `default` where it has none."""
        value = self.attributes.get(attribute, default)
        return value if isinstance(value, int) else default


class Dwarf:
    """The debug sections of one image: `.debug_info`, `.debug_abbrev`, and those that hold texts."""

    def __init__(
        self, info: bytes, abbrev: bytes, texts: bytes = b"", line_texts: bytes = b"", text_offsets: bytes = b""
    ) -> None:
        self.info, self.abbrev = info, abbrev
        self.texts, self.line_texts, self.text_offsets = texts, line_texts, text_offsets
        self._shapes: dict[tuple[int, int, int, int], Mapping[int, Shape]] = {}
        self.text_bases: dict[int, int] = {}

    def units(self) -> Iterator[Unit]:
        """The units in their order; raises `FormatError`."""
        at = 0
        while at + 11 < len(self.info):
            (length,) = struct.unpack_from("<I", self.info, at)
            wide = length == 0xFFFF_FFFF
            if wide:
                (length,) = struct.unpack_from("<Q", self.info, at + 4)
            start, size = at, 8 if wide else 4
            at += 12 if wide else 4
            end = at + length
            if not length or end > len(self.info):
                raise FormatError(f"a unit of {length:#x} bytes at {start:#x} of .debug_info")
            (version,) = struct.unpack_from("<H", self.info, at)
            at += 2
            if version >= 5:
                kind, address_size = self.info[at], self.info[at + 1]
                abbrev, at = self._number(at + 2, size), at + 2 + size
                at += {4: 8, 5: 8, 2: 8 + size, 6: 8 + size}.get(kind, 0)  # ids of skeletons and of type units
            else:
                abbrev, address_size = self._number(at, size), self.info[at + size]
                at += size + 1
            if not 2 <= version <= 5:
                raise FormatError(f"DWARF of version {version}; 2 to 5 are read")
            yield Unit(start, end, at, size, address_size, version, self._table(abbrev, version, size, address_size))
            at = end

    def _table(self, at: int, version: int, offset_size: int, address_size: int) -> Mapping[int, Shape]:
        key = (at, version, offset_size, address_size)
        known = self._shapes.get(key)
        if known is not None:
            return known
        fixed = dict(_FIXED) | dict.fromkeys(_OF_OFFSET_SIZE, offset_size) | {0x01: address_size}
        fixed[0x10] = offset_size if version > 2 else address_size
        shapes: dict[int, Shape] = {}
        while (told := self.leb(self.abbrev, at))[0]:
            code, at = told
            tag, at = self.leb(self.abbrev, at)
            children, at = self.abbrev[at], at + 1
            attributes: list[tuple[int, int, int]] = []
            while True:
                attribute, at = self.leb(self.abbrev, at)
                form, at = self.leb(self.abbrev, at)
                constant = 0
                if form == 0x21:
                    constant, at = self.leb(self.abbrev, at, signed=True)
                if not attribute and not form:
                    break
                attributes.append((attribute, form, constant))
            sizes = [fixed.get(form) for _, form, _ in attributes]
            size = None if None in sizes else sum(size or 0 for size in sizes)
            shapes[code] = Shape(tag, bool(children), attributes, size)
        self._shapes[key] = shapes
        return shapes

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self.info[at : at + size], "little")

    @staticmethod
    def leb(data: bytes, at: int, *, signed: bool = False) -> tuple[int, int]:
        """The LEB128 number at `at`, and where the next thing is."""
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value, at

    def entry(self, unit: Unit, at: int) -> Entry | None:
        """The entry at `at`; None at the end of a row of siblings."""
        code, place = self.leb(self.info, at)
        if not code:
            return None
        shape = unit.shapes[code]
        attributes: dict[int, Value] = {}
        for attribute, form, constant in shape.attributes:
            value, place = self._value(unit, form, place, constant)
            attributes[attribute] = value
        return Entry(unit, at, shape.tag, attributes, shape.children, place)

    def _value(self, unit: Unit, form: int, at: int, constant: int) -> tuple[Value, int]:
        """A number; a text or a block as bytes; a reference as an offset in .debug_info."""
        if form in _FIXED:
            size = _FIXED[form]
            value = self._number(at, size) if size else {0x19: 1}.get(form, constant)
            if form in _UNIT_REFERENCES:
                value += unit.start
            if 0x25 <= form <= 0x28:
                return self._indexed(unit, value), at + size
            return value, at + size
        if form in _OF_OFFSET_SIZE:
            value, at = self._number(at, unit.offset_size), at + unit.offset_size
            table = {0x0E: self.texts, 0x1F: self.line_texts}.get(form)
            return value if table is None else _text(table, value), at
        if form in _LEB:
            value, at = self.leb(self.info, at)
            if form == 0x1A:
                return self._indexed(unit, value), at
            return value + (unit.start if form in _UNIT_REFERENCES else 0), at
        if form == 0x0D:
            return self.leb(self.info, at, signed=True)
        if form == 0x08:
            text = _text(self.info, at)
            return text, at + len(text) + 1
        if form in _BLOCKS or form in (0x09, 0x18):
            size, at = (
                (self._number(at, _BLOCKS[form]), at + _BLOCKS[form]) if form in _BLOCKS else self.leb(self.info, at)
            )
            return self.info[at : at + size], at + size
        if form in (0x01, 0x10):
            size = unit.address_size if form == 0x01 or unit.version == 2 else unit.offset_size
            return self._number(at, size), at + size
        if form == 0x16:
            form, at = self.leb(self.info, at)
            return self._value(unit, form, at, constant)
        raise FormatError(f"an attribute of form {form:#x} at {at:#x} of .debug_info")

    def _indexed(self, unit: Unit, index: int) -> bytes:
        base = self.text_bases.get(unit.start, 2 * unit.offset_size)
        at = base + index * unit.offset_size
        return _text(self.texts, int.from_bytes(self.text_offsets[at : at + unit.offset_size], "little"))

    def children(self, entry: Entry) -> Iterator[Entry]:
        """The entries directly below `entry`."""
        if not entry.has_children:
            return
        at = entry.end
        while (child := self.entry(entry.unit, at)) is not None:
            yield child
            at = self.behind(child)

    def behind(self, entry: Entry) -> int:
        """Where the next sibling of `entry` is."""
        sibling = entry.number(SIBLING)
        if not entry.has_children:
            return entry.end
        return sibling if sibling > entry.at else self._behind_children(entry.unit, entry.end)

    def _behind_children(self, unit: Unit, at: int) -> int:
        depth = 1
        while depth:
            code, place = self.leb(self.info, at)
            if not code:
                depth -= 1
                at = place
                continue
            shape = unit.shapes[code]
            if shape.size is not None:
                at = place + shape.size
                depth += shape.children
                continue
            entry = self.entry(unit, at)
            if entry is not None:
                at = entry.end
                depth += entry.has_children
        return at


def _text(table: bytes, at: int) -> bytes:
    return table[at : table.index(b"\0", at)]
