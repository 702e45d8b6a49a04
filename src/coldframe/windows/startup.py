"""What translation needs to know of a kernel before its memory can be read in every state.

Read by hardware rules alone: the kernel's variables and the System process are never paged out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coldframe.errors import FormatError, TypeNotFoundError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging.swizzle import mask_from_physical_bits
from coldframe.symbols.model import SymbolFile
from coldframe.windows.bare import FRAME, BareSpace
from coldframe.windows.kernel import KERNEL_HALF, KernelLocation
from coldframe.windows.typed import TypedMemory


@dataclass(slots=True)
class Startup:
    """The kernel's own DTB, the mask of its invalid PTEs, and what could not be read."""

    dtb: int
    invalid_pte_mask: int = 0
    warnings: list[str] = field(default_factory=list)


def read(physical: PhysicalMemory, location: KernelLocation, symbol_file: SymbolFile) -> Startup:
    """Read them for the kernel at `location`."""
    space = BareSpace(physical, location.dtb, location.levels)
    typed = TypedMemory(space, symbol_file.types)
    start = Startup(location.dtb)
    try:
        start.dtb = _system_dtb(physical, location, symbol_file, typed) or location.dtb
    except (UnreadableMemoryError, TypeNotFoundError) as error:
        start.warnings.append(f"the System process: {error}")
    try:
        start.invalid_pte_mask = _invalid_pte_mask(location, symbol_file, typed)
    except (UnreadableMemoryError, FormatError) as error:
        start.warnings.append(f"mask of invalid PTEs: {error}")
    return start


def _system_dtb(
    physical: PhysicalMemory, location: KernelLocation, symbol_file: SymbolFile, typed: TypedMemory
) -> int | None:
    """The DTB of PsInitialSystemProcess, when it maps the kernel where it was found; None early in boot."""
    rva = symbol_file.symbols.get("PsInitialSystemProcess")
    system = 0 if rva is None else typed.pointer(location.base + rva)
    if system < KERNEL_HALF:
        return None
    dtb = typed.struct("_EPROCESS", system).integer("Pcb.DirectoryTableBase") & FRAME
    mapped = BareSpace(physical, dtb, location.levels).translate(location.base)
    here = BareSpace(physical, location.dtb, location.levels).translate(location.base)
    return dtb if mapped is not None and mapped == here else None


def _invalid_pte_mask(location: KernelLocation, symbol_file: SymbolFile, typed: TypedMemory) -> int:
    """`MiState.Hardware.InvalidPteMask`, `MiInvalidPteMask`, or from `KiImplementedPhysicalBits` early in boot.

    The last is one byte. A kernel with none of them swizzles nothing.
    """
    symbols, types = symbol_file.symbols, symbol_file.types
    state, path = symbols.get("MiState"), "Hardware.InvalidPteMask"
    if state is not None and types.has_field("_MI_SYSTEM_INFORMATION", path):
        system = typed.struct("_MI_SYSTEM_INFORMATION", location.base + state)
        known = system.integer(path)
        initialised = known or not system.has("FullyInitialized") or system.integer("FullyInitialized")
        if initialised:
            return known
    variable = symbols.get("MiInvalidPteMask")
    if variable is not None:
        return typed.integer(location.base + variable, types.pointer_size)
    bits = symbols.get("KiImplementedPhysicalBits")
    return 0 if bits is None else mask_from_physical_bits(typed.integer(location.base + bits, 1))
