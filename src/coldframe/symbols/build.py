"""Compiling symbols and types into the one table that all readers of this room end in (see `tables`).

A reader (`pdb`, `isf`) tells a `TableBuilder` what its file says and gets bytes, which `tables.open_table` reads in
place: from memory at once, from the on-disk cache as a memory map later. So a PDB, an ISF file and a cached file cannot
answer differently.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain

from coldframe.errors import FormatError
from coldframe.symbols.model import PdbIdentity
from coldframe.symbols.tables import (
    BASE_KINDS,
    DEFINITION_KINDS,
    HEADER,
    MAGIC,
    SECTIONS,
    VERSION,
    Definition,
    Kind,
    decoded,
    encoded,
)

_MAX_U32 = 0xFFFF_FFFF


def customary_rank(name: str) -> tuple[int, str]:
    """Order of names that share an address: the one a debugger's user would write sorts first.

    Linkers fold identical functions and export one function under several names. Plain names go before those with
    leading underscores, these before C++-decorated and compiler-made ones (`$$0`, `??_C@...`, `__imp_...`); `Nt` goes
    before `Zw`; equals are in alphabetical order, so the choice never depends on the file's order.
    """
    if name.isidentifier() and not name.startswith("_"):
        return (1 if name.startswith("Zw") else 0), name
    if name.startswith(("__imp_", "$", ".", "\x7f", "??_C@")):
        return 5, name
    if name.startswith("?"):
        return 4, name
    return (3 if name.startswith("__") else 2), name


def undecorated(name: bytes) -> bytes:
    """The C name of a linker symbol of x86.

    C symbols carry their calling convention there: `_f` (cdecl), `_f@8` (stdcall), `@f@8` (fastcall); a C++ name
    (`?...`) stays as it is.
    """
    if name[:1] in (b"?", b""):
        return name
    plain = name[1:] if name[:1] in (b"_", b"@") else name
    stem, at, digits = plain.rpartition(b"@")
    return stem if at and stem and digits.isdigit() and b"@" not in stem else plain or name


class TableBuilder:
    """Collects the types, definitions and symbols of one module; `build` gives the table's bytes."""

    def __init__(self) -> None:
        self._blob = bytearray(b"\0")
        self._strings: dict[str, int] = {"": 0}
        self._types: array[int] = array("I")
        self._type_ids: dict[tuple[int, int, int, int], int] = {}
        self._fields: array[int] = array("I")
        self._constants: array[int] = array("I")
        self._definitions: dict[str, Definition] = {}

    def string(self, text: str) -> int:
        """Number of `text` in the table's strings."""
        known = self._strings.get(text)
        if known is None:
            known = self._strings[text] = len(self._blob)
            self._blob += encoded(text) + b"\0"
        return known

    def _type(self, kind: Kind, first: int = 0, second: int = 0, third: int = 0) -> int:
        if not (0 <= first <= _MAX_U32 and 0 <= second <= _MAX_U32 and 0 <= third <= _MAX_U32):
            raise FormatError(f"a type's numbers do not fit 32 bits: {kind.name} {first:#x} {second:#x} {third:#x}")
        key = (kind, first, second, third)
        known = self._type_ids.get(key)
        if known is None:
            known = self._type_ids[key] = len(self._type_ids)
            self._types.extend(key)
        return known

    def base(self, name: str, size: int, kind: str, signed: bool) -> int:
        """A number, character or nothing; `kind` as in `model.Base`."""
        return self._type(Kind.BASE, self.string(name), size, BASE_KINDS.index(kind) | signed << 8)

    def pointer(self, target: int, size: int) -> int:
        """An address, `size` bytes wide, of type number `target`."""
        return self._type(Kind.POINTER, target, size)

    def array_of(self, element: int, count: int) -> int:
        """`count` elements of type number `element`."""
        return self._type(Kind.ARRAY, element, count & _MAX_U32, count >> 32)

    def bit_field(self, base: int, position: int, length: int) -> int:
        """`length` bits from `position` of a storage unit of type number `base`."""
        return self._type(Kind.BIT_FIELD, base, position, length)

    def function(self) -> int:
        """Code."""
        return self._type(Kind.FUNCTION)

    def reference(self, name: str, kind: str) -> int:
        """A record or enum by name; `kind` as in `model.Reference`."""
        return self._type(Kind.REFERENCE, self.string(name), DEFINITION_KINDS.index(kind))

    def fields(self, members: Iterable[tuple[str, int, int]]) -> tuple[int, int]:
        """Store (name, offset, type number) of each field; gives (first, count), for one or more records."""
        first, string, store = len(self._fields) // 3, self.string, self._fields
        try:
            for name, offset, kind in members:
                store.extend((string(name), offset, kind))
        except (OverflowError, TypeError) as error:
            raise FormatError(f"a field's offset is not a 32-bit number: {error}") from error
        return first, len(store) // 3 - first

    def constants(self, members: Iterable[tuple[str, int]]) -> tuple[int, int]:
        """Store the constants of an enum; gives (first, count)."""
        first = len(self._constants) // 4
        for name, value in members:
            low, high = value & _MAX_U32, value >> 32 & _MAX_U32
            self._constants.extend((self.string(name), low, high, value < 0))
        return first, len(self._constants) // 4 - first

    def define(self, name: str, kind: str, size: int, members: tuple[int, int], base: int = 0) -> None:
        """Define a record of `size` bytes (or an enum over type number `base`) with `members` as stored before."""
        if not 0 <= size <= _MAX_U32:
            raise FormatError(f"size of {name} does not fit 32 bits: {size:#x}")
        self._definitions[name] = Definition(self.string(name), DEFINITION_KINDS.index(kind), size, *members, base)

    def build(self, identity: PdbIdentity, pointer_size: int, symbols: Iterable[tuple[bytes, int, bytes]]) -> bytes:
        """The finished table.

        `symbols` are (name, RVA, another name to find it by or b""), names as `tables.encoded` gives them. Earlier ones
        win when a name occurs at several RVAs (static functions of different source files); all stay findable by
        address.
        """
        rvas, names, index = self._symbol_sections(symbols)
        definitions: array[int] = array("I")
        for name in sorted(self._definitions, key=encoded):
            definitions.extend(self._definitions[name])
        meta = {"name": identity.name, "guid": identity.guid, "age": identity.age, "pointer_size": pointer_size}
        numbers = (self._types, self._fields, self._constants, definitions, rvas, names, index)
        return assemble([json.dumps(meta).encode(), bytes(self._blob), *map(_little, numbers)])

    def _symbol_sections(
        self, symbols: Iterable[tuple[bytes, int, bytes]]
    ) -> tuple[array[int], array[int], array[int]]:
        """RVAs in order, the name of each, and (name, RVA) pairs in order of the names' bytes, aliases included."""
        found: dict[bytes, int] = {}
        aliases: dict[bytes, int] = {}
        unique: set[tuple[int, bytes]] = set()
        for name, rva, alias in symbols:
            if not name or not 0 <= rva <= _MAX_U32:
                continue
            unique.add((rva, name))
            found.setdefault(name, rva)
            if alias:
                aliases.setdefault(alias, rva)
            if name[0] in b"_\x7f" and len(name) > 1:
                aliases.setdefault(name[1:], rva)
        for alias, rva in aliases.items():
            found.setdefault(alias, rva)
        known = sorted(found)
        places = dict(zip(known, accumulate(map(len, known), lambda at, size: at + size + 1, initial=len(self._blob))))  # noqa: B905 - accumulate gives the end too
        self._blob += b"\0".join([*known, b""])
        ordered = _customary_first(sorted(unique))
        rvas = array("I", [rva for rva, _ in ordered])
        names = array("I", [places[name] for _, name in ordered])
        index = array("I", chain.from_iterable((places[name], found[name]) for name in known))
        return rvas, names, index


def _customary_first(ordered: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Symbols in order of their RVAs, with those that share one in the order of `customary_rank`."""
    at = 0
    while at < len(ordered) - 1:
        rva, end = ordered[at][0], at + 1
        while end < len(ordered) and ordered[end][0] == rva:
            end += 1
        if end - at > 1:
            ordered[at:end] = sorted(ordered[at:end], key=lambda entry: customary_rank(decoded(entry[1])))
        at = end
    return ordered


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def assemble(sections: Sequence[bytes]) -> bytes:
    """Header, section directory and sections, each section 8-byte aligned, with a CRC over all that follows it."""
    directory, body = [], bytearray()
    start = HEADER.size + 8 * len(SECTIONS)
    for content in sections:
        body += bytes(-(start + len(body)) % 8)
        directory += [start + len(body), len(content)]
        body += content
    packed = struct.pack(f"<{len(directory)}I", *directory) + body
    return HEADER.pack(MAGIC, VERSION, zlib.crc32(packed), HEADER.size + len(packed)) + packed


def with_meta(table: bytes, extra: Mapping[str, str]) -> bytes:
    """A copy of a finished table whose meta section says `extra` too."""
    directory = struct.unpack_from(f"<{2 * len(SECTIONS)}I", table, HEADER.size)
    sections = [table[at : at + length] for at, length in zip(directory[::2], directory[1::2], strict=True)]
    sections[0] = json.dumps({**json.loads(sections[0]), **extra}).encode()
    return assemble(sections)
