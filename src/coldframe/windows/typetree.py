"""A type, or what lies at an address seen through it, as lines: offset, name and value, nested as deep as asked for.

The shape is that of kd's `dt`. Numbers, pointers, bit-fields, enums, arrays and strings are decoded; what cannot be
read says why and ends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from coldframe.errors import TypeNotFoundError, UnreadableMemoryError
from coldframe.symbols.model import (
    Array,
    Base,
    BitField,
    Enum,
    Field,
    Function,
    Pointer,
    Record,
    Reference,
    Type,
    Types,
)
from coldframe.windows.fields import FieldTable, bits_of, place, type_name
from coldframe.windows.typed import Struct, TypedMemory

MOST_ELEMENTS = 64
"""Elements of an array that are told apart; the rest is counted."""
_MOST_LINES = 1 << 16
_STRINGS = ("_UNICODE_STRING", "_STRING", "_ANSI_STRING")


@dataclass(frozen=True, slots=True)
class Line:
    """A member: its offset in bytes from the outermost structure, its type as C writes it, its value if there is one.

    `value` is a number (a pointer's and a bit-field's too), a text, None for a structure, an array or no memory;
    `meaning` is the name of an enum's constant or what a string says; `trouble` why the value cannot be read.
    """

    depth: int
    offset: int
    name: str
    type: Type
    value: int | float | str | None = None
    meaning: str = ""
    trouble: str = ""


@dataclass
class TypeTree:
    """Members of structures of one module's types, with the values in `memory` if there is one.

    `depth` counts the levels of structures within structures that are opened; `only` names the members that are wanted
    (all, when empty), those of structures within by a dotted path (`Pcb.DirectoryTableBase`).
    """

    types: Types
    memory: TypedMemory | None = None
    depth: int = 0
    only: Collection[str] = field(default_factory=tuple)

    def lines(self, name: str, address: int = 0) -> Iterator[Line]:
        """The members of record `name` (at `address`), in the order of their offsets; raises `TypeNotFoundError`."""
        record = self.types.record(name)
        members = self._chosen(record) if self.only else sorted(record.fields.values(), key=place)
        return islice(self._each(members, address, 0, 0), _MOST_LINES)

    def _chosen(self, record: Record) -> list[Field]:
        """The members that are wanted, each once, under the name that they are asked by."""
        fields = FieldTable(self.types)
        return [Field(path, *fields.lookup(record, path)) for path in dict.fromkeys(self.only)]

    def _each(self, members: Iterable[Field], address: int, offset: int, depth: int) -> Iterator[Line]:
        for member in members:
            yield from self._member(member.name, member.type, address + member.offset, offset + member.offset, depth)

    def _member(self, name: str, kind: Type, address: int, offset: int, depth: int) -> Iterator[Line]:
        yield self._line(name, kind, address, offset, depth)
        if depth >= self.depth:
            return
        if isinstance(kind, Reference) and kind.kind != "enum":
            inner = self.types.find(kind.name)
            if isinstance(inner, Record):
                yield from self._each(sorted(inner.fields.values(), key=place), address, offset, depth + 1)
        elif isinstance(kind, Array):
            stride = self.types.size(kind.element)
            for index in range(min(kind.count, MOST_ELEMENTS)):
                at = index * stride
                yield from self._member(f"[{index}]", kind.element, address + at, offset + at, depth + 1)

    def _line(self, name: str, kind: Type, address: int, offset: int, depth: int) -> Line:
        if self.memory is None:
            return Line(depth, offset, name, kind)
        try:
            value, meaning = self._value(self.memory, kind, address)
        except (UnreadableMemoryError, TypeNotFoundError) as error:
            return Line(depth, offset, name, kind, trouble=str(error))
        return Line(depth, offset, name, kind, value, meaning)

    def _value(self, memory: TypedMemory, kind: Type, address: int) -> tuple[int | float | str | None, str]:
        """A member's value and what it means."""
        match kind:
            case Base(kind="void") | Function():
                return None, ""
            case Base(kind="char") | Base() | Pointer() | BitField():
                return memory.value(kind, address), ""
            case Reference(kind="enum"):
                found = memory.value(kind, address)
                return int(found), found.name or ""
            case Reference(name=name):
                return None, _said(memory.struct(name, address))
            case Array(element=Base(size=1, kind="char" | "int")):
                return None, _characters(memory.memory.read(address, min(kind.count, 256)))
            case Array():
                return None, ""
        raise AssertionError(kind)


def written(line: Line) -> str:
    """A line's value as kd's `dt` writes it, or its type where there is none."""
    kind = line.type
    if line.trouble:
        return f"{type_name(kind)} ({line.trouble})"
    text = type_name(kind)
    match kind:
        case BitField():
            text = bits_of(kind)
            return text if line.value is None else f"{text} = {line.value:#x}"
        case Pointer():
            return text if line.value is None else f"{line.value:#x} {text}"
        case Reference(kind="enum"):
            return text if line.value is None else f"{line.value:#x} ({line.meaning or 'no name'})"
        case _ if isinstance(line.value, bool | float):
            return str(line.value)
        case _ if isinstance(line.value, int):
            return hex(line.value)
    return f"{text} {line.meaning}".rstrip()


def constants(enum: Enum) -> Iterator[tuple[str, int]]:
    """The names of an enum and their values, by value."""
    return iter(sorted(enum.constants.items(), key=lambda item: item[1]))


def _said(value: Struct) -> str:
    """What a structure that everybody knows says in a word: a string's text, a list's two links."""
    if value.type_name in _STRINGS:
        return f'"{value.text}"'
    if value.type_name == "_LIST_ENTRY":
        return f"[ {value.integer('Flink'):#x} - {value.integer('Blink'):#x} ]"
    return ""


def _characters(data: bytes) -> str:
    """An array of bytes as text, where it is one."""
    text = data.partition(b"\0")[0]
    return f'"{text.decode("ascii")}"' if text and all(0x20 <= byte < 0x7F for byte in text) else ""
