"""Loaded images: the kernel, its drivers, and the modules of a process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldframe.errors import FormatError, SymbolFileNotFoundError, TypeNotFoundError, UnreadableMemoryError
from coldframe.symbols.model import PdbIdentity, SymbolFile, Types
from coldframe.windows.pe import PeImage
from coldframe.windows.typed import Struct, TypedMemory

if TYPE_CHECKING:
    from coldframe.paging import AddressSpace
    from coldframe.windows.guest import Guest

KERNEL_NAME = "nt"
USER_ENTRY, KERNEL_ENTRY = "_LDR_DATA_TABLE_ENTRY", "_KLDR_DATA_TABLE_ENTRY"


@dataclass(frozen=True, eq=False)
class Module:
    """An image from `base`, `size` bytes long, in the address space `memory`.

    `name` is the file's name (`ntdll.dll`), `path` where it was loaded from as the loader says it. `timestamp` is the
    PE header's, 0 where the loader's entry does not tell it. `source` says which list named the module.
    """

    guest: Guest = field(repr=False)
    memory: AddressSpace = field(repr=False)
    name: str
    base: int
    size: int
    path: str
    timestamp: int = 0
    source: str = "loader"
    is_kernel: bool = False

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.base <= address < self.base + self.size

    @property
    def stem(self) -> str:
        """The name as debuggers write it before "!": without extension, and `nt` for the kernel."""
        if self.is_kernel:
            return KERNEL_NAME
        stem, dot, _ = self.name.rpartition(".")
        return stem if dot else self.name

    @property
    def pdb(self) -> PdbIdentity | None:
        """What the image's CodeView record names; None when it has none, or its page is not in RAM."""
        if self.is_kernel:
            return self.guest.location.identity
        return self.guest.identity_of(self)

    def image(self) -> PeImage:
        """The PE headers; raises `FormatError`, or `UnreadableMemoryError` where they are not in RAM."""
        return PeImage.read(self.memory, self.base)

    @property
    def symbols(self) -> SymbolFile:
        """The module's symbols; raises `SymbolFileNotFoundError` when there are none."""
        if self.is_kernel:
            return self.guest.symbol_file_of_kernel
        identity = self.pdb
        if identity is None:
            raise SymbolFileNotFoundError(
                f"no symbols for {self.name}: its CodeView record, which names its PDB, is absent or not in RAM"
            )
        return self.guest.symbol_file(identity)

    @property
    def typed(self) -> TypedMemory:
        """The module's types over its address space; raises as `symbols` does."""
        return TypedMemory(self.memory, self.symbols.types)

    def struct(self, name: str, address: int) -> Struct:
        """The structure `name` of the module's types at `address`; raises as `symbols` does, and `TypeNotFoundError`.

        `process.module("ntdll").struct("_TEB", thread.teb)` is what kd's `dt ntdll!_TEB` shows.
        """
        return self.typed.struct(name, address)

    def symbol(self, name: str) -> int:
        """The address of symbol `name`; raises `SymbolNotFoundError` with near names."""
        return self.base + self.symbols.symbols[name]


def read_codeview(module: Module) -> PdbIdentity | None:
    """The identity in `module`'s headers, or None where it cannot be had."""
    try:
        return module.image().codeview()
    except (FormatError, UnreadableMemoryError):
        return None


def named(modules: Iterable[Module], name: str) -> Module | None:
    r"""The module called `name`, with or without extension, in any case; `nt` is the kernel.

    With a folder it is the end of its path: a WOW64 process has an ntdll and a `SysWOW64\ntdll`.
    """
    folder, separator, wanted = name.lower().rpartition("\\")
    for module in modules:
        if wanted in (module.name.lower(), module.stem.lower()):
            path = "\\" + module.path.lower().rpartition("\\")[0]
            if not separator or path.endswith("\\" + folder.lstrip("\\")):
                return module
    return None


def holding(modules: Iterable[Module], address: int) -> Module | None:
    """The module that `address` lies in."""
    return next((module for module in modules if address in module), None)


def loaded(guest: Guest, memory: AddressSpace, head: Struct, kind: str, kernel_base: int = 0) -> Iterator[Module]:
    """The modules on a loader list of `kind` entries (`_LDR_DATA_TABLE_ENTRY`), in load order.

    Entries whose base or size cannot be an image's are left out; a name that is not in RAM is "".
    """
    for entry in head.entries(kind, "InLoadOrderLinks"):
        try:
            base, size = entry.integer("DllBase"), entry.integer("SizeOfImage")
        except UnreadableMemoryError:
            continue
        if not base or base & 0xFFF or not size:
            continue
        path = _text(entry, "FullDllName")
        yield Module(
            guest,
            memory,
            name=_text(entry, "BaseDllName") or path.rpartition("\\")[2],
            base=base,
            size=size,
            path=path,
            timestamp=entry.integer("TimeDateStamp") if entry.has("TimeDateStamp") else 0,
            is_kernel=base == kernel_base,
        )


def entry_type(types: Types, *names: str) -> str:
    """The first of the loader-entry types `names` that this kernel's types have.

    The kernel's own entries and a process's begin alike, so that either serves where a PDB leaves one of them out.
    """
    known = next((name for name in names if name in types), None)
    if known is None:
        raise TypeNotFoundError("structure", " or ".join(names))
    return known


def _text(entry: Struct, name: str) -> str:
    try:
        return entry.struct(name).text
    except UnreadableMemoryError:
        return ""
