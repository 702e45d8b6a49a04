"""One file's bytes: where they lie on the volume, and reading many pages of them in the order of the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coldframe.disk.blocks import PAGE, U8, U64, Bool, FileBlocks, read_pages
from coldframe.disk.dissected import reading
from coldframe.errors import FormatError

if TYPE_CHECKING:
    from coldframe.disk.ntfs import NtfsVolume

Run: TypeAlias = "tuple[int | None, int]"
"""First cluster on the volume (None: a hole that reads as zeros) and how many."""


class NtfsFile:
    """A file, or a stream of one, as its record said when it was opened; see `current`.

    `size` and `valid` are in bytes: what lies beyond `valid` reads as zeros, whatever the disk has there. The guest
    may know more of `valid` than its disk does; who learns that sets it.
    """

    def __init__(
        self,
        volume: NtfsVolume,
        path: str,
        proof: tuple[tuple[int, bytes], ...],
        *,
        runs: list[Run] | None = None,
        size: int = 0,
        valid: int = 0,
        resident: bytes | None = None,
        compressed: Callable[[], BinaryIO] | None = None,
    ) -> None:
        self.volume = volume
        self.path = path
        self.name = f"{volume.name}: {path}"
        self.resident = resident
        self.size = len(resident) if resident is not None else max(size, 0)
        self.valid = self.size if resident is not None else min(max(valid, 0), self.size)
        self._proof = proof
        self._compressed = compressed
        self._stream: BinaryIO | None = None
        counts = np.array([count for _, count in runs or ()], np.int64) * volume.cluster
        self.allocated = int(counts.sum())
        self._start = np.concatenate(([0], np.cumsum(counts)))[:-1] if len(counts) else np.zeros(0, np.int64)
        self._end = self._start + counts
        self._place = np.array([-1 if first is None else first * volume.cluster for first, _ in runs or ()], np.int64)

    def current(self) -> bool:
        """Whether the file's records still are what they were when it was opened."""
        try:
            return all(self.volume.record_bytes(number) == data for number, data in self._proof)
        except FormatError:
            return False

    @property
    def pieces(self) -> int:
        """In how many pieces it lies on the disk."""
        return int((self._place >= 0).sum())

    def place(self, offset: int) -> int | None:
        """The byte on the volume that holds byte `offset`; None in a hole, and where it is not stored so."""
        at = int(np.searchsorted(self._end, offset, side="right"))
        if self.resident is not None or self._compressed or at >= len(self._end) or self._place[at] < 0:
            return None
        return int(self._place[at]) + offset - int(self._start[at])

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer at the end of the file; raises `FormatError` for a place that is damaged."""
        size = max(0, min(size, self.size - offset))
        known = max(0, min(size, self.valid - offset))
        return self.raw(offset, known) + bytes(size - known)

    def raw(self, offset: int, size: int) -> bytes:
        """What is stored there, whether it is valid or not: the way that the memory manager reads a paging file."""
        if self.resident is not None:
            return self.resident[offset : offset + size].ljust(size, b"\0")
        if self._compressed is not None:
            return self._unpacked(offset, size)
        out = []
        at = int(np.searchsorted(self._end, offset, side="right"))
        while size > 0:
            if at >= len(self._end):
                raise FormatError(f"{self.name} has {self.allocated:#x} bytes on the disk, not {offset + size:#x}")
            length = min(size, int(self._end[at]) - offset)
            if self._place[at] < 0:
                out.append(bytes(length))
            else:
                out.append(self.volume.blocks.read(int(self._place[at]) + offset - int(self._start[at]), length))
            offset, size, at = offset + length, size - length, at + 1
        return b"".join(out)

    def _unpacked(self, offset: int, size: int) -> bytes:
        with reading(f"{self.name}, compressed by NTFS"):
            if self._stream is None and self._compressed is not None:
                self._stream = self._compressed()
            assert self._stream is not None
            self._stream.seek(offset)
            return self._stream.read(size).ljust(size, b"\0")

    def has_pages(self, offsets: U64) -> Bool:
        """Which pages of 4096 bytes at `offsets` lie in what is allocated to the file, shape (n,)."""
        room = self.allocated if self.resident is None else self.size
        return offsets <= np.uint64(room - PAGE) if room >= PAGE else np.zeros(len(offsets), np.bool_)

    def read_pages(self, offsets: U64, out: U8, rows: NDArray[np.int64]) -> Bool:
        """Put the 4096 bytes at each of `offsets` (n,), as `raw` has them, into row `rows[i]` of `out`; returns which.

        Reads in the order of the disk. Pages beyond what is allocated to the file are not read.
        """
        done = np.zeros(len(offsets), np.bool_)
        fits = self.has_pages(offsets)
        if self.resident is not None or self._compressed is not None:
            return self._singly(offsets, np.flatnonzero(fits), out, rows, done)
        inside = np.flatnonzero(fits)
        where = offsets[inside].astype(np.int64)
        at = np.searchsorted(self._end, where, side="right")
        whole = where + PAGE <= self._end[at]
        hole = whole & (self._place[at] < 0)
        out[rows[inside[hole]]] = 0
        done[inside[hole]] = True
        plain = whole & ~hole
        places = (self._place[at] + where - self._start[at])[plain].astype(np.uint64)
        done[inside[plain]] = read_pages(self.volume.blocks, places, out, rows[inside[plain]])
        return self._singly(offsets, inside[~whole], out, rows, done)

    def _singly(self, offsets: U64, which: NDArray[np.int64], out: U8, rows: NDArray[np.int64], done: Bool) -> Bool:
        for index in which.tolist():
            try:
                out[rows[index]] = np.frombuffer(self.raw(int(offsets[index]), PAGE), np.uint8)
            except FormatError:
                continue
            done[index] = True
        return done


class CopiedFile:
    """A file that was copied out of its volume, as `NtfsFile` reads one."""

    def __init__(self, blocks: FileBlocks) -> None:
        self.blocks = blocks
        self.name = blocks.name
        self.size = self.valid = self.allocated = blocks.size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer at the end of the file."""
        return self.blocks.read(offset, max(0, min(size, self.size - offset)))

    def raw(self, offset: int, size: int) -> bytes:
        """As `NtfsFile.raw`."""
        return self.blocks.read(offset, size)

    def has_pages(self, offsets: U64) -> Bool:
        """As `NtfsFile.has_pages`."""
        fits: Bool = offsets <= np.uint64(self.size - PAGE) if self.size >= PAGE else np.zeros(len(offsets), np.bool_)
        return fits

    def read_pages(self, offsets: U64, out: U8, rows: NDArray[np.int64]) -> Bool:
        """As `NtfsFile.read_pages`."""
        return read_pages(self.blocks, offsets, out, rows)
