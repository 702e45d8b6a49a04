"""Bytes of a disk, a volume or a plain file, however they are had, and reading thousands of pages of it at once."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError, UsageError

PAGE = 4096
GAP = 48 << 10
"""Bytes: pages on the disk with no more than this between them are read in one run; a request costs more than that."""
LONGEST_RUN = 1 << 20

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]


class Blocks(ABC):
    """`size` bytes that are read and never written; `name` is for people. For one thread at a time."""

    name: str
    size: int

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; raises `FormatError` where they cannot be had."""

    def read_runs(self, runs: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each (offset, size), in that order."""
        for offset, size in runs:
            yield self.read(offset, size)

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Let go of what was opened for it."""

    def check(self, offset: int, size: int) -> None:
        """Raise `FormatError` where the bytes are not all there."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(f"{self.name}: {size:#x} bytes at {offset:#x} are asked for, it has {self.size:#x}")


class FileBlocks(Blocks):
    """A plain file: a raw disk, or a paging file that was copied out of its volume."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot open {path}: {error.strerror}") from None
        self.size = os.lseek(self._file, 0, os.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        """See `Blocks`."""
        self.check(offset, size)
        try:
            data = os.pread(self._file, size, offset)
        except OSError as error:
            raise FormatError(f"{self.name}: cannot read at {offset:#x}: {error.strerror}") from None
        if len(data) != size:
            raise FormatError(f"{self.name}: ends at {offset + len(data):#x}, while it is read")
        return data

    def close(self) -> None:
        """See `Blocks`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Part(Blocks):
    """A part of other blocks: a partition."""

    def __init__(self, whole: Blocks, offset: int, size: int, name: str) -> None:
        whole.check(offset, size)
        self.whole, self.offset, self.size, self.name = whole, offset, size, name

    def read(self, offset: int, size: int) -> bytes:
        """See `Blocks`."""
        self.check(offset, size)
        return self.whole.read(self.offset + offset, size)

    def read_runs(self, runs: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """See `Blocks`."""
        for offset, size in runs:
            self.check(offset, size)
        return self.whole.read_runs([(self.offset + offset, size) for offset, size in runs])


class BlockStream(io.RawIOBase):
    """Blocks as the file-like object that dissect reads."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._blocks = blocks
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for files."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blocks.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """As for files: fewer bytes than asked for at the end."""
        left = max(0, self._blocks.size - self._at)
        size = left if size < 0 else min(size, left)
        data = self._blocks.read(self._at, size) if size else b""
        self._at += size
        return data


def read_pages(blocks: Blocks, places: U64, out: U8, rows: NDArray[np.int64]) -> Bool:
    """Put the 4096 bytes at each of `places` (n,) into row `rows[i]` of `out`; returns which were read, shape (n,).

    Reads in the order of the disk, neighbours together. What cannot be read leaves its rows as they are.
    """
    return _PageRead(places, out, rows).read(blocks)


class _PageRead:
    """Pages on their way from a disk into the rows of an array."""

    def __init__(self, places: U64, out: U8, rows: NDArray[np.int64]) -> None:
        self.places, self.out, self.rows = places, out, rows
        self.done = np.zeros(len(places), np.bool_)

    def read(self, blocks: Blocks) -> Bool:
        if blocks.size < PAGE:
            return self.done
        order = np.argsort(self.places, kind="stable")
        order = order[self.places[order] <= np.uint64(blocks.size - PAGE)]
        runs = list(_runs(self.places[order]))
        try:
            spans = [(start, size) for start, size, _, _ in runs]
            for (start, _, low, high), data in zip(runs, blocks.read_runs(spans), strict=True):
                self._scatter(data, start, order[low:high])
        except FormatError:
            self._one_by_one(blocks, order[~self.done[order]])
        return self.done

    def _scatter(self, data: bytes, start: int, which: NDArray[np.int64]) -> None:
        held = np.frombuffer(data, np.uint8)
        into = (self.places[which] - np.uint64(start)).astype(np.int64)
        if (into % PAGE == 0).all() and len(held) % PAGE == 0:
            self.out[self.rows[which]] = held.reshape(-1, PAGE)[into // PAGE]
        else:
            for at, row in zip(into.tolist(), self.rows[which].tolist(), strict=True):
                self.out[row] = held[at : at + PAGE]
        self.done[which] = True

    def _one_by_one(self, blocks: Blocks, which: NDArray[np.int64]) -> None:
        """After a damaged place: each page by itself, so that only those are lost which the damage touches."""
        for index in which.tolist():
            try:
                data = blocks.read(int(self.places[index]), PAGE)
            except FormatError:
                continue
            self.out[self.rows[index]] = np.frombuffer(data, np.uint8)
            self.done[index] = True


def _runs(places: U64) -> Iterator[tuple[int, int, int, int]]:
    """Sorted places as runs: offset and size of what to read, and the first and last (exclusive) that it holds."""
    if not len(places):
        return
    cut = np.diff(places) > np.uint64(PAGE + GAP)
    first = np.concatenate(([0], np.flatnonzero(cut) + 1)).tolist()
    for low, high in zip(first, [*first[1:], len(places)], strict=True):
        at = low
        while at < high:
            start = int(places[at])
            end = at + int(np.searchsorted(places[at:high], np.uint64(start + LONGEST_RUN - PAGE), side="right"))
            yield start, int(places[end - 1]) + PAGE - start, at, end
            at = end
