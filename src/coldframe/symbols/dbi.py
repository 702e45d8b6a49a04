"""The debug information stream (DBI) of a PDB and the symbols that it leads to.

https://llvm.org/docs/PDB/DbiStream.html. Public symbols, global and static variables, and the functions of each module
(source file). Images that were reordered after linking (Windows kernels of 32 bits and old ones) carry an OMAP that
moves every address.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from coldframe.errors import FormatError
from coldframe.symbols.build import undecorated
from coldframe.symbols.codeview import Symbol
from coldframe.symbols.msf import Msf

_HEADER = struct.Struct("<iIIHHHHHHiiiiiIiiHHI")
_MODULE = struct.Struct("<34xH28x")  # of a module's description, only the number of its stream
_RECORD = struct.Struct("<HH").unpack_from  # length of what follows it, kind
_ADDRESS = struct.Struct("<IH").unpack_from  # offset, section
_REFERENCE = struct.Struct("<4xIH").unpack_from  # place in the module's symbols, module's number from 1
_SECTION = struct.Struct("<12xI24x")  # of a section header, only its RVA
_POINTER_SIZES = {0x014C: 4, 0x01C0: 4, 0x01C2: 4, 0x01C4: 4, 0x0200: 8, 0x8664: 8, 0xAA64: 8, 0xA641: 8}

# Places in the optional debug header, which names further streams.
_OMAP_FROM_SOURCE, _SECTIONS, _SECTIONS_ORIGINAL = 4, 5, 10
_NO_STREAM = 0xFFFF
_WITH_ADDRESS = frozenset((Symbol.PUBLIC, Symbol.PUBLIC_ST, Symbol.GLOBAL_DATA, Symbol.LOCAL_DATA))
_PUBLIC, _PUBLIC_ST = int(Symbol.PUBLIC), int(Symbol.PUBLIC_ST)
_REFERENCES = frozenset((Symbol.PROCEDURE_REFERENCE, Symbol.LOCAL_PROCEDURE_REFERENCE))
_PROCEDURES = frozenset(
    (Symbol.GLOBAL_PROCEDURE, Symbol.LOCAL_PROCEDURE, Symbol.GLOBAL_PROCEDURE_ID, Symbol.LOCAL_PROCEDURE_ID)
)
_PROCEDURE_NAME = 39  # bytes from a procedure's record to its name
_LARGEST_RECORD = 0x1_0001
_X86 = 0x014C


class DebugInfo:
    """What the DBI stream says of the image."""

    def __init__(self, msf: Msf, where: str) -> None:
        self._msf = msf
        self._where = where
        data = msf.stream(3)
        self.age: int | None = None
        self.machine = 0
        self._symbol_stream = _NO_STREAM
        self._modules: list[int] = []
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
        start = _HEADER.size + sum(sizes) - debug_header
        streams = struct.unpack_from(f"<{debug_header // 2}H", data, start)
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
        rva = self._sections[section - 1] + offset
        sources, targets = self._omap
        if not sources:
            return rva
        at = bisect_right(sources, rva) - 1
        return targets[at] + rva - sources[at] if at >= 0 and targets[at] else None

    def symbols(self) -> list[tuple[bytes, int, bytes]]:
        """(Name, RVA, linker name where it differs): first publics, then variables, then functions of the modules."""
        try:
            return self._symbols()
        except (struct.error, IndexError) as error:
            raise FormatError(f"{self._where}: a symbol is cut off: {error}") from error

    def _symbols(self) -> list[tuple[bytes, int, bytes]]:
        """One pass over the global symbols; a kernel has more than 60,000, so nothing is called that need not be."""
        data, decorated, rva_of = self._msf.stream(self._symbol_stream), self.machine == _X86, self.rva
        publics: list[tuple[bytes, int, bytes]] = []
        variables: list[tuple[bytes, int, bytes]] = []
        references: list[tuple[int, int]] = []
        at, stop = 0, len(data)
        while at + 4 <= stop:
            length, kind = _RECORD(data, at)
            end = at + 2 + length
            if length < 2 or end > stop:
                raise FormatError(f"{self._where}: symbol of {length} bytes at {at:#x} of {stop:#x}")
            if kind in _WITH_ADDRESS:
                offset, section = _ADDRESS(data, at + 8)
                rva = rva_of(section, offset)
                if rva is not None:
                    name = _name(data, at + 14, end)
                    if kind == _PUBLIC:
                        publics.append((undecorated(name), rva, name) if decorated else (name, rva, b""))
                    elif kind == _PUBLIC_ST:  # its length in a byte, then its characters
                        publics.append((data[at + 15 : min(end, at + 15 + data[at + 14])], rva, b""))
                    else:
                        variables.append((name, rva, b""))
            elif kind in _REFERENCES:
                references.append(_REFERENCE(data, at + 4))
            at = end
        return publics + variables + self._procedures(references)

    def _procedures(self, references: list[tuple[int, int]]) -> list[tuple[bytes, int, bytes]]:
        """The functions that the global symbols point to in the modules' streams, static ones too."""
        found, wanted = [], dict[int, set[int]]()
        for place, module in references:
            wanted.setdefault(module, set()).add(place)
        for module in sorted(wanted):
            if not 0 < module <= len(self._modules):
                continue
            places = sorted(wanted[module])
            data = self._msf.stream(self._modules[module - 1], places[-1] + _LARGEST_RECORD)
            for place in places:
                if place + _PROCEDURE_NAME > len(data):
                    break
                length, kind = _RECORD(data, place)
                if kind in _PROCEDURES:
                    offset, section = _ADDRESS(data, place + 32)
                    rva = self.rva(section, offset)
                    if rva is not None:
                        found.append((_name(data, place + _PROCEDURE_NAME, place + 2 + length), rva, b""))
        return found


def _place(streams: tuple[int, ...], place: int) -> int:
    return streams[place] if place < len(streams) else _NO_STREAM


def _module_streams(data: bytes, at: int, end: int) -> list[int]:
    """The number of each module's symbol stream; a module is 64 bytes, two names, padding to 4."""
    found = []
    while at + _MODULE.size <= end:
        found.append(_MODULE.unpack_from(data, at)[0])
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
