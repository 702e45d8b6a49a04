"""An ELF file without code that tells a debugger the guest's symbols, at the addresses at which its modules are loaded.

gdb reads ELF wherever it was built, PDBs nowhere. A section of a module becomes a section of the file, without content;
names are those of the module's PDB, else of its exports, as `module!name`; `.debug_frame` has how its functions are
unwound (see `callframes`). Format: System V ABI, "Object Files".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from coldframe.debug.unwind_info import FunctionTable
from coldframe.errors import ColdframeError
from coldframe.gdbserver.callframes import call_frames
from coldframe.windows import Module
from coldframe.windows.pe import Section

_MOST_SECTIONS = 0xFE00
_MOST_SYMBOLS = 1 << 19
_LONGEST_NAME = 512
_HEADER, _SECTION, _SYMBOL = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_PROGBITS, _SYMTAB, _STRTAB, _NOBITS = 1, 2, 3, 8
_WRITE, _ALLOC, _EXECUTE = 1, 2, 4
_IMAGE_EXECUTES, _IMAGE_WRITES = 0x2000_0000, 0x8000_0000
"""IMAGE_SCN_MEM_EXECUTE and IMAGE_SCN_MEM_WRITE."""
_LOCAL_FUNCTION, _LOCAL_OBJECT = 2, 1


@dataclass(slots=True)
class _Strings:
    """A string table."""

    data: bytearray

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode("utf-8", "replace").replace(b"\0", b"")[:_LONGEST_NAME] + b"\0"
        return at


def symbol_file(modules: Iterable[Module]) -> bytes:
    """The file for these modules; one whose headers are not in RAM is left out."""
    names, titles = _Strings(bytearray(1)), _Strings(bytearray(1))
    sections: list[bytes] = [_SECTION.pack(*[0] * 10)]
    symbols = [_SYMBOL.pack(0, 0, 0, 0, 0, 0)]
    tables: list[FunctionTable] = []
    for module in modules:
        try:
            image = module.image()
            tables.append(FunctionTable(module.memory, module.base))
        except ColdframeError:
            continue
        if len(sections) + len(image.sections) > _MOST_SECTIONS:
            break
        first = len(sections)
        for section in image.sections:
            flags = _ALLOC | _EXECUTE * bool(section.characteristics & _IMAGE_EXECUTES)
            flags |= _WRITE * bool(section.characteristics & _IMAGE_WRITES)
            title = titles.add(section.name if section.name.startswith(".") else f".{section.name}")
            sections.append(
                _SECTION.pack(title, _NOBITS, flags, module.base + section.rva, 0, section.size, 0, 0, 1, 0)
            )
        for name, rva, place in islice(_placed(module, image.sections), _MOST_SYMBOLS - len(symbols)):
            executes = image.sections[place].characteristics & _IMAGE_EXECUTES
            kind = _LOCAL_FUNCTION if executes else _LOCAL_OBJECT
            symbols.append(
                _SYMBOL.pack(names.add(f"{module.stem}!{name}"), kind, 0, first + place, module.base + rva, 0)
            )
    return _file(sections, symbols, names, titles, call_frames(tables))


def _placed(module: Module, sections: Sequence[Section]) -> Iterator[tuple[str, int, int]]:
    """Each symbol of a module: its name, its RVA, and the index of the section that it lies in."""
    for name, rva in _symbols(module):
        for place, section in enumerate(sections):
            if section.rva <= rva < section.rva + section.size:
                yield name, rva, place
                break


def _symbols(module: Module) -> Iterable[tuple[str, int]]:
    try:
        return module.symbols.symbols.items()
    except ColdframeError:
        pass
    try:
        return list(module.image().exports())
    except ColdframeError:
        return ()


def _file(sections: list[bytes], symbols: list[bytes], names: _Strings, titles: _Strings, frames: bytes) -> bytes:
    strings = len(sections) + 1
    table = b"".join(symbols)
    at = _HEADER.size
    contents = []

    def add(title: str, kind: int, data: bytes, *, link: int = 0, info: int = 0, entry: int = 0) -> None:
        nonlocal at
        sections.append(_SECTION.pack(titles.add(title), kind, 0, 0, at, len(data), link, info, 8, entry))
        contents.append(data)
        at += len(data)

    add(".symtab", _SYMTAB, table, link=strings, info=len(symbols), entry=_SYMBOL.size)
    add(".strtab", _STRTAB, bytes(names.data))
    add(".debug_frame", _PROGBITS, frames)
    size = len(titles.data) + len(b".shstrtab\0")
    sections.append(_SECTION.pack(titles.add(".shstrtab"), _STRTAB, 0, 0, at, size, 0, 0, 1, 0))
    contents.append(bytes(titles.data))
    start = _HEADER.size + sum(map(len, contents))
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _HEADER.pack(
        ident, 2, 0x3E, 1, 0, 0, start, 0, _HEADER.size, 0, 0, _SECTION.size, len(sections), len(sections) - 1
    )
    return b"".join([header, *contents, *sections])
