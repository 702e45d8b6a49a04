"""The 32-bit side of a WOW64 process: its PEB and its loader's list.

The kernel's types describe `_PEB32`, but not the 32-bit loader's structures. Those have the same members as the 64-bit
ones with pointers of four bytes, so they are laid out anew from the 64-bit types, by C's rules of alignment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.symbols.model import Array, Base, BitField, Enum, Field, Pointer, Record, Reference, Type, Types
from coldframe.windows.module import Module

if TYPE_CHECKING:
    from coldframe.paging import AddressSpace
    from coldframe.windows.guest import Guest
    from coldframe.windows.process import Process

_MOST_MODULES = 1 << 12
_LIST = "InLoadOrderModuleList"
SOURCE = "32-bit loader"
"""What names a module of the 32-bit side (see `Module.source`)."""


@dataclass(frozen=True, slots=True)
class _Size:
    size: int
    align: int


class Narrow:
    """Offsets in the 32-bit form of structures whose 64-bit form the types describe."""

    def __init__(self, types: Types) -> None:
        self._types = types

    def offset(self, record: str, name: str) -> int:
        """Where member `name` is in the 32-bit form of `record`."""
        return self._places(self._types.record(record))[0][name]

    def _places(self, record: Record, depth: int = 8) -> tuple[dict[str, int], _Size]:
        """Each member's place, and the whole's size.

        A PDB tells an unnamed union's members as the record's own, so members that lie within earlier ones are another
        alternative of a union: they share its beginning, or follow the alternative's member before them.
        """
        places: dict[str, int] = {}
        end, align = 0, 1  # of the 32-bit form so far
        wide_end = -1  # where the members so far end in the 64-bit form
        wide_start = start = after = 0  # the member before: its beginning in both forms, its end in the 32-bit one
        for field in sorted(record.fields.values(), key=self._order):
            member = self._size(field.type, depth)
            if field.offset >= wide_end:
                start = -(-end // member.align) * member.align
            elif field.offset != wide_start:
                start = -(-after // member.align) * member.align
            wide_start = field.offset
            wide_end = max(wide_end, field.offset + self._types.size(field.type))
            places[field.name] = start
            after = start + member.size
            end = max(end, after)
            align = max(align, member.align)
        return places, _Size(-(-end // align) * align, align)

    def _order(self, field: Field) -> tuple[int, int]:
        """By place; of those at one place, the largest first."""
        return field.offset, -self._types.size(field.type)

    def _size(self, kind: Type, depth: int) -> _Size:
        match kind:
            case Pointer():
                return _Size(4, 4)
            case Base(size=size):
                return _Size(size, max(size, 1))
            case BitField(base=base):
                return self._size(base, depth)
            case Array(element=element, count=count):
                one = self._size(element, depth)
                return _Size(one.size * count, one.align)
            case Reference(name=name) if depth:
                found = self._types.find(name)
                if isinstance(found, Record):
                    return self._places(found, depth - 1)[1]
                if isinstance(found, Enum):
                    return _Size(found.base.size, found.base.size)
        return _Size(4, 4)


def peb32(process: Process) -> int:
    """The user address of the 32-bit PEB; 0 for a process that has none.

    EPROCESS leads to it through `_EWOW64PROCESS.Peb` (10 and later) or `_WOW64_PROCESS.Wow64` (NT 5.2); in between it
    points at the PEB itself.
    """
    path = process.wow64_field
    address = 0 if path is None else process.eprocess.integer(path)
    if not address:
        return 0
    for name, member in (("_EWOW64PROCESS", "Peb"), ("_WOW64_PROCESS", "Wow64")):
        if process.guest.types.has_field(name, member):
            return process.guest.struct(name, address).integer(member)
    return address


def modules32(process: Process) -> Iterator[Module]:
    """The 32-bit modules in load order, from the 32-bit loader's list; what is not in RAM is left out."""
    guest, memory = process.guest, process.memory
    address = peb32(process)
    if not address or "_PEB32" not in guest.types:
        return
    narrow = Narrow(guest.types)
    loader = memory.u32(address + guest.types.offset("_PEB32", "Ldr"))
    if not loader:
        return
    head = loader + narrow.offset("_PEB_LDR_DATA", _LIST)
    entry, seen = memory.u32(head), {head}
    while entry and entry not in seen and len(seen) < _MOST_MODULES:
        seen.add(entry)
        try:
            module = _module(guest, memory, narrow, entry)
            entry = memory.u32(entry)
        except UnreadableMemoryError as error:
            guest.warn(f"32-bit modules of {process!r}: {error}")
            return
        if module is not None:
            yield module


def _module(guest: Guest, memory: AddressSpace, narrow: Narrow, entry: int) -> Module | None:
    kind = "_LDR_DATA_TABLE_ENTRY"
    base = memory.u32(entry + narrow.offset(kind, "DllBase"))
    size = memory.u32(entry + narrow.offset(kind, "SizeOfImage"))
    if not base or base & 0xFFF or not size:
        return None
    path = _name(memory, entry + narrow.offset(kind, "FullDllName"))
    return Module(
        guest,
        memory,
        name=_name(memory, entry + narrow.offset(kind, "BaseDllName")) or path.rpartition("\\")[2],
        base=base,
        size=size,
        path=path,
        timestamp=memory.u32(entry + narrow.offset(kind, "TimeDateStamp")),
        source=SOURCE,
    )


def text32(memory: AddressSpace, address: int) -> str:
    """What the 32-bit UNICODE_STRING at `address` says: length, maximum, and a pointer of four bytes."""
    length = memory.u16(address) & ~1
    return memory.read(memory.u32(address + 4), length).decode("utf-16-le", "replace") if length else ""


def _name(memory: AddressSpace, address: int) -> str:
    """The string at `address`; "" where it is not in RAM."""
    try:
        return text32(memory, address)
    except UnreadableMemoryError:
        return ""
