"""Images with their symbols inside, as MinGW links them: names from COFF's symbol table, types from DWARF.

The format: https://learn.microsoft.com/windows/win32/debug/pe-format. ReactOS is built so, and so are drivers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from coldframe.errors import FormatError
from coldframe.symbols.build import TableBuilder, undecorated
from coldframe.symbols.dwarf import Dwarf
from coldframe.symbols.dwarftypes import compile_types
from coldframe.symbols.model import PdbIdentity

_POINTERS = {0x14C: 4, 0x8664: 8}
_SYMBOL = struct.Struct("<8sIhHBB")
_SECTION = struct.Struct("<8s6I12x")
_DEBUG = (".debug_info", ".debug_abbrev", ".debug_str", ".debug_line_str", ".debug_str_offsets")
_EXTERNAL, _STATIC = 2, 3
_FUNCTION = 0x20
_MOST_BYTES = 1 << 30


def compile_coff(path: str | Path) -> bytes:
    """The compiled table of an image with COFF symbols or DWARF in it. Raises `FormatError`, `OSError`."""
    path = Path(path)
    if path.stat().st_size > _MOST_BYTES:
        raise FormatError(f"{path}: an image of more than {_MOST_BYTES >> 30} GB")
    data = path.read_bytes()
    try:
        return _Image(data, str(path)).compile(PdbIdentity(path.name, "0" * 32, 0))
    except (struct.error, LookupError, ValueError) as error:
        raise FormatError(f"{path}: a damaged image: {error}") from error


class _Image:
    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where = data, where
        (header,) = struct.unpack_from("<I", data, 0x3C)
        if data[header : header + 4] != b"PE\0\0":
            raise FormatError(f"{where}: begins with MZ, but is no PE image")
        self.machine, sections, self.table, self.count, optional = struct.unpack_from("<HH4xIIH", data, header + 4)
        if self.machine not in _POINTERS:
            raise FormatError(f"{where}: an image of machine {self.machine:#x}; x86 and x64 are read")
        at = header + 24 + optional
        self.strings = self.table + self.count * _SYMBOL.size if self.table else len(data)
        self.sections = [self._section(at + number * 40) for number in range(sections)]

    def _section(self, at: int) -> tuple[str, int, int, int]:
        """Name, RVA, and where its bytes are in the file: (offset, size)."""
        raw, used, rva, size, offset, *_ = _SECTION.unpack_from(self.data, at)
        name = raw.rstrip(b"\0")
        if name[:1] == b"/" and name[1:].isdigit():
            name = self._string(int(name[1:]))
        return name.decode("latin-1"), rva, offset, min(size, used) if used else size

    def _string(self, offset: int) -> bytes:
        start = self.strings + offset
        return self.data[start : self.data.index(b"\0", start)] if start < len(self.data) else b""

    def compile(self, identity: PdbIdentity) -> bytes:
        held = {name: self.data[offset : offset + size] for name, _, offset, size in self.sections}
        symbols, debug = list(self._symbols()), [held.get(name, b"") for name in _DEBUG]
        if not symbols and not debug[0]:
            raise FormatError(f"{self.where}: an image with neither symbols nor DWARF in it: it was stripped")
        builder = TableBuilder()
        if debug[0]:
            compile_types(Dwarf(*debug), builder, self.where)
        return builder.build(identity, _POINTERS[self.machine], symbols)

    def _symbols(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(Name, RVA, alias) of functions and variables."""
        if not self.table or self.table + self.count * _SYMBOL.size > len(self.data):
            return
        number, x86 = 0, _POINTERS[self.machine] == 4
        while number < self.count:
            raw, value, section, kind, storage, more = _SYMBOL.unpack_from(
                self.data, self.table + number * _SYMBOL.size
            )
            number += 1 + more
            if not 0 < section <= len(self.sections) or storage not in (_EXTERNAL, _STATIC):
                continue
            name = self._string(int.from_bytes(raw[4:], "little")) if raw[:4] == b"\0\0\0\0" else raw.rstrip(b"\0")
            if not name or name[:1] == b"." or (storage == _STATIC and more and kind != _FUNCTION):
                continue  # sections and files
            plain = undecorated(name) if x86 else name
            yield plain, self.sections[section - 1][1] + value, name if plain != name else b""
