"""Where the members of structures are: dotted paths through a module's types, kept once looked up."""

from __future__ import annotations

from coldframe.errors import TypeNotFoundError
from coldframe.symbols.model import Array, Base, BitField, Field, Function, Pointer, Record, Reference, Type, Types

_UNNAMED = ("__unnamed", "__anonymous", "<unnamed", "<anonymous", "unnamed-", "anonymous-")
_DEEPEST = 4


class FieldNotFoundError(TypeNotFoundError, AttributeError):  # type: ignore[misc] # both say `name`
    """A field that the record does not have; an `AttributeError` too, so that `hasattr` answers."""


class FieldTable:
    """Where each dotted path of each record leads; answers are kept, since types do not change."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._records: dict[str, Record] = {}
        self._paths: dict[tuple[str, str], tuple[int, Type]] = {}

    def record(self, name: str) -> Record:
        """The record called `name`."""
        found = self._records.get(name)
        if found is None:
            found = self._records[name] = self._types.record(name)
        return found

    def lookup(self, record: Record, path: str) -> tuple[int, Type]:
        """Offset and type of the member at the dotted `path`; members of unnamed members are reached directly."""
        key = (record.name, path)
        found = self._paths.get(key)
        if found is None:
            found = self._paths[key] = self._walk(record, path)
        return found

    def _walk(self, record: Record, path: str) -> tuple[int, Type]:
        offset = 0
        parts = path.split(".")
        for depth, part in enumerate(parts):
            member = _member(self, record, part, _DEEPEST)
            if member is None:
                raise FieldNotFoundError(f"field in {record.name}", part, record.fields)
            offset += member.offset
            if depth == len(parts) - 1:
                return offset, member.type
            if not isinstance(member.type, Reference) or member.type.kind == "enum":
                raise FieldNotFoundError(f"field in {record.name}.{part}, which is no structure,", parts[depth + 1])
            record = self.record(member.type.name)
        raise AssertionError("a path has at least one part")


def _member(table: FieldTable, record: Record, name: str, depth: int) -> Field | None:
    member = record.fields.get(name)
    if member is not None or not depth:
        return member
    for outer in record.fields.values():
        if outer.name.startswith(_UNNAMED) and isinstance(outer.type, Reference) and outer.type.kind != "enum":
            inner = _member(table, table.record(outer.type.name), name, depth - 1)
            if inner is not None:
                return Field(name, outer.offset + inner.offset, inner.type)
    return None


def type_name(kind: Type) -> str:
    """A type as C writes it."""
    match kind:
        case Base() | Reference():
            return kind.name
        case Pointer():
            return f"{type_name(kind.target)}*"
        case Array():
            return f"{type_name(kind.element)}[{kind.count}]"
        case BitField():
            return f"{type_name(kind.base)}:{kind.length}"
        case Function():
            return "code"


def first_field(types: Types, record: str, *paths: str) -> str:
    """The first of `paths` that this build's `record` has; raises `TypeNotFoundError` naming all of them."""
    for path in paths:
        if types.has_field(record, path):
            return path
    raise TypeNotFoundError(f"field in {record}", " or ".join(paths), types.record(record).fields)


def place(member: Field) -> tuple[int, int]:
    """The order of members: by offset, bit-fields of one unit by position."""
    return member.offset, member.type.position if isinstance(member.type, BitField) else -1


def bits_of(kind: BitField) -> str:
    """The bits of a bit-field as kd's `dt` writes them."""
    return f"Bits {kind.position}-{kind.position + kind.length - 1}" if kind.length > 1 else f"Bit {kind.position}"
