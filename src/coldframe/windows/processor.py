"""What a vCPU is running: from its KPCR to the current thread and process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coldframe.errors import NotFoundError, UnreadableMemoryError
from coldframe.windows.kernel import KERNEL_HALF
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_MOST_PROCESSORS = 2048


def processor_block(guest: Guest, registers: Mapping[str, int], vcpu: int | None = None) -> Struct:
    """The `_KPRCB` of the vCPU with these registers.

    GS base is the KPCR in the kernel; in user mode (and in the first instructions of the kernel's entry) it is in
    the swapped one. The KPCR proves itself by its field Self. Else, with `vcpu`, nt!KiProcessorBlock tells it.
    Raises `NotFoundError`.
    """
    said = []
    for name in ("gs_base", "k_gs_base"):
        base = registers.get(name, 0)
        if base < KERNEL_HALF:
            continue
        try:
            kpcr = guest.struct("_KPCR", base)
            if kpcr.integer("Self") == base:
                return kpcr.struct("Prcb")
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
            if address < KERNEL_HALF:
                break
            block = guest.struct("_KPRCB", address)
            if block.integer("Number") != number:
                break
        except UnreadableMemoryError:
            break
        found.append(block)
    return tuple(found)
