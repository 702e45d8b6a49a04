"""The compiled form of a module's symbols and types: one block of bytes, read in place.

Everything is little-endian 32-bit numbers, so that a memory map of the cache file is used as it lies. Sections:

| section | content |
|---|---|
| meta | JSON: the PDB's identity, the pointer size, what it was compiled from |
| strings | NUL-terminated UTF-8; a name is its offset here |
| types | 4 numbers each: kind and three operands; a type refers only to types before it |
| fields | 3 each: name, offset in bytes, type |
| constants | 4 each: name, value's low and high half, 1 when negative |
| definitions | 6 each, in order of the names' bytes: name, kind, size, first field or constant, how many, base type |
| rvas, names | the symbols by RVA; of those that share one the customary name first |
| index | (name, RVA) in order of the names' bytes |
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias, cast

from coldframe.errors import FormatError
from coldframe.symbols.model import (
    Array,
    Base,
    BitField,
    Enum,
    Field,
    Function,
    PdbIdentity,
    Pointer,
    Record,
    Reference,
    SymbolFile,
    Symbols,
    Type,
    Types,
)

MAGIC = b"cold\x1asym"
VERSION = 1
HEADER = struct.Struct("<8sIIQ")
SECTIONS = ("meta", "strings", "types", "fields", "constants", "definitions", "rvas", "names", "index")

BASE_KINDS = ("int", "float", "bool", "char", "void")
DEFINITION_KINDS = ("struct", "union", "class", "enum")
_ENUM = DEFINITION_KINDS.index("enum")

Buffer: TypeAlias = bytes | mmap.mmap


def encoded(name: str) -> bytes:
    """The bytes that stand for `name` in the strings; whatever a hostile file calls something has some."""
    try:
        return name.encode("utf-8", "surrogateescape").replace(b"\0", b"?")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass").replace(b"\0", b"?")


def decoded(name: bytes) -> str:
    """The name that `encoded` made `name` of."""
    return name.decode("utf-8", "surrogateescape")


class Kind(IntEnum):
    """What a row of the types section is."""

    BASE = 0
    POINTER = 1
    ARRAY = 2
    BIT_FIELD = 3
    FUNCTION = 4
    REFERENCE = 5


class Definition(NamedTuple):
    """A row of the definitions section."""

    name: int
    kind: int
    size: int
    first: int
    members: int
    base: int


class _Table:
    """The sections of one table; numbers are read through views of the buffer, strings on demand."""

    def __init__(self, buffer: Buffer, where: str) -> None:
        self.where = where
        if len(buffer) < HEADER.size + 8 * len(SECTIONS):
            raise FormatError(f"{where}: {len(buffer)} bytes are too few for a symbol table")
        magic, version, crc, size = HEADER.unpack_from(buffer)
        if (magic, version, size) != (MAGIC, VERSION, len(buffer)):
            raise FormatError(f"{where}: not a whole symbol table of version {VERSION}")
        view = memoryview(buffer)
        if zlib.crc32(view[HEADER.size :]) != crc:
            raise FormatError(f"{where}: the symbol table's checksum does not fit its content")
        directory = struct.unpack_from(f"<{2 * len(SECTIONS)}I", buffer, HEADER.size)
        parts = {
            name: view[start : start + length]
            for name, start, length in zip(SECTIONS, directory[::2], directory[1::2], strict=True)
        }
        self.meta: dict[str, object] = json.loads(bytes(parts["meta"]))
        self.buffer = buffer
        self.strings = directory[2]
        self.types = _numbers(parts["types"])
        self.fields = _numbers(parts["fields"])
        self.constants = _numbers(parts["constants"])
        self.definitions = _numbers(parts["definitions"])
        self.rvas = _numbers(parts["rvas"])
        self.names = _numbers(parts["names"])
        self.index = _numbers(parts["index"])

    def raw(self, offset: int) -> bytes:
        """The name at `offset` of the strings."""
        start = self.strings + offset
        return self.buffer[start : self.buffer.find(b"\0", start)]

    def text(self, offset: int) -> str:
        """The name at `offset` of the strings, as text."""
        return decoded(self.raw(offset))


def _numbers(part: memoryview) -> memoryview:
    if sys.byteorder == "little":
        return part.cast("I")
    swapped = array("I", bytes(part))
    swapped.byteswap()
    return memoryview(swapped)


class TableSymbols(Symbols):
    """Symbols of a compiled table: bisection over the map, nothing loaded ahead."""

    def __init__(self, table: _Table) -> None:
        self._table = table

    def get(self, name: str) -> int | None:
        """The RVA of `name`, or None. Linker names (`_NtClose@4`) and a leading underscore left out are known too."""
        table, wanted = self._table, encoded(name)
        index = table.index
        low, high = 0, len(index) // 2
        while low < high:
            middle = (low + high) // 2
            if table.raw(index[2 * middle]) < wanted:
                low = middle + 1
            else:
                high = middle
        if 2 * low < len(index) and table.raw(index[2 * low]) == wanted:
            return index[2 * low + 1]
        return None

    def nearest(self, rva: int) -> tuple[str, int] | None:
        """The symbol at or next below `rva`, by its customary name, and the distance in bytes; None below the first."""
        table = self._table
        above = bisect_right(table.rvas, rva)
        if not above:
            return None
        start = table.rvas[above - 1]
        return table.text(table.names[bisect_left(table.rvas, start, 0, above)]), rva - start

    def at(self, rva: int) -> list[str]:
        """Every name of exactly `rva`, the customary one first."""
        table = self._table
        first, last = bisect_left(table.rvas, rva), bisect_right(table.rvas, rva)
        return [table.text(offset) for offset in table.names[first:last]]

    def items(self) -> Iterable[tuple[str, int]]:
        """Every (name, RVA), by RVA."""
        table = self._table
        return ((table.text(name), rva) for name, rva in zip(table.names, table.rvas, strict=True))

    def __len__(self) -> int:
        return len(self._table.rvas)


class _Fields(Mapping[str, Field]):
    """The fields of a record, each made when it is first asked for: `_EPROCESS` has hundreds, a reader needs two."""

    __slots__ = ("_made", "_places", "_types")

    def __init__(self, types: TableTypes, places: dict[str, tuple[int, int]]) -> None:
        self._types = types
        self._places = places
        self._made: dict[str, Field] = {}

    def __getitem__(self, name: str) -> Field:
        made = self._made.get(name)
        if made is None:
            offset, number = self._places[name]
            made = self._made[name] = Field(name, offset, self._types.type(number))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __repr__(self) -> str:
        return repr(dict(self))


class TableTypes(Types):
    """Types of a compiled table: each definition is read when it is first asked for."""

    def __init__(self, table: _Table, pointer_size: int) -> None:
        self.pointer_size = pointer_size
        self._table = table
        self._types: dict[int, Type] = {}
        self._definitions: dict[str, Record | Enum | None] = {}

    def names(self) -> Iterator[str]:
        """Every defined record and enum, in order of the names."""
        return (self._table.text(offset) for offset in self._table.definitions[:: len(Definition._fields)])

    def __len__(self) -> int:
        return len(self._table.definitions) // len(Definition._fields)

    def find(self, name: str) -> Record | Enum | None:
        """The definition called `name`, or None."""
        try:
            return self._definitions[name]
        except KeyError:
            found = self._search(name)
            if found is not None:
                self._definitions[name] = found
            return found

    def _search(self, name: str) -> Record | Enum | None:
        table, wanted, width = self._table, encoded(name), len(Definition._fields)
        rows = table.definitions
        low, high = 0, len(rows) // width
        while low < high:
            middle = (low + high) // 2
            if table.raw(rows[width * middle]) < wanted:
                low = middle + 1
            else:
                high = middle
        row = Definition(*rows[width * low : width * low + width]) if width * low < len(rows) else None
        if row is None or table.raw(row.name) != wanted:
            return None
        return self._enum(name, row) if row.kind == _ENUM else self._record(name, row)

    def _record(self, name: str, row: Definition) -> Record:
        table = self._table
        numbers = table.fields[3 * row.first : 3 * (row.first + row.members)].tolist()
        places = dict(zip(map(table.text, numbers[::3]), zip(numbers[1::3], numbers[2::3], strict=True), strict=True))
        fields = _Fields(self, places)
        kind = cast(Literal["struct", "union", "class"], DEFINITION_KINDS[row.kind])
        return Record(name, kind, row.size, fields)

    def _enum(self, name: str, row: Definition) -> Enum:
        table = self._table
        numbers = table.constants[4 * row.first : 4 * (row.first + row.members)].tolist()
        constants = {
            table.text(numbers[at]): (numbers[at + 1] | numbers[at + 2] << 32) - (numbers[at + 3] << 64)
            for at in range(0, len(numbers), 4)
        }
        base = self.type(row.base)
        if not isinstance(base, Base):
            raise FormatError(f"{table.where}: base of enum {name} is no number")
        return Enum(name, base, constants)

    def type(self, number: int) -> Type:
        """The type with that number in the table."""
        known = self._types.get(number)
        if known is None:
            known = self._types[number] = self._read_type(number)
        return known

    def _read_type(self, number: int) -> Type:
        kind, first, second, third = self._table.types[4 * number : 4 * number + 4]
        match kind:
            case Kind.BASE:
                base_kind = cast(Literal["int", "float", "bool", "char", "void"], BASE_KINDS[third & 0xFF])
                return Base(self._table.text(first), second, base_kind, bool(third >> 8))
            case Kind.FUNCTION:
                return Function()
            case Kind.REFERENCE:
                reference_kind = cast(Literal["struct", "union", "class", "enum"], DEFINITION_KINDS[second])
                return Reference(self._table.text(first), reference_kind)
        if first >= number:
            raise FormatError(f"{self._table.where}: type {number} refers to the later type {first}")
        match kind:
            case Kind.POINTER:
                return Pointer(self.type(first), second)
            case Kind.ARRAY:
                return Array(self.type(first), second | third << 32)
            case Kind.BIT_FIELD:
                return BitField(self.type(first), second, third)
        raise FormatError(f"{self._table.where}: type {number} has the unknown kind {kind}")


def open_table(buffer: Buffer, path: str, where: str | None = None) -> SymbolFile:
    """Read a compiled table; `path` is the file it was compiled from, `where` what error messages call it.

    Raises `FormatError` when the bytes are not a whole table of this version.
    """
    table = _Table(buffer, where or path)
    meta = table.meta
    name, guid, age, pointer_size = (meta.get(key) for key in ("name", "guid", "age", "pointer_size"))
    if not (isinstance(name, str) and isinstance(guid, str) and isinstance(age, int) and isinstance(pointer_size, int)):
        raise FormatError(f"{table.where}: the symbol table does not say whose it is")
    return SymbolFile(PdbIdentity(name, guid, age), TableTypes(table, pointer_size), TableSymbols(table), path)


def table_meta(symbol_file: SymbolFile) -> dict[str, object]:
    """What the table that `symbol_file` is read from says of itself."""
    symbols = symbol_file.symbols
    return dict(symbols._table.meta) if isinstance(symbols, TableSymbols) else {}
