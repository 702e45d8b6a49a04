"""Memory seen through types: structures, arrays, pointers, bit-fields and enums at an address.

Everything is read when it is asked for; nothing is kept, so a value is never older than the question. Offsets come
from the module's types alone. What the guest says is not trusted: strings and lists are bounded, a list that bites
its tail ends.
"""

from __future__ import annotations

import struct as packing
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, overload

from coldframe.capabilities import ReadsMemory, WritesMemory, require
from coldframe.errors import TypeNotFoundError, UnreadableMemoryError, UsageError
from coldframe.symbols.model import Array as ArrayType
from coldframe.symbols.model import Base, BitField, Field, Function, Record, Reference, Type, Types
from coldframe.symbols.model import Pointer as PointerType
from coldframe.windows.fields import FieldTable, bits_of, first_field, place, type_name
from coldframe.windows.values import EnumValue, Pointer, filetime

__all__ = ["Array", "EnumValue", "Pointer", "Struct", "TypedMemory", "filetime", "first_field", "type_name"]

LONGEST_LIST = 1 << 20
MOST_SHOWN = 16


class TypedMemory:
    """A memory and the types of a module: structures and values at addresses.

    `memory` is virtual (an address space) or physical: whatever the addresses are.
    """

    def __init__(self, memory: ReadsMemory, types: Types, fields: FieldTable | None = None) -> None:
        self.memory = memory
        self.types = types
        self.fields = FieldTable(types) if fields is None else fields

    def over(self, memory: ReadsMemory) -> TypedMemory:
        """The same types over another memory."""
        return TypedMemory(memory, self.types, self.fields)

    def struct(self, name: str, address: int) -> Struct:
        """The structure or union `name` at `address`; raises `TypeNotFoundError`."""
        return Struct(self, self.fields.record(name), int(address))

    def pointer(self, address: int) -> int:
        """The pointer-sized value at `address`."""
        return int.from_bytes(self.memory.read(address, self.types.pointer_size), "little")

    def integer(self, address: int, size: int, *, signed: bool = False) -> int:
        """The little-endian value of `size` bytes at `address`."""
        return int.from_bytes(self.memory.read(address, size), "little", signed=signed)

    def value(self, kind: Type, address: int) -> Any:
        """The value of type `kind` at `address`: a number, `Pointer`, `EnumValue`, `Struct` or `Array`."""
        match kind:
            case Base():
                return self._base(kind, address)
            case PointerType():
                return Pointer(self.integer(address, kind.size), kind.target, self)
            case BitField():
                unit = self.integer(address, self.types.size(kind.base))
                return unit >> kind.position & (1 << kind.length) - 1
            case ArrayType():
                return Array(self, kind, address)
            case Reference(kind="enum"):
                enum = self.types.enum(kind.name)
                return EnumValue(self.integer(address, enum.base.size, signed=enum.base.signed), enum)
            case Reference():
                return self.struct(kind.name, address)
            case Function():
                raise UsageError(f"there is code at {address:#x}, not a value")

    def _base(self, kind: Base, address: int) -> int | float | bool:
        if kind.kind == "void":
            raise UsageError(f"a pointer to void says nothing about what is at {address:#x}; give its type")
        data = self.memory.read(address, kind.size)
        if kind.kind == "float":
            return float(packing.unpack("<f" if kind.size == 4 else "<d", data)[0])
        number = int.from_bytes(data, "little", signed=kind.signed)
        return bool(number) if kind.kind == "bool" else number

    def put(self, kind: Type, address: int, value: int | float | bytes) -> None:
        """Write `value` as type `kind` at `address`; raises `CapabilityError` where memory is read-only."""
        memory = require(self.memory, WritesMemory, f"setting a field at {address:#x}")  # type: ignore[type-abstract]
        size = self.types.size(kind)
        if isinstance(value, bytes):
            if len(value) > size:
                raise UsageError(f"{len(value)} bytes do not fit a field of {size}")
            memory.write(address, value.ljust(size, b"\0"))
            return
        if isinstance(kind, ArrayType) or (isinstance(kind, Reference) and kind.kind != "enum"):
            raise UsageError(f"{type_name(kind)} is set with bytes or field by field, not with {value!r}")
        if isinstance(kind, Base) and kind.kind == "float" and isinstance(value, int | float):
            memory.write(address, packing.pack("<f" if size == 4 else "<d", value))
            return
        if not isinstance(value, int):
            raise UsageError(f"{type_name(kind)} is set with an integer or with bytes, not with {value!r}")
        if isinstance(kind, BitField):
            mask = (1 << kind.length) - 1
            if not 0 <= value <= mask:
                raise UsageError(f"{value} does not fit a bit-field of {kind.length} bits")
            unit = self.integer(address, size)
            value = unit & ~(mask << kind.position) | value << kind.position
        try:
            memory.write(address, value.to_bytes(size, "little", signed=value < 0))
        except OverflowError:
            raise UsageError(f"{value} does not fit {size} bytes") from None


class Struct:
    """A structure or union in memory: its fields are attributes, or `s["name"]` where a name collides with ours.

    A dotted path reaches nested ones (`s["Pcb.DirectoryTableBase"]`). Numbers come as `int`, pointers as `Pointer`,
    bit-fields as unsigned `int`, enums as `EnumValue`, arrays as `Array`, nested structures as `Struct`. Setting a
    field writes to the guest where its memory can be written. Reading raises `UnreadableMemoryError`.
    """

    __slots__ = ("_address", "_record", "_typed")
    _address: int
    _record: Record
    _typed: TypedMemory

    def __init__(self, typed: TypedMemory, record: Record, address: int) -> None:
        object.__setattr__(self, "_typed", typed)
        object.__setattr__(self, "_record", record)
        object.__setattr__(self, "_address", address)

    @property
    def address(self) -> int:
        """Where the structure begins."""
        return self._address

    @property
    def type_name(self) -> str:
        """The name of its type (`_EPROCESS`)."""
        return self._record.name

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self._record.size

    def has(self, path: str) -> bool:
        """Whether this build's type has the field at the dotted `path`."""
        try:
            self._typed.fields.lookup(self._record, path)
        except TypeNotFoundError:
            return False
        return True

    def address_of(self, path: str) -> int:
        """The address of the field at the dotted `path`."""
        return self._address + self._typed.fields.lookup(self._record, path)[0]

    def integer(self, path: str) -> int:
        """The number at the dotted `path`: an integer, bit-field, enum or pointer."""
        return int(self[path])

    def pointer(self, path: str) -> Pointer:
        """The pointer at the dotted `path`; raises `UsageError` for a field of another type."""
        value = self[path]
        if not isinstance(value, Pointer):
            raise UsageError(f"{self.type_name}.{path} is no pointer")
        return value

    def struct(self, path: str) -> Struct:
        """The structure within this one at the dotted `path`; raises `UsageError` for a field of another type."""
        value = self[path]
        if not isinstance(value, Struct):
            raise UsageError(f"{self.type_name}.{path} is no structure")
        return value

    def array(self, path: str) -> Array:
        """The array at the dotted `path`; raises `UsageError` for a field of another type."""
        value = self[path]
        if not isinstance(value, Array):
            raise UsageError(f"{self.type_name}.{path} is no array")
        return value

    def read(self) -> bytes:
        """Its bytes."""
        return self._typed.memory.read(self._address, self._record.size)

    @property
    def text(self) -> str:
        """What a `_UNICODE_STRING` (or `_STRING`, `_ANSI_STRING`) says; "" for an empty one."""
        if not self.has("Length") or not self.has("Buffer"):
            raise UsageError(f"{self.type_name} is no string")
        wide = "UNICODE" in self.type_name
        length = self.integer("Length") & (~1 if wide else ~0) & 0xFFFF
        if not length:
            return ""
        data = self._typed.memory.read(self.integer("Buffer"), length)
        return data.decode("utf-16-le", "replace") if wide else data.decode("latin-1")

    @property
    def time(self) -> datetime | None:
        """A `_LARGE_INTEGER` or `_FILETIME`-like structure as a time in UTC; None for zero."""
        return filetime(int.from_bytes(self.read()[:8], "little"))

    @property
    def reference(self) -> int:
        """The address in an `_EX_FAST_REF`: its reference count, whose width the type tells, taken away."""
        _, kind = self._typed.fields.lookup(self._record, "RefCnt")
        if not isinstance(kind, BitField):
            raise UsageError(f"{self.type_name} is no fast reference")
        return self.integer("Value") & ~((1 << kind.length) - 1)

    def entries(self, name: str, link: str) -> Iterator[Struct]:
        """Each structure `name` on the `_LIST_ENTRY` that this is the head of, linked through its field `link`.

        A link that cannot be read, or leads back into the list, ends the walk; then the list is walked backwards
        from its tail, so that one bad link loses nothing.
        """
        record = self._typed.fields.record(name)
        offset = self._typed.fields.lookup(record, link)[0]
        for address in walk_list(self._typed, self._address):
            yield Struct(self._typed, record, address - offset)

    def __getitem__(self, path: str) -> Any:
        offset, kind = self._typed.fields.lookup(self._record, path)
        return self._typed.value(kind, self._address + offset)

    def __setitem__(self, path: str, value: int | float | bytes) -> None:
        offset, kind = self._typed.fields.lookup(self._record, path)
        self._typed.put(kind, self._address + offset, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: int | float | bytes) -> None:
        self[name] = value

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._record.fields]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Struct):
            return NotImplemented
        return (self._address, self._record.name) == (other._address, other._record.name)

    def __hash__(self) -> int:
        return hash((self._address, self._record.name))

    def __repr__(self) -> str:
        lines = [f"{self.type_name} at {self._address:#x}"]
        for field in sorted(self._record.fields.values(), key=place):
            lines.append(f"   +{field.offset:#05x} {field.name:<24} : {_shown(self._typed, self._address, field)}")
        return "\n".join(lines)


class Array(Sequence[Any]):
    """An array in memory; elements are read when they are asked for, an index outside raises `IndexError`."""

    def __init__(self, typed: TypedMemory, kind: ArrayType, address: int) -> None:
        self._typed = typed
        self._kind = kind
        self._stride = typed.types.size(kind.element)
        self.address = address

    def __len__(self) -> int:
        return self._kind.count

    def address_of(self, index: int) -> int:
        """The address of element `index`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of an array of {len(self)}")
        return self.address + index % len(self) * self._stride

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._typed.value(self._kind.element, self.address_of(index))

    def __setitem__(self, index: int, value: int | float | bytes) -> None:
        self._typed.put(self._kind.element, self.address_of(index), value)

    def read(self) -> bytes:
        """Its bytes."""
        return self._typed.memory.read(self.address, len(self) * self._stride)

    @property
    def text(self) -> str:
        """An array of characters up to its first zero."""
        if self._stride == 2:
            return self.read().decode("utf-16-le", "replace").partition("\0")[0]
        return self.read().partition(b"\0")[0].decode("latin-1")

    def __repr__(self) -> str:
        return f"<{type_name(self._kind)} at {self.address:#x}>"


def walk_list(typed: TypedMemory, head: int, limit: int = LONGEST_LIST) -> Iterator[int]:
    """The address of each `_LIST_ENTRY` on the list headed at `head`, in order; see `Struct.entries`."""
    links = typed.fields.record("_LIST_ENTRY").fields
    seen = {head}
    for offset in (links["Flink"].offset, links["Blink"].offset):
        address = head
        while len(seen) <= limit:
            try:
                address = typed.pointer(address + offset)
            except UnreadableMemoryError:
                break
            if address == head:
                return
            if address in seen or not address:
                break
            try:
                typed.pointer(address)
            except UnreadableMemoryError:
                break
            seen.add(address)
            yield address


def _shown(typed: TypedMemory, address: int, field: Field) -> str:
    """A field's value as kd's `dt` shows it."""
    kind = field.type
    try:
        if isinstance(kind, BitField):
            return f"{bits_of(kind)} = {typed.value(kind, address + field.offset):#x}"
        value = typed.value(kind, address + field.offset)
        if isinstance(value, Struct):
            text = f' "{value.text}"' if value.type_name == "_UNICODE_STRING" else ""
            return f"{value.type_name}{text}"
        if isinstance(value, Pointer):
            return f"{value!r} -> {type_name(value.target)}"
        if isinstance(value, EnumValue | Array | bool | float):
            return repr(value)
        return f"{value:#x}"
    except (UnreadableMemoryError, TypeNotFoundError) as error:
        return f"({error})"
