"""The types of a kernel with some structures and fields called otherwise, as ReactOS' headers call them, and some of
its own that Windows has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from coldframe.symbols.model import Base, Enum, Field, Record, Reference, SymbolFile, Type, Types

_WORD = Base("unsigned long", 4, "int", signed=False)


def _record(name: str, size: int, **fields: tuple[int, Type]) -> Record:
    return Record(name, "struct", size, {label: Field(label, *place) for label, place in fields.items()})


# ntoskrnl/include/internal/mm.h as GCC 12 lays it out for x86; the fields that are read
OF_REACTOS = {
    record.name: record
    for record in (
        _record(
            "_MEMORY_AREA",
            0x58,
            Type=(0x28, _WORD),
            SectionData=(0x40, Reference("_MEMORY_AREA::SectionData", "struct")),
        ),
        _record("_MEMORY_AREA::SectionData", 0x18, Segment=(0x8, _WORD)),
        _record("_MM_SECTION_SEGMENT", 0xA0, FileObject=(0x8, _WORD)),
    )
}


class Renamed(Types):
    """`base`, its records renamed by `records` (own name: theirs), fields by `fields` (record: own name: theirs)."""

    def __init__(self, base: Types, records: Mapping[str, str], fields: Mapping[str, Mapping[str, str]]) -> None:
        self.pointer_size = base.pointer_size
        self._base, self._fields = base, fields
        self._records = {theirs: own for own, theirs in records.items()}

    def find(self, name: str) -> Record | Enum | None:
        if name in OF_REACTOS:
            return OF_REACTOS[name]
        if name in self._records.values():
            return None
        found = self._base.find(self._records.get(name, name))
        if not isinstance(found, Record):
            return found
        theirs = self._fields.get(found.name, {})
        members = {
            theirs.get(own, own): replace(field, name=theirs.get(own, own)) for own, field in found.fields.items()
        }
        return replace(found, name=name, fields={own: field for own, field in members.items() if own})

    def names(self) -> Iterator[str]:
        return self._base.names()


def like_reactos(symbol_file: SymbolFile) -> SymbolFile:
    """ReactOS has the KPRCB in `_KIPCR` (ndk/i386/ketypes.h), and calls a paging file's file FileObject and does not
    number it (ntoskrnl/include/internal/mm.h)."""
    fields = {"_MMPAGING_FILE": {"File": "FileObject", "PageFileNumber": ""}}
    return replace(symbol_file, types=Renamed(symbol_file.types, {"_KPCR": "_KIPCR"}, fields))
