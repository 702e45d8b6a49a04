"""Guest-physical memory: a sparse map of address ranges onto buffers or readers.

Knows nothing of files or of Windows. Addresses are guest-physical, in bytes; never "offset in the file".
A run whose bytes are a buffer (an mmap) is read without copying where the caller allows it (`view`); any other run
reads through its source (a process's memory, the gdbstub).

A list of processes needs no arrays, and numpy takes as long to load as all of coldframe: only methods that take or give
arrays load it.
"""

from __future__ import annotations

import itertools
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from coldframe.errors import CapabilityError, UnreadableMemoryError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coldframe.pagegrid import PageGrid

PAGE_SIZE = 4096

_FEW_RUNS = 8  # so many are looked at one by one
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_NO_WORDS = (0, 0, memoryview(b""))


class Source(Protocol):
    """Where the bytes of a run come from when they are not in a buffer. Offsets are within the source, in bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes, or raise `UnreadableMemoryError` (its address an offset) or `GuestGoneError`."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`, or raise `CapabilityError`."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """`size` bytes of guest-physical memory from `start`, found from `offset` in `backing`.

    `backing` is a buffer (one byte an element; writable if the guest's memory may be written) or a `Source`.
    """

    start: int
    size: int
    backing: memoryview | Source
    offset: int = 0

    @property
    def end(self) -> int:
        """The first address behind the run."""
        return self.start + self.size


class PhysicalMemory:
    """Guest-physical memory made of runs that do not overlap.

    Reads of holes raise `UnreadableMemoryError` with the hole's size. Thread-safe for reading; keeps no byte.
    """

    def __init__(self, runs: Iterable[Run], why_absent: Callable[[int], str] | None = None) -> None:
        """`why_absent` tells of an address in a hole why its memory is not here; "" where there is none at all."""
        self._why_absent = why_absent
        ordered = sorted((run for run in runs if run.size), key=lambda run: run.start)
        for before, after in itertools.pairwise(ordered):
            if after.start < before.end:
                raise ValueError(f"runs overlap: {before.start:#x}-{before.end:#x} and {after.start:#x}")
        for run in ordered:
            if isinstance(run.backing, memoryview) and run.offset + run.size > len(run.backing):
                raise ValueError(f"run {run.start:#x}-{run.end:#x} goes past the end of its buffer")
        self.runs: tuple[Run, ...] = tuple(ordered)
        self._starts = [run.start for run in ordered]
        # For the resolver, which reads where it read before: the run that u64 (u32) read last as (start, end, its bytes
        # as 64-bit (32-bit) words); `hot` likewise the run that `read` read last, as bytes. One tuple, so that threads
        # see it whole.
        self.words64 = self.words32 = self.hot = _NO_WORDS
        self._grid: PageGrid | None = None

    def __repr__(self) -> str:
        return f"<PhysicalMemory {len(self.runs)} runs, {self.size:#x} bytes>"

    @cached_property
    def _start_array(self) -> NDArray[np.uint64]:
        import numpy as np  # noqa: PLC0415 - slow to load

        return np.array(self._starts, dtype=np.uint64)

    @cached_property
    def _end_array(self) -> NDArray[np.uint64]:
        import numpy as np  # noqa: PLC0415 - slow to load

        return np.array([run.end for run in self.runs], dtype=np.uint64)

    @property
    def size(self) -> int:
        """How many bytes there are, holes not counted."""
        return sum(run.size for run in self.runs)

    @property
    def end(self) -> int:
        """The first address behind the last run; 0 where there is none."""
        return self.runs[-1].end if self.runs else 0

    def run_at(self, address: int) -> Run | None:
        """The run that holds `address`, or None in a hole."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        run = self.runs[index]
        return run if address < run.start + run.size else None

    def __contains__(self, address: int) -> bool:
        start, end, _ = self.words64
        return start <= address < end or self.run_at(address) is not None

    def _pieces(self, address: int, size: int) -> Iterator[tuple[Run, int, int]]:
        """Split a span into (run, offset in backing, length); raise in a hole."""
        if size < 0 or address < 0:
            raise ValueError(f"cannot read {size} bytes at {address}: neither may be negative")
        while size:
            run = self.run_at(address)
            if run is None:
                raise UnreadableMemoryError(
                    address,
                    min(size, self._hole_size(address, size)),
                    self.why_absent(address) or "no physical memory there",
                )
            length = min(size, run.end - address)
            yield run, run.offset + address - run.start, length
            address += length
            size -= length

    def why_absent(self, address: int) -> str:
        """Why memory that the guest has at `address` is not here (a dump left it out); "" where that is not known."""
        return "" if self._why_absent is None else self._why_absent(address)

    def _hole_size(self, address: int, size: int) -> int:
        index = bisect_right(self._starts, address)
        return self._starts[index] - address if index < len(self._starts) else size

    def read(self, address: int, size: int) -> bytes:
        """Return exactly `size` bytes at `address`; raises `UnreadableMemoryError` where part of it is a hole."""
        start, end, held = self.hot
        if start <= address and 0 <= size <= end - address:
            return held[address - start : address - start + size].tobytes()
        run = self.run_at(address)
        if run is not None and isinstance(run.backing, memoryview) and 0 <= size <= run.start + run.size - address:
            self.hot = run.start, run.end, run.backing[run.offset : run.offset + run.size]
            return self.hot[2][address - run.start : address - run.start + size].tobytes()
        done, parts = 0, []
        for run, offset, length in self._pieces(address, size):
            parts.append(_read_piece(run, offset, length, address + done))
            done += length
        return b"".join(parts)

    def __getitem__(self, key: slice) -> bytes:
        return self.read(*span_of(key))

    def __setitem__(self, key: slice, data: bytes) -> None:
        self.write(checked_start(key, data), data)

    def u64(self, address: int) -> int:
        """The little-endian 64-bit value at `address`: the resolver's inner read."""
        start, end, words = self.words64
        if start <= address < end and not address & 7:
            value: int = words[(address - start) >> 3]
            return value
        hot = self._words_at(address, 8)
        if hot is not None:
            self.words64 = hot
        return int(_U64.unpack(self.read(address, 8))[0])

    def u32(self, address: int) -> int:
        """The little-endian 32-bit value at `address`."""
        start, end, words = self.words32
        if start <= address < end and not address & 3:
            value: int = words[(address - start) >> 2]
            return value
        hot = self._words_at(address, 4)
        if hot is not None:
            self.words32 = hot
        return int(_U32.unpack(self.read(address, 4))[0])

    def _words_at(self, address: int, width: Literal[4, 8]) -> tuple[int, int, memoryview] | None:
        """The run at `address` as words; None where it is no buffer, or its start no multiple of a word."""
        run = self.run_at(address)
        if run is None or not isinstance(run.backing, memoryview) or run.start % width or sys.byteorder != "little":
            return None
        size = run.size // width * width
        words = run.backing[run.offset : run.offset + size].cast("Q" if width == 8 else "I")
        return run.start, run.start + size, words

    @property
    def grid(self) -> PageGrid:
        """The pages of the largest buffer as rows of an array."""
        if self._grid is None:
            from coldframe.pagegrid import PageGrid  # noqa: PLC0415 - loads numpy

            self._grid = PageGrid(self.runs)
        return self._grid

    def release(self) -> None:
        """Let go of the views kept for speed, so that the owner of a buffer can close it. The memory stays usable."""
        self.words64 = self.words32 = self.hot = _NO_WORDS
        self._grid = None

    def buffer(self, address: int, size: int) -> memoryview:
        """As `view`, as a buffer, one byte an element."""
        run = self.run_at(address)
        if run is not None and isinstance(run.backing, memoryview) and address + size <= run.end:
            start = run.offset + address - run.start
            return run.backing[start : start + size]
        return memoryview(self.read(address, size))

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes at `address` as an array (size,) of uint8: without a copy where one buffer holds them all.

        A view of a live guest's memory changes as the guest runs.
        """
        import numpy as np  # noqa: PLC0415 - slow to load

        run = self.run_at(address)
        if run is not None and isinstance(run.backing, memoryview) and address + size <= run.end:
            return np.frombuffer(run.backing, dtype=np.uint8, count=size, offset=run.offset + address - run.start)
        return np.frombuffer(self.read(address, size), dtype=np.uint8)

    def read_many(self, addresses: NDArray[np.uint64], size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read `size` bytes at each of n addresses.

        Returns the bytes, shape (n, size), and a mask (n,) that says which could be read; the rows of the others are
        zero.
        """
        import numpy as np  # noqa: PLC0415 - slow to load

        if len(addresses) > 8 and size:
            blocks = self._blocks(addresses, size)
            if blocks is not None:
                return blocks, np.ones(len(addresses), dtype=np.bool_)
        out = np.zeros((len(addresses), size), dtype=np.uint8)
        readable = np.zeros(len(addresses), dtype=np.bool_)
        if not self.runs or not len(addresses):
            return out, readable
        index = np.searchsorted(self._start_array, addresses, side="right").astype(np.int64) - 1
        ends = self._end_array[np.maximum(index, 0)]
        started = (index >= 0) & (addresses < ends)
        inside = started & (ends >= np.uint64(size)) & (addresses <= ends - np.uint64(size))
        for number in np.unique(index[inside]):
            run = self.runs[number]
            rows = np.nonzero(inside & (index == number))[0]
            offsets = (addresses[rows] - np.uint64(run.start)).astype(np.int64)
            if isinstance(run.backing, memoryview):
                base = np.frombuffer(run.backing, dtype=np.uint8, count=run.size, offset=run.offset)
                out[rows] = np.lib.stride_tricks.sliding_window_view(base, size)[offsets]
                readable[rows] = True
                continue
            for row, offset in zip(rows, offsets, strict=True):
                try:
                    out[row] = np.frombuffer(run.backing.read(run.offset + int(offset), size), dtype=np.uint8)
                except UnreadableMemoryError:
                    continue
                readable[row] = True
        for row in np.nonzero(started & ~inside)[0]:  # spans that cross from one run into the next
            try:
                out[row] = np.frombuffer(self.read(int(addresses[row]), size), dtype=np.uint8)
            except UnreadableMemoryError:
                continue
            readable[row] = True
        return out, readable

    def _blocks(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.uint8] | None:
        """As `read_many`, in one gather, where one buffer holds all of it at multiples of `size`; else None."""
        import numpy as np  # noqa: PLC0415 - slow to load

        lowest, highest = int(addresses.min()), int(addresses.max())
        run = self.run_at(lowest)
        if run is None or highest + size > run.end or not isinstance(run.backing, memoryview):
            return None
        if size & (size - 1) or run.start % size or (addresses & np.uint64(size - 1)).any():
            return None
        count = run.size // size
        base = np.frombuffer(run.backing, dtype=np.uint8, count=count * size, offset=run.offset).reshape(count, size)
        index = ((addresses - np.uint64(run.start)) >> np.uint64(size.bit_length() - 1)).view(np.int64)
        if size == 8:  # as words: many times as fast as rows of eight bytes
            return base.view(np.uint64).ravel().take(index, mode="clip").view(np.uint8).reshape(-1, 8)
        out = np.empty((len(addresses), size), dtype=np.uint8)
        return base.take(index, axis=0, out=out, mode="clip")

    def contains_many(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of n addresses have memory, shape (n,)."""
        return self.contains_spans(addresses, 1)

    def contains_spans(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
        """At which of n addresses `size` bytes lie within one run, shape (n,)."""
        import numpy as np  # noqa: PLC0415 - slow to load

        if not self.runs:
            return np.zeros(len(addresses), dtype=np.bool_)
        if len(addresses) and 0 < size <= 1 << 63:  # nearly always: all of them in one run
            run = self.run_at(int(addresses.min()))
            if run is not None and int(addresses.max()) + size <= run.end:
                return np.ones(len(addresses), dtype=np.bool_)
        if len(self.runs) <= _FEW_RUNS and size > 0:
            inside = np.zeros(len(addresses), dtype=np.bool_)
            for run in self.runs:
                if run.size >= size:  # below the start, the difference is a very large number
                    inside |= addresses - np.uint64(run.start) <= np.uint64(run.size - size)
            return inside
        index = np.searchsorted(self._start_array, addresses, side="right").astype(np.int64) - 1
        ends = self._end_array[np.maximum(index, 0)]
        found: NDArray[np.bool_] = (
            (index >= 0) & (addresses < ends) & (ends >= np.uint64(size)) & (addresses <= ends - np.uint64(size))
        )
        return found

    def check_writable(self, address: int, size: int) -> None:
        """Raise what `write` of `size` bytes at `address` would raise before it writes anything."""
        for run, _, _ in self._pieces(address, size):
            if isinstance(run.backing, memoryview) and run.backing.readonly:
                raise CapabilityError(f"cannot write physical memory at {address:#x}: this target is read-only")

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`; raises `CapabilityError` where memory is read-only; on error nothing is written.

        Where a run's source itself fails at the write (the guest ended), earlier runs of the span may have been
        written.
        """
        self.check_writable(address, len(data))
        done = 0
        for run, offset, length in list(self._pieces(address, len(data))):
            part = data[done : done + length]
            if isinstance(run.backing, memoryview):
                run.backing[offset : offset + length] = part
            else:
                run.backing.write(offset, part)
            done += length


def span_of(key: slice) -> tuple[int, int]:
    """Start and size of `memory[0x1000:0x2000]`; raises `ValueError` for one without start or end, or with a step."""
    if not isinstance(key, slice) or key.start is None or key.stop is None or key.step not in (None, 1):
        raise ValueError("memory is sliced with a start and an end: memory[0x1000:0x2000]")
    return key.start, max(key.stop - key.start, 0)


def checked_start(key: slice, data: bytes) -> int:
    """The start of a slice that `data` shall fill; raises `UsageError` where it is longer or shorter."""
    start, size = span_of(key)
    if size != len(data):
        raise UsageError(f"{size:#x} bytes of memory are not filled by {len(data):#x}")
    return start


def _read_piece(run: Run, offset: int, length: int, address: int) -> bytes:
    """`length` bytes from `offset` of the run's backing; an error speaks of the guest-physical `address` of these."""
    if isinstance(run.backing, memoryview):
        return bytes(run.backing[offset : offset + length])
    try:
        return run.backing.read(offset, length)
    except UnreadableMemoryError as error:
        into = error.address - offset if offset <= error.address < offset + length else 0
        raise UnreadableMemoryError(address + into, min(error.size, length - into), error.reason) from error
