"""A span of memory as a file: what takes a binary file takes an address space or physical memory then."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from coldframe.capabilities import ReadsMemory, WritesMemory, require
from coldframe.errors import UnreadableMemoryError, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_LONGEST = 1 << 24


class MemoryFile(io.RawIOBase):
    """The `size` bytes from `start` of `memory` (an address space, physical memory) as a binary file.

    Position 0 is `start`. Reading raises `UnreadableMemoryError` (an `OSError` it is not: a page has a state, see its
    reason) where nothing can be read at the position; where a page further on is missing, the bytes before it are
    returned, as `RawIOBase.read` may. Writing changes the guest; it raises `CapabilityError` where memory is read-only
    or not in RAM, and writes nothing behind the end. Put `io.BufferedReader` around it where reads are small.
    """

    def __init__(self, memory: ReadsMemory, start: int, size: int) -> None:
        if start < 0 or size < 0:
            raise UsageError(f"a span of memory has a start and a size from 0 up, not {start} and {size}")
        super().__init__()
        self._memory = memory
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """Whether the memory knows writing at all; a target may refuse it yet."""
        return isinstance(self._memory, WritesMemory)

    def tell(self) -> int:
        """The position, in bytes from the start of the span."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to `offset` from the start, the position or the end of the span; returns the position."""
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in origins:
            raise UsageError(f"expected whence 0, 1 or 2, found {whence}")
        if origins[whence] + offset < 0:
            raise UsageError(f"there is no position {origins[whence] + offset} in a file")
        self._position = origins[whence] + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` from the position on; returns how many bytes were read, 0 at the end."""
        with memoryview(buffer).cast("B") as out:
            size = max(0, min(len(out), self._size - self._position, _LONGEST))
            at = self._start + self._position
            try:
                data = self._memory.read(at, size)
            except UnreadableMemoryError as error:
                if not at < error.address < at + size:
                    raise
                data = self._memory.read(at, error.address - at)
            out[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: ReadableBuffer) -> int:
        """Put `data` at the position; returns how many bytes were written, fewer where the span ends."""
        memory = require(self._memory, WritesMemory, "writing")  # type: ignore[type-abstract]
        part = bytes(data)[: max(0, self._size - self._position)]
        memory.write(self._start + self._position, part)
        self._position += len(part)
        return len(part)
