"""The kernel's symbols: by what its CodeView record names, else a file that the user names and that fits the image.

A kernel may have no CodeView record (builds of ReactOS have none), or one that no symbol file at hand has the identity
of. A file that the user gives by its own name is taken then, if what the image exports stands where the file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from coldframe.errors import FormatError, SymbolFileNotFoundError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.symbols.model import SymbolFile
from coldframe.windows.bare import BareSpace
from coldframe.windows.pe import PeImage

if TYPE_CHECKING:
    from coldframe.windows.kernel import FindsSymbols, KernelLocation

_FEWEST_AGREEING = 3
_SHARE_AGREEING = 0.95  # a name may have two addresses in a symbol file, of which one is told


@runtime_checkable
class NamesFiles(Protocol):
    """A store that knows which files the user named one by one."""

    def named_files(self) -> tuple[Sequence[SymbolFile], Sequence[str]]:
        """Those files' symbols, and a line for each that cannot be read."""
        ...


def named_files(store: FindsSymbols | None) -> tuple[Sequence[SymbolFile], Sequence[str]]:
    """The symbol files that the user named, where the store tells."""
    return store.named_files() if isinstance(store, NamesFiles) else ((), ())


def kernel_symbols(
    physical: PhysicalMemory, store: FindsSymbols, location: KernelLocation
) -> tuple[SymbolFile, str | None]:
    """The symbols of the kernel at `location`, and a warning where they are not by its identity.

    Raises `SymbolFileNotFoundError`, which says of each named file why it does not fit.
    """
    said = f"the kernel at {location.base:#x} has no CodeView record, which would name its PDB"
    if location.identity is not None:
        try:
            return store.find(location.identity), None
        except SymbolFileNotFoundError as error:
            said = str(error)
    files, reasons = named_files(store)
    notes = list(reasons)
    for symbols in files:
        agree = _agreement(physical, location, symbols)
        if isinstance(agree, int):
            own = "has no CodeView record" if location.identity is None else f"names {location.identity}"
            return symbols, f"the kernel's image {own}; {symbols.path} is taken, by {agree} exports that agree with it"
        notes.append(f"{symbols.path} {agree}")
    help_ = "" if location.identity is not None else "; give its PDB or ISF file itself with --symbols FILE"
    raise SymbolFileNotFoundError(f"{said}{help_}{'; ' if notes else ''}{'; '.join(notes)}")


def _agreement(physical: PhysicalMemory, location: KernelLocation, symbols: SymbolFile) -> int | str:
    """How many of the image's exports stand where `symbols` say, or why these symbols are not the image's."""
    space = BareSpace(physical, location.dtb, location.format)
    width = 8 if space.format.canonical else 4
    if "_EPROCESS" not in symbols.types:
        return "describes no NT kernel: it has no type _EPROCESS"
    if symbols.types.pointer_size != width:
        return f"is of a {8 * symbols.types.pointer_size}-bit kernel, this one has {8 * width} bits"
    entry = symbols.types.size("_MMPTE_HARDWARE") if "_MMPTE_HARDWARE" in symbols.types else space.format.entry_size
    if entry != space.format.entry_size:
        return (
            f"is of a kernel whose page-table entries have {entry} bytes, those of this one {space.format.entry_size}"
        )
    try:
        exported = dict(PeImage.read(space, location.base).exports())
    except (FormatError, UnreadableMemoryError) as error:
        return f"cannot be held against the kernel's exports: {error}"
    known = {name: rva for name, rva in exported.items() if name in symbols.symbols}
    agree = sum(symbols.symbols.get(name) == rva for name, rva in known.items())
    if agree >= _FEWEST_AGREEING and agree >= _SHARE_AGREEING * len(known):
        return agree
    if len(known) < _FEWEST_AGREEING:
        return f"has {len(known)} of the kernel's {len(exported)} exports among its symbols, too few to know it by"
    by = {(symbols.symbols.get(name) or 0) - rva for name, rva in known.items()}
    shifted = f", all by {by.pop():#x}: its addresses are not relative to the image's base" if len(by) == 1 else ""
    return f"is of another kernel: {len(known) - agree} of {len(known)} exports stand elsewhere{shifted}"
