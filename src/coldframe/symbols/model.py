"""The types of a program as its PDB or ISF file tells them, and the two questions asked of them: where and what.

Sizes and offsets are in bytes, bit positions in bits from the least significant bit of the field's storage unit.
A record's or an enum's use is by `Reference`, so that a `Types` may read each definition only when it is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Literal, TypeAlias

from coldframe.errors import SymbolNotFoundError, TypeNotFoundError


@dataclass(frozen=True, slots=True)
class Base:
    """A number, a character or nothing. `name` is the C name (`unsigned long long`)."""

    name: str
    size: int
    kind: Literal["int", "float", "bool", "char", "void"]
    signed: bool


@dataclass(frozen=True, slots=True)
class Pointer:
    """An address of `target`, `size` bytes wide."""

    target: Type
    size: int


@dataclass(frozen=True, slots=True)
class Array:
    """`count` elements side by side."""

    element: Type
    count: int


@dataclass(frozen=True, slots=True)
class BitField:
    """`length` bits from bit `position` of a storage unit of type `base`."""

    base: Type
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class Function:
    """Code; only ever the target of a pointer."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A record or an enum by its name."""

    name: str
    kind: Literal["struct", "union", "class", "enum"]


Type: TypeAlias = Base | Pointer | Array | BitField | Function | Reference


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a record: `offset` bytes from the record's start (for a bit-field, of its storage unit)."""

    name: str
    offset: int
    type: Type


@dataclass(frozen=True, slots=True)
class Record:
    """A structure, union or class. Unnamed members keep the name the file gives them (`u1`, `<unnamed-tag>`)."""

    name: str
    kind: Literal["struct", "union", "class"]
    size: int
    fields: Mapping[str, Field] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Enum:
    """Named constants over a base type."""

    name: str
    base: Base
    constants: Mapping[str, int] = field(hash=False)


@dataclass(frozen=True, slots=True)
class PdbIdentity:
    """What an RSDS (CodeView) record names: PDB file name, GUID as 32 upper-case hex digits, age."""

    name: str
    guid: str
    age: int

    def __str__(self) -> str:
        return f"{self.name} {self.guid}-{self.age:x}"


class Types(ABC):
    """All types of one module."""

    pointer_size: int

    @abstractmethod
    def find(self, name: str) -> Record | Enum | None:
        """The definition called `name` (`_EPROCESS`), or None."""

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Every defined record and enum."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def record(self, name: str) -> Record:
        """The structure or union called `name`; raises `TypeNotFoundError` with near names."""
        found = self.find(name)
        if not isinstance(found, Record):
            raise TypeNotFoundError("structure", name, self.names())
        return found

    def enum(self, name: str) -> Enum:
        """The enum called `name`; raises `TypeNotFoundError`."""
        found = self.find(name)
        if not isinstance(found, Enum):
            raise TypeNotFoundError("enum", name, self.names())
        return found

    def field(self, name: str, path: str) -> tuple[int, Type]:
        """Offset from the start of record `name`, and type, of the member at the dotted `path` (`Pcb.Affinity`).

        Raises `TypeNotFoundError` naming the part of the path that is missing.
        """
        record, offset = self.record(name), 0
        parts = path.split(".")
        for depth, part in enumerate(parts):
            member = record.fields.get(part)
            if member is None:
                raise TypeNotFoundError(f"field in {record.name}", part, record.fields)
            offset += member.offset
            if depth == len(parts) - 1:
                return offset, member.type
            if not isinstance(member.type, Reference):
                raise TypeNotFoundError(f"field in {record.name}.{part}, which is no structure,", parts[depth + 1])
            record = self.record(member.type.name)
        raise AssertionError("a path has at least one part")

    def has_field(self, name: str, path: str) -> bool:
        """Whether record `name` is defined and has the member at the dotted `path`."""
        kind: Type = Reference(name, "struct")
        for part in path.split("."):
            record = self.find(kind.name) if isinstance(kind, Reference) else None
            member = record.fields.get(part) if isinstance(record, Record) else None
            if member is None:
                return False
            kind = member.type
        return True

    def offset(self, name: str, path: str) -> int:
        """Offset in bytes of the member at the dotted `path` of record `name`."""
        return self.field(name, path)[0]

    def size(self, kind: Type | str) -> int:
        """Size in bytes of a type, or of the record or enum of that name."""
        match kind:
            case str():
                found = self.find(kind)
                if found is None:
                    raise TypeNotFoundError("type", kind, self.names())
                return found.size if isinstance(found, Record) else found.base.size
            case Reference():
                return self.size(kind.name)
            case Base() | Pointer():
                return kind.size
            case Array():
                return kind.count * self.size(kind.element)
            case BitField():
                return self.size(kind.base)
            case Function():
                return 0


class Symbols(ABC):
    """Names of one module and their relative virtual addresses (RVA, bytes from the image's base)."""

    @abstractmethod
    def get(self, name: str) -> int | None:
        """The RVA of `name`, or None."""

    @abstractmethod
    def nearest(self, rva: int) -> tuple[str, int] | None:
        """The symbol at or next below `rva` and how many bytes above it `rva` lies; None below the first."""

    @abstractmethod
    def items(self) -> Iterable[tuple[str, int]]:
        """Every (name, RVA), by RVA."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __getitem__(self, name: str) -> int:
        rva = self.get(name)
        if rva is None:
            raise SymbolNotFoundError("symbol", name, _similar(name, (known for known, _ in self.items())))
        return rva


def _similar(name: str, known: Iterable[str]) -> list[str]:
    """Of very many names the few that share most three-letter parts with `name`, in any case of letters."""
    folded = name.casefold()
    parts = {folded[at : at + 3] for at in range(max(1, len(folded) - 2))}
    scored = ((sum(part in other for part in parts), one) for one in known for other in (one.casefold(),))
    return [one for _, one in nlargest(100, scored)]


@dataclass(frozen=True, slots=True)
class SymbolFile:
    """A loaded PDB or ISF file: whose it is, and what it says. `path` is where it was read from."""

    identity: PdbIdentity
    types: Types
    symbols: Symbols
    path: str
