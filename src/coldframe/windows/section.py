"""Sections: control areas and subsections, the file behind them, and the prototype PTEs of a view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.paging import SubsectionPage
from coldframe.windows.memoryarea import file_of_memory_area
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.controlarea import ControlArea
    from coldframe.windows.guest import Guest
    from coldframe.windows.process import Process

_MOST_SUBSECTIONS = 1 << 16
_SECTOR = 512
_LONGEST_RELATED_CHAIN = 8


class Sections:
    """What the kernel keeps of sections; answers paging's questions about subsections."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._pte_size = guest.layout.entry_size

    def listed(self, processes: Iterable[Process], *, named: bool = False) -> list[ControlArea]:
        """The sections that `processes` map or hold open, and with `named` those of the namespace; by address."""
        from coldframe.windows.controlarea import control_areas  # noqa: PLC0415 - which is written in terms of these

        return control_areas(self._guest, processes, named=named)

    def subsection_page(self, subsection: int, prototype_pte: int) -> SubsectionPage | None:
        """The file and offset of the page of `prototype_pte` in the `_SUBSECTION` at `subsection`.

        None where the subsection cannot be read or does not hold that PTE.
        """
        try:
            record = self._guest.struct("_SUBSECTION", subsection)
            index, rest = divmod(prototype_pte - record.integer("SubsectionBase"), self._pte_size)
            if rest or not 0 <= index < record.integer("PtesInSubsection"):
                return None
            offset = self.start_in_file(record) + index * PAGE_SIZE
        except UnreadableMemoryError:
            return None
        return SubsectionPage(subsection, self.file_of_subsection(record), offset)

    def extent(self, subsection: Struct) -> tuple[int, int]:
        """Where in its file a subsection begins, and how many bytes of the file it has.

        The number of full sectors, and the bytes in the last one, are in the same units as the start (WRK, mm/mi.h:
        `MiEndingOffset`).
        """
        unit = _SECTOR if self.is_image(subsection.pointer("ControlArea").struct()) else PAGE_SIZE
        length = subsection.integer("NumberOfFullSectors") * unit
        return self.start_in_file(subsection), length + subsection.integer("u.SubsectionFlags.SectorEndOffset")

    def start_in_file(self, subsection: Struct) -> int:
        """Where in its file a subsection begins, in bytes.

        An image's `StartingSector` counts 512-byte sectors, a data file's 4 KB pages, with ten more bits in
        `StartingSector4132` (WRK, mm/mi.h: `MiStartingOffset`, `Mi4KStartFromSubsection`).
        """
        sector = subsection.integer("StartingSector")
        if self.is_image(subsection.pointer("ControlArea").struct()):
            return sector * _SECTOR
        if subsection.has("u.SubsectionFlags.StartingSector4132"):
            sector |= subsection.integer("u.SubsectionFlags.StartingSector4132") << 32
        return sector * PAGE_SIZE

    def is_image(self, control_area: Struct) -> bool:
        """Whether a control area is of an image."""
        return bool(control_area.integer("u.Flags.Image"))

    def file_of_subsection(self, subsection: Struct) -> str | None:
        """The name of the file that a subsection maps; None where there is none, or it is not in RAM."""
        try:
            return self.file_of_control_area(subsection.pointer("ControlArea").struct("_CONTROL_AREA"))
        except UnreadableMemoryError:
            return None

    def file_of_control_area(self, control_area: Struct) -> str | None:
        """The name in the control area's FILE_OBJECT; None for a section backed by paging files, or out of RAM."""
        try:
            address = self.file_pointer(control_area)
            return self.file_name(address) if address else None
        except UnreadableMemoryError:
            return None

    def file_pointer(self, control_area: Struct) -> int:
        """The address of a control area's FILE_OBJECT, of which it has a fast reference; 0 where it has none."""
        pointer = control_area["FilePointer"]
        return pointer.reference if isinstance(pointer, Struct) else int(pointer)  # NT 5.2 has a plain pointer

    def file_name(self, file_object: int) -> str | None:
        r"""The name that the `_FILE_OBJECT` at that address gives (`\Windows\System32\ntdll.dll`), or None.

        A name that does not begin with a backslash is relative to RelatedFileObject.
        """
        parts: list[str] = []
        for _ in range(_LONGEST_RELATED_CHAIN):
            record = self._guest.struct("_FILE_OBJECT", file_object)
            name = record.struct("FileName").text
            parts.append(name)
            file_object = record.integer("RelatedFileObject")
            if name.startswith("\\") or not file_object:
                break
        return "\\".join(reversed([part.rstrip("\\") or part for part in parts if part])) or None

    def first_subsection(self, control_area: int) -> int:
        """The address of a control area's first subsection, which lies right behind it.

        Before Vista, one whose pages are each session's own, or are in ROM, is a `_LARGE_CONTROL_AREA` (WRK, mm/mi.h).
        """
        types = self._guest.types
        name = "_CONTROL_AREA"
        if "_LARGE_CONTROL_AREA" in types:
            flags = self._guest.struct(name, control_area).struct("u.Flags")
            if any(flags.has(flag) and flags.integer(flag) for flag in ("GlobalOnlyPerSession", "Rom")):
                name = "_LARGE_CONTROL_AREA"
        return control_area + types.size(name)

    def chain(self, subsection: int) -> Iterator[Struct]:
        """A subsection and those that follow it; ends at a loop."""
        seen: set[int] = set()
        while subsection and subsection not in seen and len(seen) < _MOST_SUBSECTIONS:
            seen.add(subsection)
            record = self._guest.struct("_SUBSECTION", subsection)
            yield record
            subsection = record.integer("NextSubsection")

    def prototype_pte(self, vad: Struct, index: int) -> int | None:
        """Kernel-virtual address of the prototype PTE of page `index` of the view that `vad` (an `_MMVAD`) describes.

        The array is contiguous up to LastContiguousPte; beyond, the `_SUBSECTION` chain is followed, from the
        subsection that holds FirstPrototypePte (a view need not begin with its file). None where there is none.
        """
        first, last = vad.integer("FirstPrototypePte"), vad.integer("LastContiguousPte")
        if not first:
            return None
        if first + index * self._pte_size <= last:
            return first + index * self._pte_size
        started = False
        for subsection in self.chain(self._subsection_of(vad)):
            base, count = subsection.integer("SubsectionBase"), subsection.integer("PtesInSubsection")
            if not started and base <= first < base + count * self._pte_size:
                index += (first - base) // self._pte_size
                started = True
            if started:
                if index < count:
                    return base + index * self._pte_size if base else None
                index -= count
        return None

    def prototype_runs(self, vad: Struct, count: int) -> Iterator[tuple[int, int, int]]:
        """Where `prototype_pte` finds the first `count` pages of a view, as runs of entries that stand side by side.

        Each is (index of the first page, kernel-virtual address of its prototype PTE, number of pages). Where the
        chain cannot be read the rest is left out.
        """
        first, last = vad.integer("FirstPrototypePte"), vad.integer("LastContiguousPte")
        if not first:
            return
        done = min((last - first) // self._pte_size + 1 if last >= first else 0, count)
        if done:
            yield 0, first, done
        position: int | None = None  # of the subsection's first page in the view
        try:
            for subsection in self.chain(self._subsection_of(vad) if done < count else 0):
                base, size = subsection.integer("SubsectionBase"), subsection.integer("PtesInSubsection")
                if position is None:
                    if not base <= first < base + size * self._pte_size:
                        continue
                    position = -((first - base) // self._pte_size)
                low, high = max(position, done), min(position + size, count)
                if base and low < high:
                    yield low, base + (low - position) * self._pte_size, high - low
                position += size
                if position >= count:
                    return
        except UnreadableMemoryError:
            return

    def _subsection_of(self, vad: Struct) -> int:
        if vad.has("Subsection"):
            return vad.integer("Subsection")
        control_area = vad.integer("ControlArea")  # NT 5.2
        return self.first_subsection(control_area) if control_area else 0

    def control_area_of_vad(self, vad: Struct) -> int:
        """The address of the control area that a view (an `_MMVAD`) is of; 0 where it has none."""
        if not vad.has("Subsection"):  # NT 5.2
            return vad.integer("ControlArea")
        subsection = vad.integer("Subsection")
        return self._guest.struct("_SUBSECTION", subsection).integer("ControlArea") if subsection else 0

    def file_of_vad(self, vad: Struct) -> str | None:
        """The file that a view (an `_MMVAD`) maps; None where there is none, or its name is not in RAM."""
        try:
            file_object = file_of_memory_area(self._guest, vad)
            if file_object:
                return self.file_name(file_object)
            subsection = self._subsection_of(vad)
            if not subsection:
                return None
            if vad.has("Subsection"):
                return self.file_of_subsection(self._guest.struct("_SUBSECTION", subsection))
            return self.file_of_control_area(vad.pointer("ControlArea").struct("_CONTROL_AREA"))
        except UnreadableMemoryError:
            return None
