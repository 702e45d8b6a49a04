"""Types from DWARF, which GCC and Clang for MinGW leave in the image.

A structure that many units define is taken from the first. What C leaves without a name gets it as in a PDB: fields of
a nameless union or structure are their parent's, the type of a named field is called after it (`_PARENT::field`).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from coldframe.errors import FormatError
from coldframe.symbols.dwarf import Dwarf, Entry, Unit

if TYPE_CHECKING:
    from coldframe.symbols.build import TableBuilder

_ARRAY, _CLASS, _ENUM, _MEMBER, _POINTER, _STRUCT, _SUBROUTINE, _TYPEDEF, _UNION, _SUBRANGE, _BASE = (
    *(0x01, 0x02, 0x04, 0x0D, 0x0F, 0x13, 0x15, 0x16, 0x17, 0x21, 0x24),
)
_QUALIFIERS = (0x26, 0x35, 0x37, 0x47)  # const, volatile, restrict, atomic
_POINTERS = (_POINTER, 0x10, 0x42)  # C++ references too
_KINDS = {_STRUCT: "struct", _UNION: "union", _CLASS: "class", _ENUM: "enum"}
(_NAME, _BYTE_SIZE, _BIT_OFFSET, _BIT_SIZE, _CONST_VALUE, _UPPER_BOUND, _COUNT, _LOCATION, _DECLARATION,
 _ENCODING, _TYPE, _DATA_BIT_OFFSET, _STR_OFFSETS) = (
    *(0x03, 0x0B, 0x0C, 0x0D, 0x1C, 0x2F, 0x37, 0x38, 0x3C, 0x3E, 0x49, 0x6B, 0x72),
)  # fmt: skip
_ENCODINGS = {2: "bool", 4: "float", 6: "char", 8: "char"}
_SIGNED = (5, 6, 13)
_PLUS_CONSTANT = 0x23  # DW_OP_plus_uconst
_MOST_DEPTH = 64


def compile_types(dwarf: Dwarf, builder: TableBuilder, where: str) -> None:
    """Tell `builder` every type of the image `where`. Raises `FormatError`."""
    try:
        units = list(dwarf.units())
        compiler = _Compiler(dwarf, units, builder)
        for unit in units:
            compiler.index(unit)
        compiler.define()
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    except (struct.error, LookupError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: its DWARF is damaged: {error!r}") from error


class _Compiler:
    """Makes each definition once, from the unit that it was first seen in."""

    def __init__(self, dwarf: Dwarf, units: Sequence[Unit], builder: TableBuilder) -> None:
        self.dwarf, self.units, self.builder = dwarf, units, builder
        self._definitions: dict[str, Entry] = {}
        self._named: dict[int, str] = {}
        self._types: dict[int, int] = {}
        self._starts = [unit.start for unit in units]

    def index(self, unit: Unit) -> None:
        """Note the structures and enums that `unit` defines at its top."""
        top = self.dwarf.entry(unit, unit.first)
        if top is None:
            return
        self.dwarf.text_bases[unit.start] = top.number(_STR_OFFSETS, 2 * unit.offset_size)
        info, at = self.dwarf.info, top.end
        while at < unit.end:
            code, place = self.dwarf.leb(info, at)
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

    def _note(self, entry: Entry) -> None:
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

    def _define(self, name: str, entry: Entry) -> None:
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

    def _members(self, entry: Entry, parent: str, start: int, above: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
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

    def _field(self, member: Entry, offset: int) -> tuple[int, int]:
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

    def _at(self, offset: int) -> Entry:
        unit = self.units[max(0, bisect_right(self._starts, offset) - 1)]
        entry = self.dwarf.entry(unit, offset)
        if entry is None:
            raise FormatError(f"a type at {offset:#x} of .debug_info, where there is none")
        return entry

    def _plain(self, offset: int) -> Entry | None:
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

    def _made(self, entry: Entry | None, depth: int) -> int:
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

    def _called(self, entry: Entry, name: str) -> str:
        """The name of a type that has none in C: the first that it was given."""
        known = self._named.setdefault(entry.at, name)
        self._definitions.setdefault(known, entry)
        return known


def _name(entry: Entry) -> str:
    name = entry.attributes.get(_NAME)
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else ""


def _location(member: Entry) -> int:
    """DW_AT_data_member_location: a number, or in DWARF 2 an expression that adds one."""
    told = member.attributes.get(_LOCATION, 0)
    if isinstance(told, int):
        return told
    if told[:1] != bytes([_PLUS_CONSTANT]):
        return 0
    return Dwarf.leb(told, 1)[0]
