"""Page-table entries as kd's `!pte` shows them.

The shape and the letters are those of Microsoft's documentation of `!pte`
(https://learn.microsoft.com/windows-hardware/drivers/debuggercmds/-pte), with the columns that kd has for x64.
"""

from __future__ import annotations

from coldframe.paging import AddressSpace, Page, PteLayout, says, unswizzle
from coldframe.paging.formats import LARGE, VALID, Level
from coldframe.paging.selfmap import entry_addresses, self_map

NAMES = {"PML5E": "P5E", "PML4E": "PXE", "PDPTE": "PPE"}
"""kd's names for entries, where they are not the processor's; it shows none of 5-level tables that is documented."""

_LEAST = 25
_INDENT = 43


def table_lines(page: Page, space: AddressSpace, room: int = 1000) -> list[str]:
    """The levels in columns: where each entry is, what it contains, what that means; where `room` characters are too
    few for that, a level a line.

    An entry's address is its virtual one in the self-map; the guest-physical one, with a `#`, where there is no
    self-map. Entries that were not reached are left empty.
    """
    resolver = space.resolver
    base = self_map(resolver.physical, resolver.format, space.dtb)
    mapped = {} if base is None else entry_addresses(resolver.format, base, page.address)
    read = {step.level: step for step in page.steps}
    width = 2 * resolver.format.entry_size
    pointer = 16 if resolver.format.canonical else 8
    columns: list[list[str]] = []
    large = ""
    for level in resolver.format.levels:
        step = read.get(level.name)
        if level.bits == 2 and base is not None:  # PAE's top level is in the words alone, as in kd
            continue
        name = NAMES.get(level.name, level.name)
        if level.name in mapped:
            where = f"{name} at {mapped[level.name]:0{pointer}X}"
        else:
            where = f"{name} at #{step.entry_address:X}" if step else f"{name}"
        if large or step is None:
            columns.append([where, f"contains {0:0{width}X}", large] if large else [where])
            large = ""
            continue
        lines, large = _meaning(step.value, level, space)
        columns.append([where, f"contains {step.value:0{width}X}", *lines])
    widths = [max(_LEAST, *map(len, column)) for column in columns]
    height = max(map(len, columns), default=0)
    rows = [[column[row] if row < len(column) else "" for column in columns] for row in range(height)]
    lines = ["  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)).rstrip() for row in rows]
    if max(map(len, lines), default=0) > room:
        return [f"VA {page.address:0{pointer}x}", *("  ".join(filter(None, column)) for column in columns)]
    return [f"{'':<{_INDENT}}VA {page.address:0{pointer}x}", *lines]


def _meaning(stored: int, level: Level, space: AddressSpace) -> tuple[list[str], str]:
    """The lines under an entry's value, and what the next column says where this one maps a large page."""
    resolver = space.resolver
    if stored & VALID:
        is_large = bool(stored & LARGE and level.large_frame)
        frame = stored & (level.large_frame if is_large else resolver.format.frame)
        if resolver.format.pse36 and is_large:
            frame |= (stored >> 13 & 0xFF) << 32
        number, _, letters = (
            says.frame(frame, stored, resolver.layout, large=is_large).removeprefix("pfn ").partition(" ")
        )
        return [f"pfn {number:<9} {letters}"], f"LARGE PAGE pfn {number}" if is_large else ""
    if resolver.layout is None:
        return ["not valid"], ""
    return ["not valid", *_software(stored, resolver.layout, resolver.invalid_pte_mask)], ""


def _software(stored: int, layout: PteLayout, mask: int) -> list[str]:
    """What an entry that is not valid says, in kd's words."""
    value = unswizzle(stored, mask, layout.swizzle_bit)
    if not value:
        return []
    protect = " " + says.protection(value, layout).replace("protect", "Protect:")
    if layout.is_transition(value):
        return [f" Transition: {(value & layout.transition_frame) >> 12:x}", protect]
    if layout.is_vad_marker(stored):
        return [" Proto: VAD", protect]
    if value & layout.prototype:
        address = layout.prototype_address(value)
        return [" Proto: relative to an unknown pool" if address is None else f" Proto: {address:X}"]
    if layout.page_file_high.get(value) == 0:
        return [" DemandZero", protect]
    number, offset = layout.page_file_low.get(value), layout.slot(value)
    return [f" PageFile: {number:2x}", f" Offset: {offset:x}", protect]
