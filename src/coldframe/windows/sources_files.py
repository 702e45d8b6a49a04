r"""Pages that are still in a file: prototype PTE in subsection format -> `_SUBSECTION` -> `_CONTROL_AREA` -> file.

Of a data file the pages are the file's bytes, zeros behind its end. Of an image they are relocated for the base that
its segment has, and zero beyond each section's raw data. Where the file's own pages are in RAM too, because the cache
or a mapping of the file as data has them (both do so through its data control area), RAM is the truth: what was
written there may not have reached the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldframe.disk import NtfsFile
from coldframe.errors import ColdframeError, FormatError, NotFoundError, TypeNotFoundError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.paging.formats import PAGE_MASK, VALID
from coldframe.paging.swizzle import unswizzle
from coldframe.windows.fileobject import FileObject
from coldframe.windows.sources_relocations import ImageHeader, Relocations
from coldframe.windows.sources_volumes import GuestVolumes

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_HEADERS = 4096  # bytes of an image file that its headers are looked for in
_MOST_HEADERS = 1 << 16
_ALLOCATION = 1 << 16
_MOST_PTES = 1 << 32
_MOST_LOOKED_AT, _MOST_COMPARED = 1024, 4  # pages of an image, to tell whether the file is the one that was mapped


class DataPages:
    """The pages of a file that its data control area has in RAM."""

    def __init__(self, guest: Guest, control_area: int) -> None:
        self._guest = guest
        self._control_area = control_area
        self._parts: list[tuple[int, int, int]] = []  # first page of the file, number, address of the first PTE
        first = guest.sections.first_subsection(control_area)
        at = 0
        try:
            for subsection in guest.sections.chain(first):
                count = subsection.integer("PtesInSubsection")
                base = subsection.integer("SubsectionBase")
                if base >= guest.kernel_start:
                    self._parts.append((at, count, base))
                at += count
        except UnreadableMemoryError as error:
            guest.warn(f"control area {control_area:#x}: {error}")

    def page(self, number: int) -> bytes | None:
        """The 4096 bytes of page `number` of the file, where RAM has them."""
        for first, count, base in self._parts:
            if first <= number < first + count:
                return page_behind(self._guest, base + (number - first) * self._guest.layout.entry_size)
        return None


def page_behind(guest: Guest, prototype_pte: int) -> bytes | None:
    """The 4096 bytes of the page that the prototype PTE at that address has in RAM, valid or in transition; or None."""
    layout, size = guest.layout, guest.layout.entry_size
    try:
        stored = int.from_bytes(guest.memory.read(prototype_pte, size), "little")
        if stored & VALID:
            return guest.physical.read(stored & layout.hardware_frame & ~PAGE_MASK, PAGE_SIZE)
        value = unswizzle(stored, guest.invalid_pte_mask, layout.swizzle_bit)
        if layout.is_transition(value):
            return guest.physical.read(value & layout.transition_frame, PAGE_SIZE)
    except UnreadableMemoryError:
        pass
    return None


@dataclass
class SectionFile:
    """A file that a control area maps. `path` is the name on its volume, `letter` the volume's."""

    file: NtfsFile
    path: str
    relocations: Relocations | None
    first_pte: int
    cached: DataPages | None

    def read(self, offset: int, size: int) -> bytes:
        """The file's bytes, from RAM where that has them, else from the disk; zeros behind its end."""
        return self.read_from(offset, size)[0]

    def read_from(self, offset: int, size: int) -> tuple[bytes, bool]:
        """Those bytes, and whether RAM had some of them."""
        if self.cached is None:
            return self.file.read(offset, size).ljust(size, b"\0"), False
        out, from_ram = bytearray(), False
        while len(out) < size:
            at = offset + len(out)
            length = min(size - len(out), PAGE_SIZE - at % PAGE_SIZE)
            held = self.cached.page(at // PAGE_SIZE)
            if held is None:
                out += self.file.read(at, length).ljust(length, b"\0")
            else:
                out += held[at % PAGE_SIZE :][:length]
                from_ram = True
        return bytes(out), from_ram


@dataclass(frozen=True)
class _Place:
    """A subsection: its file, where it begins in it, how many bytes of it there are, its first prototype PTE."""

    section: SectionFile
    start: int
    length: int
    base: int
    count: int


class FileSource:
    """Pages of the files that the guest's sections map."""

    def __init__(self, guest: Guest, volumes: GuestVolumes) -> None:
        self._guest = guest
        self._volumes = volumes
        self._pte = guest.layout.entry_size
        self._sections: dict[int, tuple[tuple[object, ...], SectionFile | ColdframeError]] = {}
        self._places: dict[int, _Place | ColdframeError] = {}
        self._files: dict[tuple[str, str], NtfsFile] = {}

    def renew(self) -> None:
        """Drop what the guest or its disk may say otherwise by now."""
        self._places.clear()
        for key, file in list(self._files.items()):
            if not file.current():
                del self._files[key]
        kept = {id(file) for file in self._files.values()}
        for area, (_, held) in list(self._sections.items()):
            if isinstance(held, ColdframeError) or held.cached is not None or id(held.file) not in kept:
                del self._sections[area]

    # From the subsection to the file

    def _place(self, subsection: int) -> _Place:
        held = self._places.get(subsection)
        if held is None:
            try:
                held = self._find(subsection)
            except ColdframeError as error:
                held = error
            self._places[subsection] = held
        if isinstance(held, ColdframeError):
            raise held
        return held

    def _find(self, subsection: int) -> _Place:
        sections = self._guest.sections
        record = self._guest.struct("_SUBSECTION", subsection)
        section = self._section(record.integer("ControlArea"))
        start, length = sections.extent(record)
        return _Place(
            section,
            start,
            length,
            record.integer("SubsectionBase"),
            min(record.integer("PtesInSubsection"), _MOST_PTES),
        )

    def _section(self, control_area: int) -> SectionFile:
        guest = self._guest
        area = guest.struct("_CONTROL_AREA", control_area)
        file_object = guest.sections.file_pointer(area)
        if file_object < guest.kernel_start:
            raise NotFoundError("file of control area", f"{control_area:#x}", hint="it is backed by paging files")
        is_image = guest.sections.is_image(area)
        segment = area.integer("Segment")
        proof = (file_object, is_image, segment)
        held = self._sections.get(control_area)
        if held is None or held[0] != proof:
            try:
                found: SectionFile | ColdframeError = self._open(FileObject(guest, file_object), segment, is_image)
            except ColdframeError as error:
                found = error
            held = self._sections[control_area] = (proof, found)
        if isinstance(held[1], ColdframeError):
            raise held[1]
        return held[1]

    def _open(self, of: FileObject, segment: int, is_image: bool) -> SectionFile:
        path = of.name
        if not path:
            raise NotFoundError("name of the file object at", f"{of.address:#x}", hint="it is not in RAM")
        mounted = self._volumes.of(of.volume)
        key = (mounted.ntfs.name, path)
        if key not in self._files:
            try:
                self._files[key] = mounted.ntfs.open(path)
            except NotFoundError as error:
                raise FormatError(
                    f"{mounted.letter}{path} is not on the disk: deleted or renamed, or not yet written there ({error})"
                ) from None
        file = self._files[key]
        valid = of.valid_length
        if valid is not None:
            file.valid = max(file.valid, min(valid, file.size))
        if not is_image:
            return SectionFile(file, path, None, 0, None)
        data = of.control_area("Data")
        cached = DataPages(self._guest, data) if data else None
        first_pte = self._guest.struct("_SEGMENT", segment).integer("PrototypePte")
        section = SectionFile(file, path, None, first_pte, cached)
        section.relocations = self._relocations(section, segment, f"{mounted.letter}{path}")
        return section

    # Images

    def _relocations(self, section: SectionFile, segment: int, name: str) -> Relocations:
        """The relocations for the segment's base; raises `FormatError` where the file on the disk is another image."""
        try:
            header = ImageHeader.parse(section.read(0, _HEADERS))
            if len(header.sections) * 40 + header.base_at > _HEADERS - 256:
                header = ImageHeader.parse(section.read(0, _MOST_HEADERS))
        except FormatError as error:
            raise FormatError(f"{name} on the disk is another file than the image in RAM: {error}") from None
        record = self._guest.struct("_SEGMENT", segment)
        base = record.integer("BasedAddress")
        difference = self._difference(header, section.first_pte, segment, base)
        if difference:
            raise FormatError(f"{name} on the disk is not the image in RAM, it was replaced: {difference}")
        if base % _ALLOCATION:
            raise FormatError(f"{name}: the image's base in its segment, {base:#x}, is none")
        try:
            relocations = Relocations(header, base, section.read)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from None
        if difference := self._other_pages(relocations, section.first_pte):
            raise FormatError(f"{name} on the disk is not the image in RAM, it was replaced: {difference}")
        return relocations

    def _other_pages(self, relocations: Relocations, first_pte: int) -> str:
        """Whether the first pages of the image that are in RAM are all others than those made from the file.

        Nobody writes to the pages behind an image's prototype PTEs, but for a debugger's int3 in shared code: one that
        is the same will do.
        """
        differing = ""
        compared = 0
        for number in range(min(-(-relocations.header.size // PAGE_SIZE), _MOST_LOOKED_AT)):
            held = page_behind(self._guest, first_pte + number * self._pte)
            if held is None:
                continue
            made = np.frombuffer(relocations.at_rva(number * PAGE_SIZE, PAGE_SIZE), np.uint8).copy()
            relocations.apply(number * PAGE_SIZE, made)
            if made.tobytes() == held:
                return ""
            differing = differing or f"its page at {number * PAGE_SIZE:#x} differs from the one in RAM"
            compared += 1
            if compared == _MOST_COMPARED:
                break
        return differing

    def _difference(self, header: ImageHeader, first_pte: int, segment: int, base: int) -> str:
        """How the file differs from what the kernel knows of the image: its first page, else what the segment keeps."""
        guest = self._guest
        try:
            first = page_behind(guest, first_pte)
            if first is not None:
                return header.difference(ImageHeader.parse(first))
            record = guest.struct("_SEGMENT", segment)
            pages = record.integer("TotalNumberOfPtes")
            if pages != -(-header.size // PAGE_SIZE):
                return f"it has {-(-header.size // PAGE_SIZE)} pages, the image in RAM {pages}"
            known = guest.struct("_MI_SECTION_IMAGE_INFORMATION", record.integer("u2.ImageInformation"))
            told = known.struct("ExportedImageInformation")
            if told.has("CheckSum") and told.integer("CheckSum") != header.checksum:
                return f"its checksum is {header.checksum:#x}, the image's {told.integer('CheckSum'):#x}"
            entry = told.integer("TransferAddress") - base
            if entry not in (header.entry, -base):
                return f"its entry point is at {header.entry:#x}, the image's at {entry:#x}"
        except (UnreadableMemoryError, TypeNotFoundError, FormatError):
            return ""
        return ""

    # Pages

    def supplies(self, subsection: NDArray[np.uint64], pte: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Of which pages there are bytes, shape (n,)."""
        done = np.zeros(len(subsection), np.bool_)
        for address in np.unique(subsection).tolist():
            try:
                place = self._place(address)
            except ColdframeError:
                continue
            rows = np.flatnonzero(subsection == np.uint64(address))
            done[rows] = self._index(place, pte[rows]) >= 0
        return done

    def _index(self, place: _Place, pte: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Which page of its subsection each prototype PTE is; -1 for one that is not of it."""
        index: NDArray[np.int64] = (pte - np.uint64(place.base)).astype(np.int64)
        fine = (index >= 0) & (index % self._pte == 0) & (index // self._pte < place.count)
        return np.where(fine, index // self._pte, -1)

    def read_pages(
        self,
        subsection: NDArray[np.uint64],
        pte: NDArray[np.uint64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Put page i into row `rows[i]` of `out`; returns which were read."""
        done = np.zeros(len(subsection), np.bool_)
        for address in np.unique(subsection).tolist():
            try:
                place = self._place(address)
            except ColdframeError:
                continue
            mine = np.flatnonzero(subsection == np.uint64(address))
            index = self._index(place, pte[mine])
            mine, index = mine[index >= 0], index[index >= 0]
            done[mine] = self._read(place, index, out, rows[mine])
            self._relocate(place.section, pte[mine], out, rows[mine], done[mine])
        return done

    def _read(
        self, place: _Place, index: NDArray[np.int64], out: NDArray[np.uint8], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """The file's bytes of pages of a subsection; zeros behind the subsection's and the file's end."""
        section = place.section
        offset = place.start + index * PAGE_SIZE
        end = min(place.start + place.length, section.file.valid)
        done = np.zeros(len(index), np.bool_)
        whole = offset + PAGE_SIZE <= end if section.cached is None else done
        inside = np.flatnonzero(whole)
        done[inside] = section.file.read_pages(offset[inside].astype(np.uint64), out, rows[inside])
        for number in np.flatnonzero(~done).tolist():
            at = int(offset[number])
            length = max(0, min(PAGE_SIZE, place.start + place.length - at))
            try:
                data = section.read(at, length).ljust(PAGE_SIZE, b"\0")
            except FormatError:
                continue
            out[rows[number]] = np.frombuffer(data, np.uint8)
            done[number] = True
        return done

    def _relocate(
        self,
        section: SectionFile,
        pte: NDArray[np.uint64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
        done: NDArray[np.bool_],
    ) -> None:
        if section.relocations is None:
            return
        rva = (pte - np.uint64(section.first_pte)).astype(np.int64) // self._pte * PAGE_SIZE
        for number in np.flatnonzero(done).tolist():
            section.relocations.apply(int(rva[number]), out[rows[number]])

    # Words

    def explain(self, subsection: int, pte: int) -> tuple[str, str]:
        r"""Where the page's bytes come from (`file:\Windows\a.dll@0x400 relocated`), or why there are none."""
        try:
            place = self._place(subsection)
            index = int(self._index(place, np.array([pte], np.uint64))[0])
            if index < 0:
                return "", f"the prototype PTE at {pte:#x} is not of the subsection at {subsection:#x}"
            section = place.section
            at = place.start + index * PAGE_SIZE
            _, from_ram = section.read_from(at, max(0, min(PAGE_SIZE, place.start + place.length - at)))
            rva = (pte - section.first_pte) // self._pte * PAGE_SIZE
            relocated = section.relocations is not None and section.relocations.touches(rva)
        except ColdframeError as error:
            return "", str(error)
        words = (f"file:{section.path}@{at:#x}", "relocated" * relocated, "cached" * from_ram)
        return " ".join(filter(None, words)), ""
