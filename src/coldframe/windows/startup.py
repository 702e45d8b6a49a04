"""What translation needs to know of a kernel before its memory can be read in every state.

Read by hardware rules alone: the kernel's variables and the System process are never paged out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coldframe.errors import FormatError, TypeNotFoundError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE, PhysicalMemory
from coldframe.paging.swizzle import mask_from_physical_bits
from coldframe.symbols.model import SymbolFile
from coldframe.windows.bare import BareSpace
from coldframe.windows.kernel import KernelLocation
from coldframe.windows.typed import Array, Struct, TypedMemory

_LOWEST_SPLIT, _HIGHEST_SPLIT = 0x8000_0000, 0xC000_0000


@dataclass(slots=True)
class Startup:
    """The kernel's own DTB, the mask of its invalid PTEs, and what could not be read.

    `split` is where the kernel's half begins in a 32-bit guest, 0 in others.
    """

    dtb: int
    invalid_pte_mask: int = 0
    split: int = 0
    warnings: list[str] = field(default_factory=list)


def read(physical: PhysicalMemory, location: KernelLocation, symbol_file: SymbolFile) -> Startup:
    """Read them for the kernel at `location`."""
    space = BareSpace(physical, location.dtb, location.format)
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
    if not space.format.canonical:
        start.split = _split(location, symbol_file, typed)
    return start


def directory_table(eprocess: Struct, root: int, path: str = "Pcb.DirectoryTableBase") -> int:
    """The physical address of a process's top-level table; `root` masks it (the format's).

    Before Vista it is the first of two numbers, of which the second is hyperspace's.
    """
    value = eprocess[path]
    return int(value[0] if isinstance(value, Array) else value) & root


def _split(location: KernelLocation, symbol_file: SymbolFile, typed: TypedMemory) -> int:
    """Where the kernel's half begins: nt!MmSystemRangeStart, 2 GB or (booted with /3GB or IncreaseUserVA) above."""
    rva = symbol_file.symbols.get("MmSystemRangeStart")
    try:
        start = 0 if rva is None else typed.pointer(location.base + rva)
    except UnreadableMemoryError:
        start = 0
    return start if _LOWEST_SPLIT <= start <= _HIGHEST_SPLIT and not start % PAGE_SIZE else _LOWEST_SPLIT


def _system_dtb(
    physical: PhysicalMemory, location: KernelLocation, symbol_file: SymbolFile, typed: TypedMemory
) -> int | None:
    """The DTB of PsInitialSystemProcess, when it maps the kernel where it was found; None early in boot."""
    rva = symbol_file.symbols.get("PsInitialSystemProcess")
    system = 0 if rva is None else typed.pointer(location.base + rva)
    here = BareSpace(physical, location.dtb, location.format)
    if system < here.kernel_half:
        return None
    dtb = directory_table(typed.struct("_EPROCESS", system), here.format.root)
    mapped = BareSpace(physical, dtb, location.format).translate(location.base)
    return dtb if mapped is not None and mapped == here.translate(location.base) else None


def _invalid_pte_mask(location: KernelLocation, symbol_file: SymbolFile, typed: TypedMemory) -> int:
    """`MiState.Hardware.InvalidPteMask`, `MiInvalidPteMask`, or from `KiImplementedPhysicalBits` early in boot.

    The last is one byte, 0 or -1 on processors that need no mask. A kernel with none of them swizzles nothing.
    """
    symbols, types = symbol_file.symbols, symbol_file.types
    told = _mask_of_memory_manager(location, symbol_file, typed)
    if told is not None:
        return told
    variable = symbols.get("MiInvalidPteMask")  # 7 to 8.1, which do not say when it is filled in
    known = 0 if variable is None else typed.integer(location.base + variable, types.size("_MMPTE_HARDWARE"))
    if known:
        return known
    bits = symbols.get("KiImplementedPhysicalBits")
    return 0 if bits is None else mask_from_physical_bits(typed.integer(location.base + bits, 1))


def _mask_of_memory_manager(location: KernelLocation, symbol_file: SymbolFile, typed: TypedMemory) -> int | None:
    """What `MiState` says (since 10); None where this build's does not, or while it is not filled in."""
    state, path = symbol_file.symbols.get("MiState"), "Hardware.InvalidPteMask"
    if state is None or not symbol_file.types.has_field("_MI_SYSTEM_INFORMATION", path):
        return None
    system = typed.struct("_MI_SYSTEM_INFORMATION", location.base + state)
    try:
        known = system.integer(path)
        initialised = known or not system.has("FullyInitialized") or system.integer("FullyInitialized")
    except UnreadableMemoryError:
        return None
    return known if initialised else None
