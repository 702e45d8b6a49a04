"""The type stream (TPI) of a PDB: https://llvm.org/docs/PDB/TpiStream.html, records as in `codeview`.

Definitions with the same name are one; the last in the stream counts. Unnamed records get the name `__unnamed_1e85`,
after their type index, as in Volatility 3's ISF files.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from coldframe.errors import FormatError
from coldframe.symbols.build import TableBuilder
from coldframe.symbols.codeview import SIMPLE_POINTERS, SIMPLE_TYPES, Leaf, Member, name, number

_HEADER = struct.Struct("<5I")  # version, header size, first type index, index after the last, bytes of records
_FIRST_INDEX = 0x1000
_FORWARD, _HAS_UNIQUE_NAME = 0x80, 0x200
_MAX_DEPTH = 64
_UNNAMED = {
    "<unnamed-tag>": "__unnamed",
    "<anonymous-tag>": "__anonymous",
    "__unnamed": "__unnamed",
    "__anonymous": "__anonymous",
}

_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_MEMBER = struct.Struct("<HHI").unpack_from  # kind, attributes, type

_RECORD_KINDS = {
    Leaf.CLASS: "class",
    Leaf.STRUCTURE: "struct",
    Leaf.INTERFACE: "class",
    Leaf.UNION: "union",
    Leaf.CLASS2: "class",
    Leaf.STRUCTURE2: "struct",
    Leaf.INTERFACE2: "class",
    Leaf.UNION2: "union",
    Leaf.ENUM: "enum",
}


class _Udt(NamedTuple):
    """A record or enum as its type record tells; `size` of an enum is that of its base, found later."""

    name: str
    kind: str
    size: int
    members: int
    base: int
    forward: bool
    unique: str


class TypeStream:
    """Adds every definition of a type stream to a `TableBuilder`."""

    def __init__(self, data: bytes, builder: TableBuilder, pointer_size: int, where: str) -> None:
        self._data = data
        self._builder = builder
        self._pointer_size = pointer_size
        self._where = where
        self._types: dict[int, int] = {}
        self._field_lists: dict[int, tuple[int, int]] = {}
        self._budget = len(data) // 2  # members altogether: each has more than 8 bytes, a list may be used twice
        self._offsets = self._split()
        self._udts: dict[int, _Udt] = {}
        self._by_name: dict[str, int] = {}
        self._by_unique: dict[str, int] = {}

    def _split(self) -> list[int]:
        """Where each record starts (its kind, after the length), by type index from 0x1000."""
        data = self._data
        if not data:
            return []
        if len(data) < _HEADER.size:
            raise FormatError(f"{self._where}: {len(data)} bytes are too few for its header")
        _, header_size, first, _, size = _HEADER.unpack_from(data)
        if first != _FIRST_INDEX or not _HEADER.size <= header_size <= len(data) - size:
            raise FormatError(
                f"{self._where}: header of {header_size} bytes, first index {first:#x}, {size} bytes of records "
                f"in a stream of {len(data)}"
            )
        offsets, at, end = [], header_size, header_size + size
        while at + 4 <= end:
            (length,) = _U16(data, at)
            if length < 2 or at + 2 + length > end:
                raise FormatError(f"{self._where}: record of {length} bytes at {at:#x}, the records end at {end:#x}")
            offsets.append(at + 2)
            at += 2 + length
        return offsets

    def compile(self) -> None:
        """Read all definitions. Raises `FormatError` when a record contradicts itself."""
        try:
            self._collect()
            for index in self._by_name.values():
                self._define(self._udts[index])
        except (struct.error, IndexError) as error:
            raise FormatError(f"{self._where}: a record is cut off: {error}") from error
        except FormatError as error:
            raise FormatError(f"{self._where}: {error}") from error

    def _record(self, index: int) -> tuple[int, int, int]:
        """Kind, start of the content and end of the record with type index `index`."""
        at = index - _FIRST_INDEX
        if not 0 <= at < len(self._offsets):
            raise FormatError(f"type index {index:#x} of {len(self._offsets)} types from 0x1000")
        start = self._offsets[at]
        return _U16(self._data, start)[0], start + 2, start + _U16(self._data, start - 2)[0]

    def _collect(self) -> None:
        """Find every record and enum, so that forward references and names can be resolved."""
        data, wanted = self._data, {int(leaf) for leaf in _RECORD_KINDS}
        for at, start in enumerate(self._offsets):
            leaf = data[start] | data[start + 1] << 8
            if leaf not in wanted:
                continue
            index = _FIRST_INDEX + at
            udt = self._udts[index] = self._udt(index, leaf, start + 2, start + _U16(data, start - 2)[0])
            if not udt.forward:
                self._by_name[udt.name] = index
                if udt.unique:
                    self._by_unique[udt.unique] = index

    def _udt(self, index: int, leaf: int, at: int, end: int) -> _Udt:
        data, size, base = self._data, 0, 0
        kind = _RECORD_KINDS[Leaf(leaf)]
        if leaf == Leaf.ENUM:
            _, properties, base, members = struct.unpack_from("<HHII", data, at)
            at += 12
        elif leaf == Leaf.UNION:
            _, properties, members = struct.unpack_from("<HHI", data, at)
            size, at = number(data, at + 8)
        elif leaf == Leaf.UNION2:
            properties, members = struct.unpack_from("<II", data, at)
            _, at = number(data, at + 8)
            size, at = number(data, at)
        elif leaf in (Leaf.CLASS2, Leaf.STRUCTURE2, Leaf.INTERFACE2):
            properties, members = struct.unpack_from("<II", data, at)
            _, at = number(data, at + 16)
            size, at = number(data, at)
        else:
            _, properties, members = struct.unpack_from("<HHI", data, at)
            size, at = number(data, at + 16)
        told, at = name(data, at, end)
        unique = name(data, at, end)[0] if properties & _HAS_UNIQUE_NAME else ""
        scope, colons, last = told.rpartition("::")
        if last in _UNNAMED:
            told = f"{scope}{colons}{_UNNAMED[last]}_{index:x}"
        return _Udt(told or f"__unnamed_{index:x}", kind, size, members, base, bool(properties & _FORWARD), unique)

    def _define(self, udt: _Udt) -> None:
        builder = self._builder
        if udt.kind == "enum":
            base, size, signed = self._enum_base(udt.base)
            builder.define(udt.name, "enum", size, self._constants(udt.members, size if signed else 0), base)
        else:
            builder.define(udt.name, udt.kind, udt.size, self._fields(udt.members))

    def _enum_base(self, index: int, depth: int = 0) -> tuple[int, int, bool]:
        """Type number and size of the number under an enum, whether it is signed; modifiers are seen through."""
        if index < _FIRST_INDEX:
            told = SIMPLE_TYPES.get(index & 0xFF)
            if told is None or index & 0xF00:
                raise FormatError(f"an enum over the simple type {index:#x}")
            return self._builder.base(*told), told[1], told[3]
        leaf, at, _ = self._record(index)
        if depth > _MAX_DEPTH or leaf not in (Leaf.MODIFIER, Leaf.ENUM):
            raise FormatError(f"an enum over type {index:#x}, which is no number")
        return self._enum_base(self._udts[index].base if leaf == Leaf.ENUM else _U32(self._data, at)[0], depth + 1)

    # Field lists

    def _lists(self, index: int) -> list[tuple[int, int]]:
        """Start and end of a field list and of those that continue it."""
        parts: list[tuple[int, int]] = []
        seen: set[int] = set()
        while index:
            leaf, at, end = self._record(index)
            if leaf != Leaf.FIELD_LIST or index in seen:
                raise FormatError(f"type {index:#x} is no field list, or one that continues itself")
            seen.add(index)
            parts.append((at, end))
            index = self._continuation(at, end)
        return parts

    def _continuation(self, at: int, end: int) -> int:
        """The type index of the list that goes on where this one ends, or 0. LF_INDEX is the last entry, 8 bytes."""
        if end - at >= 8 and _U16(self._data, end - 8)[0] == Member.CONTINUED and _U16(self._data, end - 6)[0] == 0:
            return int(_U32(self._data, end - 4)[0])
        return 0

    def _spend(self, members: int) -> None:
        self._budget -= members
        if self._budget < 0:
            raise FormatError("the field lists have more members than the stream can hold")

    def _fields(self, index: int) -> tuple[int, int]:
        known = self._field_lists.get(index)
        if known is None:
            members = [entry for at, end in self._lists(index) for entry in self._members(at, end)]
            known = self._field_lists[index] = self._builder.fields(members)
        return known

    def _members(self, at: int, end: int) -> list[tuple[str, int, int]]:
        """Name, offset and type number of the data members; methods, statics, base classes are passed over."""
        data, found, types = self._data, [], self._types
        while at + 4 <= end:
            if data[at] >= 0xF0:  # LF_PAD1..15: this many bytes to the next entry
                at += (data[at] & 0x0F) or 1
                continue
            kind, _, index = _MEMBER(data, at) if at + 8 <= end else (0, 0, 0)
            if kind != Member.MEMBER:
                at = self._skip(at, end)
                continue
            offset, at = number(data, at + 8)
            stop = data.find(b"\0", at, end)
            if stop < 0:
                raise FormatError(f"the name at {at:#x} does not end before {end:#x}")
            if stop > at:
                text = data[at:stop].decode("utf-8", "surrogateescape")
                known = types.get(index)
                found.append((text, offset, self._type(index) if known is None else known))
            at = stop + 1
        self._spend(len(found))
        return found

    def _constants(self, index: int, signed_size: int) -> tuple[int, int]:
        """Store an enum's constants; those over a signed number of `signed_size` bytes may be written unsigned."""
        data, found, sign = self._data, [], 1 << 8 * signed_size - 1 if signed_size else 0
        for start, end in self._lists(index):
            at = start
            while at + 4 <= end:
                if data[at] >= 0xF0:
                    at += (data[at] & 0x0F) or 1
                elif _U16(data, at)[0] == Member.ENUMERATE:
                    value, at = number(data, at + 4)
                    text, at = name(data, at, end)
                    found.append((text, value - 2 * sign if sign <= value < 2 * sign else value))
                else:
                    at = self._skip(at, end)
        self._spend(len(found))
        return self._builder.constants(found)

    def _skip(self, at: int, end: int) -> int:
        """Where the entry of a field list at `at`, of no interest, ends."""
        data, kind = self._data, _U16(self._data, at)[0]
        match kind:
            case Member.BASE_CLASS | Member.BASE_INTERFACE:
                return number(data, at + 8)[1]
            case Member.VIRTUAL_BASE | Member.INDIRECT_VIRTUAL_BASE:
                return number(data, number(data, at + 12)[1])[1]
            case Member.CONTINUED | Member.VTABLE_POINTER | Member.FRIEND_CLASS:
                return at + 8
            case Member.VTABLE_OFFSET:
                return at + 12
            case Member.ENUMERATE:
                return name(data, number(data, at + 4)[1], end)[1]
            case Member.MEMBER:
                return name(data, number(data, at + 8)[1], end)[1]
            case Member.METHOD:
                introduces = _U16(data, at + 2)[0] >> 2 & 7 in (4, 6)  # then an offset in the vtable follows
                return name(data, at + (12 if introduces else 8), end)[1]
            case (
                Member.STATIC
                | Member.METHODS
                | Member.NESTED_TYPE
                | Member.NESTED_TYPE_EX
                | Member.MEMBER_MODIFY
                | Member.FRIEND_FUNCTION
            ):
                return name(data, at + 8, end)[1]
        raise FormatError(f"entry of the unknown kind {kind:#x} in the field list at {at:#x}")

    # Types

    def _type(self, index: int, depth: int = 0) -> int:
        """The number in the table of the type with index `index`."""
        known = self._types.get(index)
        if known is None:
            if depth > _MAX_DEPTH:
                raise FormatError(f"type {index:#x} is nested more than {_MAX_DEPTH} deep")
            known = self._types[index] = self._make(index, depth + 1)
        return known

    def _make(self, index: int, depth: int) -> int:
        data, builder = self._data, self._builder
        if index < _FIRST_INDEX:
            return self._simple(index)
        if index in self._udts:
            return self._reference(self._udts[index])
        leaf, at, _ = self._record(index)
        match leaf:
            case Leaf.MODIFIER:
                return self._type(_U32(data, at)[0], depth)
            case Leaf.POINTER:
                target, attributes = struct.unpack_from("<II", data, at)
                return builder.pointer(self._type(target, depth), attributes >> 13 & 0x3F or self._pointer_size)
            case Leaf.BIT_FIELD:
                unit, length, position = struct.unpack_from("<IBB", data, at)
                return builder.bit_field(self._type(unit, depth), position, length)
            case Leaf.ARRAY:
                (element,) = _U32(data, at)
                size, _ = number(data, at + 8)
                element_size = self._size(element)
                return builder.array_of(self._type(element, depth), size // element_size if element_size else 0)
            case Leaf.PROCEDURE | Leaf.MEMBER_FUNCTION | Leaf.VTABLE_SHAPE:
                return builder.function()
        return builder.base(f"<leaf {leaf:#x}>", 0, "void", False)

    def _simple(self, index: int) -> int:
        told = SIMPLE_TYPES.get(index & 0xFF) or (f"<simple type {index & 0xFF:#x}>", 0, "void", False)
        base, mode = self._builder.base(*told), index >> 8 & 0xF
        return self._builder.pointer(base, SIMPLE_POINTERS.get(mode, self._pointer_size)) if mode else base

    def _complete(self, udt: _Udt) -> _Udt:
        """The definition that a forward reference means; itself when there is none."""
        if not udt.forward:
            return udt
        index = self._by_unique.get(udt.unique) if udt.unique else None
        index = self._by_name.get(udt.name) if index is None else index
        return udt if index is None else self._udts[index]

    def _reference(self, udt: _Udt) -> int:
        udt = self._complete(udt)
        return self._builder.reference(udt.name, udt.kind)

    def _size(self, index: int) -> int:
        """Bytes of a type; 0 when it has no size."""
        data = self._data
        for _ in range(_MAX_DEPTH):
            if index < _FIRST_INDEX:
                mode = index >> 8 & 0xF
                told = SIMPLE_TYPES.get(index & 0xFF)
                return SIMPLE_POINTERS.get(mode, self._pointer_size) if mode else told[1] if told else 0
            if index in self._udts:
                udt = self._complete(self._udts[index])
                if udt.kind != "enum":
                    return udt.size
                index = udt.base
                continue
            leaf, at, _ = self._record(index)
            match leaf:
                case Leaf.MODIFIER | Leaf.BIT_FIELD:
                    (index,) = _U32(data, at)
                case Leaf.POINTER:
                    return _U32(data, at + 4)[0] >> 13 & 0x3F or self._pointer_size
                case Leaf.ARRAY:
                    return number(data, at + 8)[0]
                case _:
                    return 0
        raise FormatError(f"type {index:#x} is nested more than {_MAX_DEPTH} deep")
