"""Finding the NT kernel: several independent anchors, each with a reason when it fails.

With registers (a live guest, an image that carries them) the anchors lead from a vCPU into the kernel's code; from
memory alone they find page tables first. Every anchor ends in the same proof: a PE image, of the machine that the page
tables are for, whose CodeView record names one of the kernel's PDBs or whose exports are the kernel's. So the kind of
page tables is never guessed: read as another kind they do not lead to such an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coldframe.errors import ColdframeError, FormatError, NoKernelError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE, PhysicalMemory
from coldframe.paging.formats import FORMATS
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.windows.bare import BareSpace
from coldframe.windows.pe import PeImage

KERNEL_PDBS = frozenset({"ntkrnlmp.pdb", "ntoskrnl.pdb", "ntkrnlpa.pdb", "ntkrpamp.pdb"})
KERNEL_IMAGES = frozenset({"ntoskrnl.exe", "ntkrnlmp.exe", "ntkrnlpa.exe", "ntkrpamp.exe"})
_KERNEL_EXPORTS = frozenset({"PsInitialSystemProcess", "NtBuildNumber"})  # wdm.h and ntddk.h: variables for drivers
KERNEL_HALF = 0xFFFF_8000_0000_0000
KUSER_SHARED_DATA = 0xFFFF_F780_0000_0000  # fixed on every x64 Windows: ntddk.h KI_USER_SHARED_DATA
KUSER_SHARED_DATA32 = 0xFFDF_0000  # and on every 32-bit one
MACHINES = {True: 0x8664, False: 0x14C}  # of a PE image, by whether its addresses have 64 bits
WINDOW = 64 << 20  # how far below an address inside the kernel its headers are looked for
_PART = 2 << 20  # how much of a larger page is looked at in one go
_MOST_ENTRIES = 1 << 24  # page-table entries that a whole search may read
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10

Registers = Mapping[str, int]


class FindsSymbols(Protocol):
    """Where symbol files come from: a `SymbolStore`."""

    def find(self, identity: PdbIdentity, /) -> SymbolFile:
        """The symbols of that identity, or `SymbolFileNotFoundError`."""
        ...


@dataclass(frozen=True, slots=True)
class KernelLocation:
    """Where the kernel is: `base` under the page tables at `dtb` (physical), its PDB, `how` it was found.

    `format` is the tables' name in `FORMATS`; `identity` is None for a kernel without a CodeView record.
    """

    base: int
    size: int
    dtb: int
    format: str
    identity: PdbIdentity | None
    how: str

    @property
    def levels(self) -> int:
        """How many levels the page tables have."""
        return len(FORMATS[self.format].levels)


Anchor = Callable[[], KernelLocation | None]


class Search:
    """One search: the target, what is known of its registers, and why each anchor failed so far."""

    def __init__(self, physical: PhysicalMemory, store: FindsSymbols | None, registers: Sequence[Registers]) -> None:
        self.physical = physical
        self.store = store
        self.registers = registers
        self.reasons: list[str] = []
        self._tried: set[tuple[int, str, int]] = set()
        self._entries = _MOST_ENTRIES

    def fail(self, anchor: str, reason: str) -> None:
        """Note why `anchor` did not lead to a kernel."""
        self.reasons.append(f"{anchor}: {reason}")

    def spend(self, entries: int) -> bool:
        """Count page-table entries read; False when the search has read more than any guest needs."""
        self._entries -= entries
        return self._entries > 0

    def spaces(self, vcpu: int) -> Iterator[BareSpace]:
        """The address space of `vcpu` by its CR3, read in each way that its other registers leave open."""
        registers = self.registers[vcpu]
        cr3 = registers.get("cr3", 0)
        for name in formats(registers):
            if cr3 & FORMATS[name].root:
                yield BareSpace(self.physical, cr3, name)

    def below(self, space: BareSpace, address: int, how: str) -> KernelLocation | str:
        """Scan downward from `address` for the kernel's headers; a text says why they were not found."""
        if address < space.kernel_half:
            return f"{address:#x} is no kernel address"
        if space.translate(address) is None:
            return f"{address:#x} is not mapped by the tables at {space.dtb:#x}"
        key = (space.dtb, space.format.name, address >> 12)
        if key in self._tried:
            return f"{address:#x} was scanned before"
        self._tried.add(key)
        others: list[str] = []
        for page in image_pages(space, space.mapped_down(address, max(address - WINDOW, space.kernel_half))):
            found = kernel_at(space, page, how)
            if isinstance(found, KernelLocation):
                return found
            others.append(found)
        seen = f" ({others[0]})" if others else ""
        return f"no kernel image within {WINDOW >> 20} MB below {address:#x}{seen}"


def find_kernel(
    physical: PhysicalMemory, store: FindsSymbols | None = None, hints: Sequence[Registers] = ()
) -> KernelLocation:
    """Find the NT kernel in `physical`.

    `hints` are registers, one mapping a vCPU, as far as they are known: `cr0 cr3 cr4 efer rip gs_base k_gs_base`,
    `idt_base`, `lstar`, and `nt_address` (any address inside the kernel, as a crash dump's header has). Raises
    `NoKernelError` with each anchor's reason.
    """
    from coldframe.windows import anchors, anchors32  # noqa: PLC0415 - anchors are written in terms of this module

    search = Search(physical, store, hints)
    paging = [registers for registers in hints if "cr0" not in registers or registers["cr0"] & _CR0_PG]
    steps = [*anchors.BY_REGISTERS, *anchors32.BY_REGISTERS]
    if hints and not paging:
        search.fail("registers", "no vCPU has paging on (CR0.PG): firmware or a boot loader runs, no Windows")
        steps = []
    else:
        steps += [*anchors.BY_MEMORY, *anchors32.BY_MEMORY, *anchors.BY_TYPES]
    for step in steps:
        found = step(search)
        if found is not None:
            return found
    raise NoKernelError(f"found no NT kernel: {'; '.join(search.reasons)}")


def formats(registers: Registers) -> tuple[str, ...]:
    """The kinds of page tables that a vCPU with these registers may use, the likeliest first.

    By CR4 and EFER as far as they are known. A 32-bit crash dump's header says `pae`, which is tried first.
    """
    if "pae" in registers:
        return ("pae", "x86") if registers["pae"] & 1 else ("x86", "pae")
    long = bool(registers["efer"] & _EFER_LMA) if "efer" in registers else None
    cr4 = registers.get("cr4")
    if cr4 is None:
        return {True: ("4-level", "5-level"), False: ("pae", "x86"), None: ("4-level", "5-level", "pae", "x86")}[long]
    if not cr4 & _CR4_PAE:
        return ("x86",)
    deep = "5-level" if cr4 & _CR4_LA57 else "4-level"
    return {True: (deep,), False: ("pae",), None: (deep, "pae")}[long]


def image_pages(space: BareSpace, pages: Iterator[tuple[int, int, int]]) -> Iterator[int]:
    """Virtual addresses in `pages` at which an image may begin ("MZ"): from the top down within each large page."""
    for address, physical, size in pages:
        for part in range((size - 1) // _PART * _PART, -1, -_PART):
            try:
                data = space.physical.buffer(physical + part, min(size - part, _PART))
            except UnreadableMemoryError:
                continue
            first, second = bytes(data[::PAGE_SIZE]), bytes(data[1::PAGE_SIZE])
            number = len(second)
            while (number := first.rfind(b"M", 0, number)) >= 0:
                if second[number] == ord("Z"):
                    yield address + part + number * PAGE_SIZE


def kernel_at(space: BareSpace, address: int, how: str) -> KernelLocation | str:
    """The kernel whose headers are at `address`, or what is there instead."""
    try:
        image = PeImage.read(space, address)
    except (FormatError, UnreadableMemoryError) as error:
        return f"no whole image at {address:#x}: {error}"
    if image.machine != MACHINES[space.format.canonical]:
        return f"the image at {address:#x} is of machine {image.machine:#x}, its page tables of another"
    identity: PdbIdentity | None = None
    trouble = f"the image at {address:#x} has no CodeView record"
    try:
        identity = image.codeview()
    except UnreadableMemoryError as error:
        trouble = f"no whole image at {address:#x}: {error}"
    if (identity is not None and identity.name.lower() in KERNEL_PDBS) or is_kernel(image):
        return KernelLocation(address, image.size, space.dtb, space.format.name, identity, how)
    return trouble if identity is None else f"the image at {address:#x} is {identity.name}"


def is_kernel(image: PeImage) -> bool:
    """Whether an image's export directory says that it is the kernel, and exports what the kernel does."""
    try:
        name = image.export_name()
        return name is not None and name.lower() in KERNEL_IMAGES and dict(image.exports()).keys() >= _KERNEL_EXPORTS
    except (FormatError, UnreadableMemoryError):
        return False


def load(store: FindsSymbols | None, identity: PdbIdentity) -> SymbolFile | str:
    """The kernel's symbols, or why there are none."""
    if store is None:
        return "no symbol store was given"
    try:
        return store.find(identity)
    except ColdframeError as error:
        return str(error)
