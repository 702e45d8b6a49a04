"""Pages out of paging files: a file that the user gives, or the one on the guest's own disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldframe.disk import CopiedFile, FileBlocks, NtfsFile
from coldframe.errors import ColdframeError, FormatError, NotFoundError, UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.windows.fileobject import FileObject
from coldframe.windows.pagingfile import PagingFile
from coldframe.windows.sources_volumes import GuestVolumes

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

_LETTER = re.compile(r"\\\?\?\\([A-Z]:)", re.IGNORECASE)
_DOS_PREFIXES = ("\\??\\", "\\DosDevices\\", "\\GLOBAL??\\")


@dataclass
class OpenPagingFile:
    """A paging file that can be read; `name` as provenance has it (`disk:C:\\pagefile.sys`)."""

    file: NtfsFile | CopiedFile
    name: str


class PagingFileSource:
    """The paging files of a guest by number. `volumes` is None where no disk is given."""

    def __init__(self, guest: Guest, given: Mapping[int, Path], volumes: GuestVolumes | None) -> None:
        self._guest = guest
        self._volumes = volumes
        self._open: dict[int, OpenPagingFile | ColdframeError] = {
            number: OpenPagingFile(CopiedFile(FileBlocks(path)), f"pagefile:{path.name}")
            for number, path in given.items()
        }
        self._given = frozenset(given)

    def renew(self) -> None:
        """Drop what the disk may say otherwise by now."""
        for number, held in list(self._open.items()):
            if number in self._given:
                continue
            if isinstance(held, ColdframeError) or not (isinstance(held.file, NtfsFile) and held.file.current()):
                del self._open[number]

    def close(self) -> None:
        """Close the files that were given."""
        for number in self._given:
            held = self._open.pop(number, None)
            if isinstance(held, OpenPagingFile) and isinstance(held.file, CopiedFile):
                held.file.blocks.close()

    def file(self, number: int) -> OpenPagingFile | None:
        """The paging file of that number; None where nothing was given to read it from. Raises what stops it."""
        held = self._open.get(number)
        if held is None:
            if self._volumes is None:
                return None
            try:
                held = self._on_disk(number, self._volumes)
            except ColdframeError as error:
                held = error
            self._open[number] = held
        if isinstance(held, ColdframeError):
            raise held
        return held

    def _on_disk(self, number: int, volumes: GuestVolumes) -> OpenPagingFile:
        found = next((each for each in self._guest.paging_files if each.number == number), None)
        if found is None:
            raise NotFoundError("paging file", str(number), hint="the kernel lists none of that number")
        if found.is_store or not found.file_object:
            raise FormatError(f"paging file {number} is no file but the compressed store")
        mounted = volumes.of(FileObject(self._guest, found.file_object).volume)
        if not mounted.has_letter and (letter := _LETTER.match(found.name or "")):
            mounted.letter = letter[1]
        path = self._path(found)
        file = mounted.ntfs.open(path)
        if file.allocated < found.size:
            self._guest.warn(
                f"{file.name} has {file.allocated:#x} bytes on the disk, paging file {number} {found.size:#x}"
            )
        return OpenPagingFile(file, f"disk:{mounted.letter}{path}")

    def _path(self, found: PagingFile) -> str:
        r"""The file's path on its volume: from its FILE_OBJECT, else from PageFileName (`\??\C:\pagefile.sys`)."""
        try:
            own = self._guest.sections.file_name(found.file_object)
        except UnreadableMemoryError:
            own = None
        name = own or found.name
        if not name:
            raise NotFoundError("name of paging file", str(found.number), hint="it is not in RAM")
        for prefix in _DOS_PREFIXES:
            if name.startswith(prefix):
                name = name[len(prefix) :].partition("\\")[2]
        return name if name.startswith("\\") else "\\" + name

    def supplies(self, number: NDArray[np.uint8], offset: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the pages at (number, offset) lie within a file that can be read, shape (n,)."""
        return self._each(number, lambda file, rows: file.has_pages(offset[rows]))

    def read_pages(
        self, number: NDArray[np.uint8], offset: NDArray[np.uint64], out: NDArray[np.uint8], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Put page i into row `rows[i]` of `out`; returns which were read."""
        return self._each(number, lambda file, some: file.read_pages(offset[some], out, rows[some]))

    def read_page(self, number: int, offset: int) -> bytes | None:
        """One page; None where it cannot be read."""
        try:
            held = self.file(number)
            if held is None or offset + PAGE_SIZE > held.file.allocated:
                return None
            return held.file.raw(offset, PAGE_SIZE)
        except ColdframeError:
            return None

    def _each(
        self,
        number: NDArray[np.uint8],
        ask: Callable[[NtfsFile | CopiedFile, NDArray[np.int64]], NDArray[np.bool_]],
    ) -> NDArray[np.bool_]:
        done = np.zeros(len(number), np.bool_)
        for each in np.unique(number).tolist():
            try:
                held = self.file(each)
            except ColdframeError:
                continue
            if held is not None:
                rows = np.flatnonzero(number == each)
                done[rows] = ask(held.file, rows)
        return done

    def explain(self, number: int, offset: int) -> tuple[str, str]:
        r"""Where that page's bytes come from (`disk:C:\pagefile.sys@0x1a3000`), or why there are none.

        Both are empty where nothing was given to read the paging file from.
        """
        try:
            held = self.file(number)
        except ColdframeError as error:
            return "", f"page is in paging file {number} at {offset:#x}: {error}"
        if held is None:
            return "", ""
        if held.file.has_pages(np.array([offset], np.uint64))[0]:
            return f"{held.name}@{offset:#x}", ""
        ends = f"{held.file.name} ends at {held.file.allocated:#x}: it is another, or has grown since"
        return "", f"page is in paging file {number} at {offset:#x}, {ends}"
