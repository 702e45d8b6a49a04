"""Handles and the objects behind them: handle tables, object headers, types and names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.symbols.model import BitField
from coldframe.windows.objectdirectory import ROOT, NamedObject, namespace
from coldframe.windows.objectpath import object_path
from coldframe.windows.typed import Struct, first_field

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_STEP = 4  # handles are multiples of 4: the low bits are the caller's
_LEVELS = 3
_CREATOR_INFO, _NAME_INFO = 1, 2  # OBJECT_HEADER.InfoMask; the creator's lies nearer to the header
_LARGEST_HANDLE = 1 << 26


@dataclass(frozen=True, slots=True)
class Object:
    """An object: its header's and its body's kernel address, its type's name, its own name if it has one."""

    guest: Guest = field(repr=False)
    header: int
    address: int
    type: str
    name: str | None

    @property
    def path(self) -> str | None:
        r"""Its whole name (`\Device\HarddiskVolume2\a.txt`, `\REGISTRY\MACHINE`), or None; see `object_path`."""
        return object_path(self.guest, self.address, self.type)


@dataclass(frozen=True, slots=True)
class Handle:
    """A handle of a process: its `value`, the object, and the access that was granted (an access mask)."""

    value: int
    object: Object
    access: int


class Objects:
    """Reads object headers."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._body = guest.types.offset("_OBJECT_HEADER", "Body")

    def of_body(self, body: int) -> Object:
        """The object whose body (an `_EPROCESS`, a `_FILE_OBJECT`) is at `body`."""
        return self.of_header(body - self._body)

    def of_header(self, address: int) -> Object:
        """The object whose `_OBJECT_HEADER` is at `address`; raises `UnreadableMemoryError`."""
        header = self._guest.struct("_OBJECT_HEADER", address)
        kind = self.type_name(header)
        body = address + self._body
        name = self._guest.sections.file_name(body) if kind == "File" else self.own_name(header)
        return Object(self._guest, address, body, kind, name)

    def directory(self, path: str = ROOT) -> Iterator[NamedObject]:
        r"""The objects below `path` (`\Device`, case apart) in the object manager's namespace, each folder's by name.

        Raises `NotFoundError` with near names; a path that leads to no directory gives that object alone.
        """
        return namespace(self._guest, path)

    def type_name(self, header: Struct) -> str:
        """The name of the object's type (`File`, `Process`); "" where the header names none that exists."""
        guest = self._guest
        if header.has("Type"):  # NT 5
            address = header.integer("Type")
        else:
            table = guest.variable("ObTypeIndexTable")
            if table is None:
                return ""
            address = guest.typed.pointer(table + self._type_index(header) * guest.types.pointer_size)
        if address < guest.kernel_start:
            return ""
        return guest.once(("object type", address), lambda: self._read_type_name(address))

    def _read_type_name(self, address: int) -> str:
        try:
            return self._guest.struct("_OBJECT_TYPE", address).struct("Name").text
        except UnreadableMemoryError:
            return ""

    def _type_index(self, header: Struct) -> int:
        """TypeIndex; since Windows 10 mixed with a cookie and with the second byte of the header's address."""
        index = header.integer("TypeIndex")
        cookie = self._guest.variable("ObHeaderCookie")
        if cookie is None:
            return index
        return index ^ self._guest.memory.u8(cookie) ^ header.address >> 8 & 0xFF

    def own_name(self, header: Struct) -> str | None:
        """The name in the object's header, as its directory has it; None where it has none, or it is not in RAM."""
        try:
            return self.name_and_directory(header)[0]
        except UnreadableMemoryError:
            return None

    def name_and_directory(self, header: Struct) -> tuple[str | None, int]:
        """That name, and the address of the directory's body, 0 for the root's; raises `UnreadableMemoryError`."""
        address = self._name_info(header)
        if address is None:
            return None, 0
        record = self._guest.struct("_OBJECT_HEADER_NAME_INFO", address)
        return record.struct("Name").text or None, record.integer("Directory")

    def _name_info(self, header: Struct) -> int | None:
        """Where the optional name header is, which lies before the object's header; None where it has none."""
        guest = self._guest
        if header.has("NameInfoOffset"):  # NT 5
            offset = header.integer("NameInfoOffset")
            return header.address - offset if offset else None
        mask = header.integer("InfoMask")
        if not mask & _NAME_INFO:
            return None
        upto = mask & (2 * _NAME_INFO - 1)
        table = guest.variable("ObpInfoMaskToOffset")
        told = 0 if table is None else guest.memory.u8(table + upto)
        if told:
            return header.address - told
        size = guest.types.size("_OBJECT_HEADER_NAME_INFO")
        if upto & _CREATOR_INFO:
            size += guest.types.size("_OBJECT_HEADER_CREATOR_INFO")
        return header.address - size


class HandleTable:
    """A `_HANDLE_TABLE`: iterates its handles, finds one by its value."""

    def __init__(self, guest: Guest, address: int) -> None:
        self._guest = guest
        self._table = guest.struct("_HANDLE_TABLE", address)
        self._entry_size = guest.types.size("_HANDLE_TABLE_ENTRY")
        self._entries = PAGE_SIZE // self._entry_size
        self._pointers = PAGE_SIZE // guest.types.pointer_size

    def __iter__(self) -> Iterator[Handle]:
        for value, entry in self.entries():
            found = self._decode(value, entry)
            if found is not None:
                yield found

    def entries(self) -> Iterator[tuple[int, Struct]]:
        """Each handle's value and its `_HANDLE_TABLE_ENTRY`, free ones too; no page is walked twice.

        What cannot be read is left out and noted among the guest's warnings.
        """
        end = min(self._table.integer("NextHandleNeedingPool"), _LARGEST_HANDLE)
        code = self._table.integer("TableCode")
        capacity = self._entries * self._pointers ** (code & _LEVELS if code & _LEVELS < _LEVELS else 0)
        seen: set[int] = set()
        for first in range(0, min(end, capacity * _STEP), self._entries * _STEP):
            try:
                page = self._entry_address(first, code)
                if not page or page in seen:
                    continue
                seen.add(page)
                used = self._guest.memory.read(page, self._entries * self._entry_size)
            except UnreadableMemoryError as error:
                self._guest.warn(f"handles of the table at {self._table.address:#x}: {error}")
                continue
            for index in range(1, self._entries):  # the first of each page holds no handle
                value, offset = first + index * _STEP, index * self._entry_size
                if value < end and any(used[offset : offset + self._entry_size]):
                    yield value, self._guest.struct("_HANDLE_TABLE_ENTRY", page + offset)

    def find(self, value: int) -> Handle | None:
        """The handle with that value, or None; raises `UnreadableMemoryError` where the table is not in RAM."""
        value &= ~(_STEP - 1)
        if not 0 < value < min(self._table.integer("NextHandleNeedingPool"), _LARGEST_HANDLE):
            return None
        entry = self._entry_address(value, self._table.integer("TableCode"))
        if not entry or not value // _STEP % self._entries:  # the first of each page holds no handle
            return None
        return self._decode(value, self._guest.struct("_HANDLE_TABLE_ENTRY", entry))

    def _entry_address(self, value: int, code: int) -> int:
        """Where the entry of handle `value` is; 0 where the table has no page for it."""
        level, table = code & _LEVELS, code & ~_LEVELS
        if level == _LEVELS:
            return 0
        index = value // _STEP
        for depth in range(level, 0, -1):
            span = self._entries * self._pointers ** (depth - 1)
            slot, index = divmod(index, span)
            if slot >= self._pointers:
                return 0
            table = self._guest.typed.pointer(table + slot * self._guest.types.pointer_size)
            if not table:
                return 0
        return table + index * self._entry_size if index < self._entries else 0

    def _decode(self, value: int, entry: Struct) -> Handle | None:
        """The handle in an entry; None for a free one."""
        header = self.pointer_of(entry)
        if header < self._guest.kernel_start:
            return None
        access = entry.integer(
            first_field(self._guest.types, "_HANDLE_TABLE_ENTRY", "GrantedAccessBits", "GrantedAccess")
        )
        try:
            found = self._guest.objects.of_header(header)
        except UnreadableMemoryError:
            found = Object(self._guest, header, header + self._guest.types.offset("_OBJECT_HEADER", "Body"), "", None)
        return Handle(value, found, access)

    def pointer_of(self, entry: Struct) -> int:
        """The address in an entry: what lies above an object's alignment (8 and later), or a pointer with three flags.

        That of an object's header; in nt!PspCidTable, of the body. Objects are aligned to 16 bytes, on 32-bit Windows
        to 8; the address is sign-extended from the topmost bit that is kept (the 45th in 8, the 48th since 8.1).
        """
        if not entry.has("ObjectPointerBits"):
            return entry.integer("Object") & ~7
        bits, (_, kind) = (
            8 * self._guest.types.pointer_size,
            self._guest.types.field(entry.type_name, "ObjectPointerBits"),
        )
        shift = 4 if bits == 64 else 3
        kept = shift + (kind.length if isinstance(kind, BitField) else bits)
        address = entry.integer("ObjectPointerBits") << shift
        return address | (1 << bits) - (1 << kept) if address >> kept - 1 else address


def table_of(guest: Guest, handle: int, own: int) -> tuple[HandleTable, int] | None:
    """The table that `handle` is in and its value there: `own` (an address), or the kernel's for a kernel handle.

    None for the pseudo handles of the current process and thread.
    """
    bits = 8 * guest.types.pointer_size
    signed = handle - (1 << bits) if handle >> bits - 1 else handle
    if -0x80000000 <= signed < 0 and -signed > 16:
        variable = guest.variable("ObpKernelHandleTable")
        address = 0 if variable is None else guest.typed.pointer(variable)
        return (HandleTable(guest, address), signed + 0x80000000) if address else None
    return (HandleTable(guest, own), handle) if own and signed > 0 else None
