"""The debug information stream (DBI) of a PDB and the symbols that it leads to.

https://llvm.org/docs/PDB/DbiStream.html. Public symbols, global and static variables, and the functions of each module
(source file). Images that were reordered after linking (Windows kernels of 32 bits and old ones) carry an OMAP that
moves every address.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TypeAlias

from coldframe.errors import FormatError
from coldframe.symbols.build import undecorated
from coldframe.symbols.codeview import Symbol
from coldframe.symbols.msf import Msf

_HEADER = struct.Struct("<iIIHHHHHHiiiiiIiiHHI")
_MODULE = struct.Struct("<34xHI24x")  # of a module's description, its stream and the bytes of symbols in that
_RECORD = struct.Struct("<HH").unpack_from  # length of what follows it, kind
_ADDRESS = struct.Struct("<IH").unpack_from  # offset, section
_SECTION = struct.Struct("<12xI24x")  # of a section header, only its RVA
_POINTER_SIZES = {0x014C: 4, 0x01C0: 4, 0x01C2: 4, 0x01C4: 4, 0x0200: 8, 0x8664: 8, 0xAA64: 8, 0xA641: 8}

# Places in the optional debug header, which names further streams.
_OMAP_FROM_SOURCE, _SECTIONS, _FRAME_DATA, _SECTIONS_ORIGINAL = 4, 5, 9, 10
_NO_STREAM = 0xFFFF
_DATA = frozenset((Symbol.PUBLIC, Symbol.PUBLIC_ST, Symbol.GLOBAL_DATA, Symbol.LOCAL_DATA))
_PUBLIC, _PUBLIC_ST = int(Symbol.PUBLIC), int(Symbol.PUBLIC_ST)
_PROCEDURES = frozenset(
    (Symbol.GLOBAL_PROCEDURE, Symbol.LOCAL_PROCEDURE, Symbol.GLOBAL_PROCEDURE_ID, Symbol.LOCAL_PROCEDURE_ID)
)
_SIGNATURE = 4  # bytes before a module's symbols

_Names: TypeAlias = list[tuple[bytes, int, bytes]]
_X86 = 0x014C


class DebugInfo:
    """What the DBI stream says of the image."""

    def __init__(self, msf: Msf, where: str) -> None:
        self._msf = msf
        self._where = where
        data = msf.stream(3)
        self.age: int | None = None
        self.machine = 0
        self.frame_data_stream = _NO_STREAM
        self._symbol_stream = _NO_STREAM
        self._modules: dict[int, int] = {}
        self._sections: list[int] = []
        self._omap: tuple[list[int], list[int]] = ([], [])
        if data:
            self._read(data)

    @property
    def pointer_size(self) -> int:
        """4 or 8, by the machine; 8 when the PDB does not say."""
        return _POINTER_SIZES.get(self.machine, 8)

    def _read(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise FormatError(f"{self._where}: DBI stream of {len(data)} bytes, its header has {_HEADER.size}")
        fields = _HEADER.unpack_from(data)
        self.age, self._symbol_stream, self.machine = fields[2], fields[7], fields[18]
        modules, contributions, section_map, sources, servers, _, debug_header, edit = fields[9:17]
        sizes = (modules, contributions, section_map, sources, servers, edit, debug_header)
        if min(sizes) < 0 or _HEADER.size + sum(sizes) > len(data):
            raise FormatError(f"{self._where}: DBI substreams of {sizes} bytes in a stream of {len(data)}")
        self._modules = _module_streams(data, _HEADER.size, _HEADER.size + modules)
        told = sum(min(size, self._msf.size(stream)) for stream, size in self._modules.items())
        if told > self._msf.file_size:
            raise FormatError(f"{self._where}: modules with {told} bytes of symbols in a file of {self._msf.file_size}")
        start = _HEADER.size + sum(sizes) - debug_header
        streams = struct.unpack_from(f"<{debug_header // 2}H", data, start)
        self.frame_data_stream = _place(streams, _FRAME_DATA)
        self._sections = self._read_sections(_place(streams, _SECTIONS))
        original = self._read_sections(_place(streams, _SECTIONS_ORIGINAL))
        omap = self._msf.stream(_place(streams, _OMAP_FROM_SOURCE))
        if original and omap:
            self._sections = original
            pairs = sorted(struct.iter_unpack("<II", omap[: len(omap) & ~7]))
            self._omap = [source for source, _ in pairs], [target for _, target in pairs]

    def _read_sections(self, stream: int) -> list[int]:
        data = self._msf.stream(stream)
        return [rva for (rva,) in _SECTION.iter_unpack(data[: len(data) // _SECTION.size * _SECTION.size])]

    def rva(self, section: int, offset: int) -> int | None:
        """The RVA of an address in a section (from 1); None for absolute symbols and for what the OMAP removed."""
        if not 0 < section <= len(self._sections):
            return None
        return self.moved(self._sections[section - 1] + offset)

    def moved(self, rva: int) -> int | None:
        """Where what was linked at `rva` lies in the image; None where the OMAP removed it."""
        sources, targets = self._omap
        if not sources:
            return rva
        at = bisect_right(sources, rva) - 1
        return targets[at] + rva - sources[at] if at >= 0 and targets[at] else None

    def symbols(self) -> _Names:
        """(Name, RVA, linker name where it differs): first publics, then the variables and functions of the modules."""
        try:
            publics, others = self._walk(self._msf.stream(self._symbol_stream), 0)
            for stream, size in self._modules.items():
                _, found = self._walk(self._msf.stream(stream, size), _SIGNATURE)
                others += found
        except (struct.error, IndexError) as error:
            raise FormatError(f"{self._where}: a symbol is cut off: {error}") from error
        return publics + others

    def _walk(self, data: bytes, at: int) -> tuple[_Names, _Names]:
        """Publics, and the rest, of one run of records. A kernel has 100,000: nothing is called that need not be."""
        decorated, rva_of, stop = self.machine == _X86, self.rva, len(data)
        publics: _Names = []
        others: _Names = []
        while at + 4 <= stop:
            length, kind = _RECORD(data, at)
            end = at + 2 + length
            if length < 2 or end > stop:
                raise FormatError(f"{self._where}: symbol of {length} bytes at {at:#x} of {stop:#x}")
            if kind in _DATA:
                offset, section = _ADDRESS(data, at + 8)
                rva = rva_of(section, offset)
                if rva is not None:
                    name = _name(data, at + 14, end)
                    if kind == _PUBLIC:
                        publics.append((undecorated(name), rva, name) if decorated else (name, rva, b""))
                    elif kind == _PUBLIC_ST:  # its length in a byte, then its characters
                        publics.append((data[at + 15 : min(end, at + 15 + data[at + 14])], rva, b""))
                    else:
                        others.append((name, rva, b""))
            elif kind in _PROCEDURES:
                offset, section = _ADDRESS(data, at + 32)
                rva = rva_of(section, offset)
                if rva is not None:
                    others.append((_name(data, at + 39, end), rva, b""))
            at = end
        return publics, others


def _place(streams: tuple[int, ...], place: int) -> int:
    return streams[place] if place < len(streams) else _NO_STREAM


def _module_streams(data: bytes, at: int, end: int) -> dict[int, int]:
    """Each module's symbol stream and the bytes of symbols in it; a module is 64 bytes, two names, padding to 4."""
    found = {}
    while at + _MODULE.size <= end:
        stream, size = _MODULE.unpack_from(data, at)
        if stream != _NO_STREAM:
            found[stream] = size
        names = data.find(b"\0", at + _MODULE.size, end)
        stop = data.find(b"\0", names + 1, end)
        if names < 0 or stop < 0:
            break
        at = (stop + 1 + 3) & ~3
    return found


def _name(data: bytes, at: int, end: int) -> bytes:
    """The name at `at`, which ends with a NUL, or else with its record."""
    stop = data.find(b"\0", at, end)
    return data[at:stop] if stop >= 0 else data[at:end]
