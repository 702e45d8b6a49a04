"""Types from DWARF, which GCC and Clang for MinGW leave in the image: of versions 2 to 5.

The format: https://dwarfstd.org/dwarf5std.html. Only what describes types is decoded; a structure that many units
define is taken from the first. What C leaves without a name gets it as in a PDB: fields of a nameless union or
structure are their parent's, the type of a named field is called after it (`_PARENT::field`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from coldframe.errors import FormatError

if TYPE_CHECKING:
    from coldframe.symbols.build import TableBuilder

_ARRAY, _CLASS, _ENUM, _MEMBER, _POINTER, _STRUCT, _SUBROUTINE, _TYPEDEF, _UNION, _SUBRANGE, _BASE, _ENUMERATOR = (
    *(0x01, 0x02, 0x04, 0x0D, 0x0F, 0x13, 0x15, 0x16, 0x17, 0x21, 0x24, 0x28),
)
_QUALIFIERS = (0x26, 0x35, 0x37, 0x47)  # const, volatile, restrict, atomic
_POINTERS = (_POINTER, 0x10, 0x42)  # C++ references too
_KINDS = {_STRUCT: "struct", _UNION: "union", _CLASS: "class", _ENUM: "enum"}
(_SIBLING, _NAME, _BYTE_SIZE, _BIT_OFFSET, _BIT_SIZE, _CONST_VALUE, _UPPER_BOUND, _COUNT, _LOCATION, _DECLARATION,
 _ENCODING, _TYPE, _DATA_BIT_OFFSET, _STR_OFFSETS) = (
    *(0x01, 0x03, 0x0B, 0x0C, 0x0D, 0x1C, 0x2F, 0x37, 0x38, 0x3C, 0x3E, 0x49, 0x6B, 0x72),
)  # fmt: skip
_ENCODINGS = {2: "bool", 4: "float", 6: "char", 8: "char"}
_SIGNED = (5, 6, 13)
_PLUS_CONSTANT = 0x23  # DW_OP_plus_uconst
_FIXED = {
    0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x19: 0, 0x1C: 4, 0x1E: 16,
    0x20: 8, 0x21: 0, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4,
}  # fmt: skip
_OF_OFFSET_SIZE = (0x0E, 0x17, 0x1D, 0x1F, 0x1F20, 0x1F21)  # strp, sec_offset, line_strp and their kin
_LEB = (0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23)
_BLOCKS = {0x03: 2, 0x04: 4, 0x0A: 1}
_UNIT_REFERENCES = (0x11, 0x12, 0x13, 0x14, 0x15)
_MOST_DEPTH = 64

Value: TypeAlias = int | bytes


@dataclass(frozen=True, slots=True)
class _Shape:
    """An abbreviation: what an entry of it has. `size` is that of its attributes where it does not vary."""

    tag: int
    children: bool
    attributes: Sequence[tuple[int, int, int]]
    size: int | None


@dataclass(frozen=True, slots=True)
class _Unit:
    start: int
    end: int
    first: int
    offset_size: int
    address_size: int
    version: int
    shapes: Mapping[int, _Shape]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A debugging information entry: where it is, its attributes, and where its children begin."""

    unit: _Unit
    at: int
    tag: int
    attributes: Mapping[int, Value]
    has_children: bool
    end: int

    def number(self, attribute: int, default: int = 0) -> int:
        value = self.attributes.get(attribute, default)
        return value if isinstance(value, int) else default


class Dwarf:
    """The debug sections of one image: `.debug_info`, `.debug_abbrev`, and those that hold texts."""

    def __init__(
        self, info: bytes, abbrev: bytes, texts: bytes = b"", line_texts: bytes = b"", text_offsets: bytes = b""
    ) -> None:
        self.info, self.abbrev = info, abbrev
        self.texts, self.line_texts, self.text_offsets = texts, line_texts, text_offsets
        self._shapes: dict[tuple[int, int, int, int], Mapping[int, _Shape]] = {}
        self._bases: dict[int, int] = {}

    def compile(self, builder: TableBuilder, where: str) -> int:
        """Tell `builder` every type; returns the size of a pointer, 0 where there is no unit. Raises `FormatError`."""
        try:
            units = list(self._units())
            compiler = _Compiler(self, units, builder)
            for unit in units:
                compiler.index(unit)
            compiler.define()
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from error
        except (struct.error, LookupError, ValueError, OverflowError) as error:
            raise FormatError(f"{where}: its DWARF is damaged: {error!r}") from error
        return units[0].address_size if units else 0

    def _units(self) -> Iterator[_Unit]:
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
            yield _Unit(start, end, at, size, address_size, version, self._table(abbrev, version, size, address_size))
            at = end

    def _table(self, at: int, version: int, offset_size: int, address_size: int) -> Mapping[int, _Shape]:
        key = (at, version, offset_size, address_size)
        known = self._shapes.get(key)
        if known is not None:
            return known
        fixed = dict(_FIXED) | dict.fromkeys(_OF_OFFSET_SIZE, offset_size) | {0x01: address_size}
        fixed[0x10] = offset_size if version > 2 else address_size
        shapes: dict[int, _Shape] = {}
        while (told := self._leb(self.abbrev, at))[0]:
            code, at = told
            tag, at = self._leb(self.abbrev, at)
            children, at = self.abbrev[at], at + 1
            attributes: list[tuple[int, int, int]] = []
            while True:
                attribute, at = self._leb(self.abbrev, at)
                form, at = self._leb(self.abbrev, at)
                constant = 0
                if form == 0x21:
                    constant, at = self._leb(self.abbrev, at, signed=True)
                if not attribute and not form:
                    break
                attributes.append((attribute, form, constant))
            sizes = [fixed.get(form) for _, form, _ in attributes]
            size = None if None in sizes else sum(size or 0 for size in sizes)
            shapes[code] = _Shape(tag, bool(children), attributes, size)
        self._shapes[key] = shapes
        return shapes

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self.info[at : at + size], "little")

    @staticmethod
    def _leb(data: bytes, at: int, *, signed: bool = False) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value, at

    def entry(self, unit: _Unit, at: int) -> _Entry | None:
        """The entry at `at`; None at the end of a row of siblings."""
        code, place = self._leb(self.info, at)
        if not code:
            return None
        shape = unit.shapes[code]
        attributes: dict[int, Value] = {}
        for attribute, form, constant in shape.attributes:
            value, place = self._value(unit, form, place, constant)
            attributes[attribute] = value
        return _Entry(unit, at, shape.tag, attributes, shape.children, place)

    def _value(self, unit: _Unit, form: int, at: int, constant: int) -> tuple[Value, int]:
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
            value, at = self._leb(self.info, at)
            if form == 0x1A:
                return self._indexed(unit, value), at
            return value + (unit.start if form in _UNIT_REFERENCES else 0), at
        if form == 0x0D:
            return self._leb(self.info, at, signed=True)
        if form == 0x08:
            text = _text(self.info, at)
            return text, at + len(text) + 1
        if form in _BLOCKS or form in (0x09, 0x18):
            size, at = (
                (self._number(at, _BLOCKS[form]), at + _BLOCKS[form]) if form in _BLOCKS else self._leb(self.info, at)
            )
            return self.info[at : at + size], at + size
        if form in (0x01, 0x10):
            size = unit.address_size if form == 0x01 or unit.version == 2 else unit.offset_size
            return self._number(at, size), at + size
        if form == 0x16:
            form, at = self._leb(self.info, at)
            return self._value(unit, form, at, constant)
        raise FormatError(f"an attribute of form {form:#x} at {at:#x} of .debug_info")

    def _indexed(self, unit: _Unit, index: int) -> bytes:
        base = self._bases.get(unit.start, 2 * unit.offset_size)
        at = base + index * unit.offset_size
        return _text(self.texts, int.from_bytes(self.text_offsets[at : at + unit.offset_size], "little"))

    def children(self, entry: _Entry) -> Iterator[_Entry]:
        """The entries directly below `entry`."""
        if not entry.has_children:
            return
        at = entry.end
        while (child := self.entry(entry.unit, at)) is not None:
            yield child
            at = self.behind(child)

    def behind(self, entry: _Entry) -> int:
        """Where the next sibling of `entry` is."""
        sibling = entry.number(_SIBLING)
        if not entry.has_children:
            return entry.end
        return sibling if sibling > entry.at else self._behind_children(entry.unit, entry.end)

    def _behind_children(self, unit: _Unit, at: int) -> int:
        depth = 1
        while depth:
            code, place = self._leb(self.info, at)
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


class _Compiler:
    """Makes each definition once, from the unit that it was first seen in."""

    def __init__(self, dwarf: Dwarf, units: Sequence[_Unit], builder: TableBuilder) -> None:
        self.dwarf, self.units, self.builder = dwarf, units, builder
        self._definitions: dict[str, _Entry] = {}
        self._named: dict[int, str] = {}
        self._types: dict[int, int] = {}
        self._starts = [unit.start for unit in units]

    def index(self, unit: _Unit) -> None:
        """Note the structures and enums that `unit` defines at its top."""
        top = self.dwarf.entry(unit, unit.first)
        if top is None:
            return
        self.dwarf._bases[unit.start] = top.number(_STR_OFFSETS, 2 * unit.offset_size)
        info, at = self.dwarf.info, top.end
        while at < unit.end:
            code, place = self.dwarf._leb(info, at)
            if not code:
                return
            shape = unit.shapes[code]
            if shape.size is not None and not shape.children and shape.tag != _TYPEDEF:
                at = place + shape.size
                continue
            entry = self.dwarf.entry(unit, at)
            if entry is None:
                return
            self._note(entry)
            at = self.dwarf.behind(entry)

    def _note(self, entry: _Entry) -> None:
        if entry.tag in _KINDS:
            name = entry.attributes.get(_NAME)
            if isinstance(name, bytes) and not entry.number(_DECLARATION):
                self._definitions.setdefault(name.decode("utf-8", "replace"), entry)
        elif entry.tag == _TYPEDEF and _TYPE in entry.attributes:
            target = self._at(entry.number(_TYPE))
            name = entry.attributes.get(_NAME)
            if target.tag in _KINDS and _NAME not in target.attributes and isinstance(name, bytes):
                text = name.decode("utf-8", "replace")
                self._named.setdefault(target.at, text)
                self._definitions.setdefault(text, target)

    def define(self) -> None:
        """Define everything that was noted, and what that names on the way."""
        done: set[str] = set()
        while waiting := [name for name in self._definitions if name not in done]:
            for name in waiting:
                done.add(name)
                self._define(name, self._definitions[name])

    def _define(self, name: str, entry: _Entry) -> None:
        size = entry.number(_BYTE_SIZE)
        if entry.tag == _ENUM:
            constants = [
                (_name(child), child.number(_CONST_VALUE)) for child in self.dwarf.children(entry) if _name(child)
            ]
            base = self.builder.base("int" if size == 4 else f"int{8 * size}", size, "int", signed=True)
            self.builder.define(name, "enum", size, self.builder.constants(constants), base)
            return
        fields = self.builder.fields(self._members(entry, name, 0, ()))
        self.builder.define(name, _KINDS[entry.tag], size, fields)

    def _members(
        self, entry: _Entry, parent: str, start: int, above: tuple[int, ...]
    ) -> Iterator[tuple[str, int, int]]:
        """(Name, offset, type) of each field, those of nameless members among them; `above` are these on the way."""
        for child in self.dwarf.children(entry):
            if child.tag != _MEMBER or _TYPE not in child.attributes:
                continue
            offset, name = start + _location(child), _name(child)
            target = self._plain(child.number(_TYPE))
            if not name and target is not None and target.tag in _KINDS and target.at not in above:
                yield from self._members(target, parent, offset, (*above, target.at))
            elif name:
                if target is not None and target.tag in _KINDS and _NAME not in target.attributes:
                    self._called(target, f"{parent}::{name}")
                yield (name, *self._field(child, offset))

    def _field(self, member: _Entry, offset: int) -> tuple[int, int]:
        """Offset of a field, of a bit-field's storage unit, and its type."""
        kind = self._type(member.number(_TYPE), 0)
        length = member.number(_BIT_SIZE)
        if not length:
            return offset, kind
        target = self._plain(member.number(_TYPE))
        size = member.number(_BYTE_SIZE) or (target.number(_BYTE_SIZE) if target is not None else 0) or 4
        if _DATA_BIT_OFFSET in member.attributes:
            unit, position = divmod(member.number(_DATA_BIT_OFFSET), 8 * size)
            return offset + unit * size, self.builder.bit_field(kind, position, length)
        position = 8 * size - member.number(_BIT_OFFSET) - length
        return offset, self.builder.bit_field(kind, max(0, position), length)

    def _at(self, offset: int) -> _Entry:
        from bisect import bisect_right  # noqa: PLC0415

        unit = self.units[max(0, bisect_right(self._starts, offset) - 1)]
        entry = self.dwarf.entry(unit, offset)
        if entry is None:
            raise FormatError(f"a type at {offset:#x} of .debug_info, where there is none")
        return entry

    def _plain(self, offset: int) -> _Entry | None:
        """The type at `offset` without its typedefs and qualifiers; None for void."""
        for _ in range(_MOST_DEPTH):
            entry = self._at(offset)
            if entry.tag != _TYPEDEF and entry.tag not in _QUALIFIERS:
                return entry
            if _TYPE not in entry.attributes:
                return None
            offset = entry.number(_TYPE)
        return None

    def _type(self, offset: int, depth: int) -> int:
        known = self._types.get(offset)
        if known is None:
            known = self._types[offset] = self._made(self._plain(offset) if depth < _MOST_DEPTH else None, depth)
        return known

    def _made(self, entry: _Entry | None, depth: int) -> int:
        builder = self.builder
        if entry is None:
            return builder.base("void", 0, "void", signed=False)
        size = entry.number(_BYTE_SIZE)
        inner = entry.attributes.get(_TYPE)
        if entry.tag == _BASE:
            encoding = entry.number(_ENCODING)
            return builder.base(_name(entry), size, _ENCODINGS.get(encoding, "int"), encoding in _SIGNED)
        if entry.tag in _POINTERS:
            target = self._type(inner, depth + 1) if isinstance(inner, int) else self._made(None, depth)
            return builder.pointer(target, size or entry.unit.address_size)
        if entry.tag == _ARRAY and isinstance(inner, int):
            made = self._type(inner, depth + 1)
            bounds = [child for child in self.dwarf.children(entry) if child.tag == _SUBRANGE]
            for bound in reversed(bounds):
                count = bound.number(_COUNT, bound.number(_UPPER_BOUND, -1) + 1)
                made = builder.array_of(made, count if 0 <= count < 1 << 32 else 0)
            return made
        if entry.tag in _KINDS:
            name = _name(entry) or self._called(entry, f"<unnamed-{entry.at:x}>")
            return builder.reference(name, _KINDS[entry.tag])
        if entry.tag == _SUBROUTINE:
            return builder.function()
        return self._made(None, depth)

    def _called(self, entry: _Entry, name: str) -> str:
        """The name of a type that has none in C: the first that it was given."""
        known = self._named.setdefault(entry.at, name)
        self._definitions.setdefault(known, entry)
        return known


def _name(entry: _Entry) -> str:
    name = entry.attributes.get(_NAME)
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else ""


def _location(member: _Entry) -> int:
    """DW_AT_data_member_location: a number, or in DWARF 2 an expression that adds one."""
    told = member.attributes.get(_LOCATION, 0)
    if isinstance(told, int):
        return told
    if told[:1] != bytes([_PLUS_CONSTANT]):
        return 0
    return Dwarf._leb(told, 1)[0]
