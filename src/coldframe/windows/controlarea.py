r"""Sections that exist: control areas by every way that leads to them, with their files, sizes and subsections.

A control area is reached through the views in processes (VADs), through handles to section objects, through the section
object of a process's own image, and through the object manager's namespace (`\KnownDlls\ntdll.dll`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldframe.errors import NotFoundError, UnreadableMemoryError
from coldframe.symbols.model import BitField
from coldframe.windows.handle import HandleTable
from coldframe.windows.memoryarea import is_own_section
from coldframe.windows.objectpath import object_path
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest
    from coldframe.windows.process import Process

_FILE_OBJECT_MARKS = 3  # _SECTION.u1: RemoteImageFileObject, RemoteDataFileObject: then the pointer is to a FILE_OBJECT
_MOST_SHOWN = 1 << 12
_KINDS = (("PhysicalMemory", "physical"), ("Image", "image"), ("File", "data"))


@dataclass(frozen=True, slots=True)
class Subsection:
    """A subsection: its address, its first prototype PTE, how many, and where in the file it begins (None: no file)."""

    address: int
    first_pte: int
    pages: int
    file_offset: int | None


@dataclass(frozen=True, slots=True)
class ControlArea:
    """A section as the memory manager keeps it, at kernel-virtual `address`.

    `kind` is `image`, `data`, `paging-file` or `physical`; `flags` are the names of the bits of `_MMSECTION_FLAGS` that
    are set; `size` is in bytes, `views` how many the kernel counts. `objects` are the section objects that lead there,
    `names` those that have one; `pids` the processes that map it or hold it open.
    """

    address: int
    kind: str
    file: str | None
    size: int
    views: int
    flags: tuple[str, ...]
    subsections: tuple[Subsection, ...]
    objects: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)


class ControlAreas:
    """Gathers control areas; each is read once. What cannot be read is left out and noted in the guest's warnings."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._found: dict[int, ControlArea] = {}

    def all(self) -> list[ControlArea]:
        """What was gathered, by address."""
        return [self._found[address] for address in sorted(self._found)]

    def add_process(self, process: Process) -> None:
        """What a process maps, its own image, and the sections that it holds open."""
        for vad in process.vads:
            if not vad.private:
                try:
                    self._meet(self._guest.sections.control_area_of_vad(vad.struct), process.pid)
                except UnreadableMemoryError as error:
                    self._guest.warn(f"section of the VAD at {vad.address:#x}: {error}")
        for body in self._held(process):
            self._meet_object(body, process.pid)

    def add_named(self) -> None:
        """The sections in the object manager's namespace."""
        try:
            for found in self._guest.objects.directory():
                if found.type == "Section":
                    self._meet_object(found.address, None)
        except (NotFoundError, UnreadableMemoryError) as error:
            self._guest.warn(f"named sections: {error}")

    def _held(self, process: Process) -> Iterator[int]:
        """The bodies of the section objects of a process."""
        guest, seen = self._guest, process.eprocess
        if seen.has("SectionObject") and seen.integer("SectionObject") >= guest.kernel_start:
            yield seen.integer("SectionObject")
        table = seen.integer("ObjectTable")
        for handle in HandleTable(guest, table) if table else ():
            if handle.object.type == "Section":
                yield handle.object.address

    def _meet_object(self, body: int, pid: int | None) -> None:
        guest = self._guest
        try:
            area = self._meet(control_area_of_object(guest, body), pid)
        except UnreadableMemoryError as error:
            guest.warn(f"section object at {body:#x}: {error}")
            return
        if area is not None and body not in area.objects:
            area.objects.append(body)
            name = object_path(guest, body, "Section")
            if name is not None:
                area.names.append(name)

    def _meet(self, address: int, pid: int | None) -> ControlArea | None:
        if address < self._guest.kernel_start:
            return None
        area = self._found.get(address)
        if area is None:
            area = self._found[address] = read_control_area(self._guest, address)
        if pid is not None and pid not in area.pids:
            area.pids.append(pid)
        return area


def control_areas(guest: Guest, processes: Iterable[Process], *, named: bool) -> list[ControlArea]:
    """The control areas that `processes` map or hold open, and with `named` those of the namespace; by address."""
    found = ControlAreas(guest)
    for process in processes:
        found.add_process(process)
    if named:
        found.add_named()
    return found.all()


def control_area_of_object(guest: Guest, body: int) -> int:
    """The control area behind a section object; 0 where it is on another machine's or partition's file, or has none.

    10 and 11 have `_SECTION` with a pointer to it. `_SECTION_OBJECT` before tells of a `_SEGMENT_OBJECT`, but what is
    there is the `_SEGMENT` (WRK, mm/mi.h: SECTION), which names its control area first. ReactOS calls that `_SECTION`.
    """
    if guest.types.has_field("_SECTION", "u1"):
        pointer = guest.struct("_SECTION", body).integer("u1.ControlArea")
        return 0 if pointer & _FILE_OBJECT_MARKS else pointer
    section = guest.struct("_SECTION_OBJECT" if "_SECTION_OBJECT" in guest.types else "_SECTION", body)
    if is_own_section(guest, section):
        return 0
    segment = section.integer("Segment")
    return guest.struct("_SEGMENT", segment).integer("ControlArea") if segment >= guest.kernel_start else 0


def read_control_area(guest: Guest, address: int) -> ControlArea:
    """The control area at `address` as it stands; raises `UnreadableMemoryError`."""
    area = guest.struct("_CONTROL_AREA", address)
    flags = area.struct("u.Flags")
    is_set = tuple(name for name in _single_bits(guest, flags) if flags.integer(name))
    segment = area.integer("Segment")
    size = guest.struct("_SEGMENT", segment).integer("SizeOfSegment") if segment >= guest.kernel_start else 0
    subsections = () if "PhysicalMemory" in is_set else tuple(_subsections(guest, address, "File" in is_set))
    return ControlArea(
        address=address,
        kind=next((kind for flag, kind in _KINDS if flag in is_set), "paging-file"),
        file=guest.sections.file_of_control_area(area),
        size=size,
        views=area.integer("NumberOfMappedViews"),
        flags=is_set,
        subsections=subsections,
    )


def _single_bits(guest: Guest, flags: Struct) -> list[str]:
    """The names of the flags of one bit, in the order of the bits; fillers are none."""
    fields = guest.types.record(flags.type_name).fields.values()
    bits = [(f.type.position, f.name) for f in fields if isinstance(f.type, BitField) and f.type.length == 1]
    return [name for _, name in sorted(bits) if not name.lower().startswith(("filler", "spare", "unused"))]


def _subsections(guest: Guest, control_area: int, has_file: bool) -> Iterator[Subsection]:
    try:
        chain = guest.sections.chain(guest.sections.first_subsection(control_area))
        for record, _ in zip(chain, range(_MOST_SHOWN), strict=False):
            start = guest.sections.start_in_file(record) if has_file else None
            pages = record.integer("PtesInSubsection")
            yield Subsection(record.address, record.integer("SubsectionBase"), pages, start)
    except UnreadableMemoryError as error:
        guest.warn(f"subsections of the control area at {control_area:#x}: {error}")
