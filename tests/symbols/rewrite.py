"""Any module's types and symbols written as a PDB: of real kernels only ISF files are at hand."""

from __future__ import annotations

import struct

from coldframe.symbols import SymbolFile
from coldframe.symbols.codeview import SIMPLE_TYPES
from coldframe.symbols.model import Array, Base, BitField, Enum, Field, Pointer, Record, Reference, Type
from symbols import handmade as make

_SIMPLE = {told[0]: index for index, told in reversed(SIMPLE_TYPES.items())}
_LEAVES = {"class": 0x1504, "struct": 0x1505, "union": 0x1506, "enum": 0x1507}
_MOST_IN_ONE_LIST = 0xF000


def pdb(source: SymbolFile, module_symbols: bool = False, filling: int = 0) -> bytes:
    """A PDB of `source`; with `module_symbols` every other symbol is a function in a module's stream as well.

    `filling` bytes stand for what a real PDB has beside: hashes, line numbers, section contributions.
    """
    writer = _Types(source)
    return make.pdb(
        writer.stream(),
        b"".join(make.public(name, 1, rva) for name, rva in source.symbols.items()),
        [make.section("image", 0)],
        procedures=[(name, rva) for name, rva in source.symbols.items()][::2] if module_symbols else [],
        filling=filling,
    )


def number(value: int) -> bytes:
    if 0 <= value < 0x8000:
        return struct.pack("<H", value)
    return struct.pack("<Hq", 0x8009, value) if value < 1 << 63 else struct.pack("<HQ", 0x800A, value)


class _Types:
    def __init__(self, source: SymbolFile) -> None:
        self.types = source.types
        self.records: list[bytes] = []
        self.known: dict[Type, int] = {}

    def add(self, record: bytes) -> int:
        self.records.append(record)
        return 0x0FFF + len(self.records)

    def stream(self) -> bytes:
        for name in self.types.names():
            match self.types.find(name):
                case Record() as found:
                    self.record(found)
                case Enum() as found:
                    entries = [
                        make.padded(struct.pack("<HH", 0x1502, 3) + number(value) + label.encode() + b"\0")
                        for label, value in found.constants.items()
                    ]
                    content = struct.pack(
                        "<HHII", len(entries) & 0xFFFF, 0, _SIMPLE[found.base.name], self.lists(entries)
                    )
                    self.add(make.record(_LEAVES["enum"], content + name.encode() + b"\0"))
        return make.types(*self.records)

    def record(self, found: Record) -> None:
        entries = [self.member(field) for field in found.fields.values()]
        content = struct.pack("<HHI", len(entries) & 0xFFFF, 0, self.lists(entries))
        if found.kind != "union":
            content += bytes(8)
        self.add(make.record(_LEAVES[found.kind], content + number(found.size) + found.name.encode() + b"\0"))

    def member(self, field: Field) -> bytes:
        head = struct.pack("<HHI", 0x150D, 3, self.index(field.type))
        return make.padded(head + number(field.offset) + field.name.encode() + b"\0")

    def lists(self, entries: list[bytes]) -> int:
        """A field list, or several, each going on in the one before it."""
        parts, size = [[]], 0  # type: list[list[bytes]], int
        for entry in entries:
            if size + len(entry) > _MOST_IN_ONE_LIST:
                parts.append([])
                size = 0
            parts[-1].append(entry)
            size += len(entry)
        index = 0
        for part in reversed(parts):
            index = self.add(make.field_list(*part, *([struct.pack("<HHI", 0x1404, 0, index)] if index else [])))
        return index

    def index(self, kind: Type) -> int:
        if isinstance(kind, Base):
            return _SIMPLE[kind.name]
        if kind not in self.known:
            self.known[kind] = self.add(self.leaf(kind))
        return self.known[kind]

    def leaf(self, kind: Type) -> bytes:
        match kind:
            case Pointer(target=target, size=size):
                return make.record(0x1002, struct.pack("<II", self.index(target), size << 13 | 0xC))
            case Array(element=element):
                size = self.types.size(kind)
                return make.record(0x1503, struct.pack("<II", self.index(element), 0x23) + number(size) + b"\0")
            case BitField(base=base, position=position, length=length):
                return make.record(0x1205, struct.pack("<IBB", self.index(base), length, position))
            case Reference(name=name, kind="enum"):
                return make.record(0x1507, struct.pack("<HHII", 0, 0x80, 0x74, 0) + name.encode() + b"\0")
            case Reference(name=name, kind=reference):
                content = struct.pack("<HHI", 0, 0x80, 0) + (b"" if reference == "union" else bytes(8)) + b"\0\0"
                return make.record(_LEAVES[reference], content + name.encode() + b"\0")
            case _:
                return make.record(0x1008, bytes(12))
