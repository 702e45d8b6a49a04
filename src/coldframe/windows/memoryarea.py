"""What ReactOS has beside NT's structures: files and images are mapped by memory areas, not by control areas.

A memory area begins with an `_MMVAD` and hangs in the process' tree; `VadFlags.Spare` tells it from a plain VAD. What
it maps is a `_MM_SECTION_SEGMENT`, which section objects (`MMSECTION_FLAGS.filler`) and SectionObjectPointers name
too (ReactOS, ntoskrnl/include/internal/mm.h and ntoskrnl/mm/ARM3/miarm.h: `MiIsRosSectionObject`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.symbols.model import Types
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_SECTION_VIEW = 1  # MEMORY_AREA_SECTION_VIEW


def has_memory_areas(types: Types) -> bool:
    """Whether this is a kernel of ReactOS."""
    return "_MEMORY_AREA" in types


def file_of_memory_area(guest: Guest, vad: Struct) -> int:
    """The address of the FILE_OBJECT that a VAD maps as a memory area; 0 where it is none, or maps no file.

    Raises `UnreadableMemoryError`.
    """
    if not has_memory_areas(guest.types) or not vad.has("u.VadFlags.Spare") or not vad.integer("u.VadFlags.Spare"):
        return 0
    area = guest.struct("_MEMORY_AREA", vad.address)
    if area.integer("Type") != _SECTION_VIEW:
        return 0
    segment = area.integer("SectionData.Segment")
    if segment < guest.kernel_start:
        return 0
    file = guest.struct("_MM_SECTION_SEGMENT", segment).integer("FileObject")
    return file if file >= guest.kernel_start else 0


def is_own_section(guest: Guest, section: Struct) -> bool:
    """Whether a `_SECTION` maps through memory areas: what it calls its segment is no `_SEGMENT` then."""
    return has_memory_areas(guest.types) and bool(section.integer("u.Flags.filler"))
