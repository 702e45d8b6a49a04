"""Paging files as the kernel lists them, and the number that stands for the compressed store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import TypeNotFoundError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.symbols.model import Array, Pointer, Reference, Types
from coldframe.windows.typed import Struct, first_field

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_MOST_FILES = 16
_DEEPEST = 3


@dataclass(frozen=True, slots=True)
class PagingFile:
    r"""A paging file: its number in PTEs, its name (`\??\C:\pagefile.sys`), its sizes in bytes.

    `is_store` marks the one that is no file: the compressed store. `address` is its `_MMPAGING_FILE`, `file_object` its
    `_FILE_OBJECT` (0 for the store).
    """

    number: int
    name: str | None
    size: int
    maximum: int
    free: int
    is_store: bool
    address: int
    file_object: int


class PagingFiles:
    """The paging files of a guest, for the resolver and for `info`; read once a pause."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def all(self) -> tuple[PagingFile, ...]:
        """The paging files, by number."""
        return self._guest.once("paging files", self._read)

    def paging_file_name(self, number: int) -> str | None:
        """The name of paging file `number`, or None."""
        return next((file.name for file in self.all() if file.number == number), None)

    def store_number(self) -> int | None:
        """The number that stands for the compressed store; None where there is none."""
        return next((file.number for file in self.all() if file.is_store), None)

    def _read(self) -> tuple[PagingFile, ...]:
        found: dict[int, PagingFile] = {}
        try:
            for index, address in self._addresses():
                file = self._file(index, address)
                found.setdefault(file.number, file)
        except (UnreadableMemoryError, TypeNotFoundError) as error:
            self._guest.warn(f"paging files: {error}")
        return tuple(found[number] for number in sorted(found))

    def _addresses(self) -> Iterator[tuple[int, int]]:
        """Index and address of each `_MMPAGING_FILE`.

        In this order: `nt!MmPagingFile` (to 8.1); the array in the system partition (10 and 11), at whatever path its
        type has it; `MiState`, at whatever path.
        """
        guest = self._guest
        array = guest.variable("MmPagingFile")
        if array is None:
            array = self._array_in(guest.variable("MiSystemPartition"), "_MI_PARTITION")
        if array is None:
            array = self._array_in(guest.variable("MiState"), "_MI_SYSTEM_INFORMATION")
        if array is None:
            guest.warn("paging files: neither MmPagingFile nor MiSystemPartition nor MiState leads to them")
            return
        size = guest.types.pointer_size
        for index in range(_MOST_FILES):
            address = guest.typed.pointer(array + index * size)
            if address:
                yield index, address

    def _array_in(self, address: int | None, name: str) -> int | None:
        if address is None or name not in self._guest.types:
            return None
        path = path_to_array(self._guest.types, name, "_MMPAGING_FILE", _DEEPEST)
        return None if path is None else address + self._guest.types.offset(name, path)

    def _file(self, index: int, address: int) -> PagingFile:
        record = self._guest.struct("_MMPAGING_FILE", address)
        file_object = record.integer(first_field(self._guest.types, "_MMPAGING_FILE", "File", "FileObject"))
        return PagingFile(
            number=record.integer("PageFileNumber") if record.has("PageFileNumber") else index,
            name=self._name(record, file_object),
            size=record.integer("Size") * PAGE_SIZE,
            maximum=record.integer("MaximumSize") * PAGE_SIZE,
            free=record.integer("FreeSpace") * PAGE_SIZE,
            is_store=record.has("VirtualStorePagefile") and bool(record.integer("VirtualStorePagefile")),
            address=address,
            file_object=file_object,
        )

    def _name(self, record: Struct, file_object: int) -> str | None:
        try:
            name = record.struct("PageFileName").text
        except UnreadableMemoryError:
            name = ""
        if name or not file_object:
            return name or None
        try:
            return self._guest.sections.file_name(file_object)
        except UnreadableMemoryError:
            return None


def path_to_array(types: Types, record: str, element: str, depth: int) -> str | None:
    """The dotted path within `record` of an array of pointers to `element`, the shallowest first; None without one."""
    level = [(record, "")]
    for _ in range(depth):
        below: list[tuple[str, str]] = []
        for name, path in level:
            for field in types.record(name).fields.values():
                match field.type:
                    case Array(element=Pointer(target=Reference(name=target))) if target == element:
                        return path + field.name
                    case Reference(name=inner, kind="struct" | "union" | "class") if inner in types:
                        below.append((inner, f"{path}{field.name}."))
        level = below
    return None
