"""What a vCPU is running: from its KPCR to the current thread and process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import NotFoundError, UnreadableMemoryError
from coldframe.symbols.model import Types
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_MOST_PROCESSORS = 2048
_POINTER_OF_X64 = 8


@dataclass(frozen=True, slots=True)
class ProcessorRegion:
    """A KPCR: the segment bases that may be its address, its type, its pointer to itself, and the KPRCB in it."""

    bases: tuple[str, ...]
    record: str
    own: str
    block: str


def processor_region(types: Types) -> ProcessorRegion:
    """What this kernel's KPCR is; ReactOS (sdk/include/ndk, ketypes.h) calls the whole of it `_KIPCR`."""
    wide = types.pointer_size == _POINTER_OF_X64
    block = "Prcb" if wide else "PrcbData"
    record = next((name for name in ("_KPCR", "_KIPCR") if types.has_field(name, block)), "_KPCR")
    if wide:
        return ProcessorRegion(("gs_base", "k_gs_base"), record, "Self", block)
    return ProcessorRegion(("fs_base",), record, "SelfPcr", block)


def processor_block(guest: Guest, registers: Mapping[str, int], vcpu: int | None = None) -> Struct:
    """The `_KPRCB` of the vCPU with these registers.

    GS base is the KPCR in the kernel; in user mode (and in the first instructions of the kernel's entry) it is in
    the swapped one. In a 32-bit kernel FS base is. The KPCR proves itself by its field Self. Else, with `vcpu`,
    nt!KiProcessorBlock tells it.
    Raises `NotFoundError`.
    """
    said = []
    region = processor_region(guest.types)
    for name in region.bases:
        base = registers.get(name, 0)
        if base < guest.kernel_start:
            continue
        try:
            kpcr = guest.struct(region.record, base)
            if kpcr.integer(region.own) == base:
                return kpcr.struct(region.block)
            said.append(f"{name} {base:#x} is no KPCR")
        except UnreadableMemoryError as error:
            said.append(f"{name}: {error}")
    if vcpu is not None:
        blocks = processor_blocks(guest)
        if vcpu < len(blocks):
            return blocks[vcpu]
        said.append(f"nt!KiProcessorBlock has {len(blocks)} processors")
    raise NotFoundError("processor block (KPRCB)", f"of vCPU {vcpu}", hint="; ".join(said))


def processor_blocks(guest: Guest) -> tuple[Struct, ...]:
    """The `_KPRCB` of each processor, by number, from nt!KiProcessorBlock."""
    return guest.once("processors", lambda: _processor_blocks(guest))


def _processor_blocks(guest: Guest) -> tuple[Struct, ...]:
    table = guest.variable("KiProcessorBlock")
    if table is None:
        return ()
    found = []
    for number in range(_MOST_PROCESSORS):
        try:
            address = guest.typed.pointer(table + number * guest.types.pointer_size)
            if address < guest.kernel_start:
                break
            block = guest.struct("_KPRCB", address)
            if block.integer("Number") != number:
                break
        except UnreadableMemoryError:
            break
        found.append(block)
    return tuple(found)
