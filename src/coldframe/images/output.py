"""A file that is written whole or not at all: under a temporary name, and sparse where there are only zeros."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from coldframe.errors import ColdframeError
from coldframe.images.holes import data_spans
from coldframe.memory import PhysicalMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
"""Called with how many bytes of memory are done, and how many there are."""

_CHUNK = 4 << 20
_BLOCK = 16 << 10  # zeros are left out of the file in pieces of this size


class OutputError(ColdframeError):
    """A file that cannot be written: no space, no permission. Nothing is left of it."""


class Output:
    """The file that is going to be at `path`, open for writing; a context manager.

    Leaving the block renames it into place (replacing what was there), leaving it by an exception removes it. Bytes
    never written read as zeros. Only its owner may read it: memory holds secrets.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise OutputError(f"cannot write {path}: it is no ordinary file")
        try:
            self._descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None
        self._temporary = Path(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                os.ftruncate(self._descriptor, self.size)
                os.fsync(self._descriptor)
                self._temporary.replace(self.path)
        except OSError as failure:
            raise self._failed(failure) from None
        finally:
            os.close(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put all of `data` at `offset`."""
        rest = memoryview(data)
        self.size = max(self.size, offset + len(rest))
        try:
            while rest:
                done = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[done:], offset + done
        except OSError as error:
            raise self._failed(error) from None

    def put(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`, leaving out blocks of zeros: nothing may have been written there before."""
        import numpy as np  # noqa: PLC0415 - slow to load

        self.extend(offset + len(data))
        array = np.frombuffer(data, dtype=np.uint8)
        for first, last in _filled(array):
            self.write(offset + first, array[first:last].data)

    def extend(self, size: int) -> None:
        """Make the file at least `size` bytes long."""
        self.size = max(self.size, size)

    def copy(
        self, physical: PhysicalMemory, places: Iterable[tuple[int, int, int]], progress: Progress | None = None
    ) -> None:
        """Copy spans of memory, each (address, size, offset in the file); blocks of zeros become holes."""
        done, total = 0, physical.size
        for address, size, offset in places:
            self.extend(offset + size)
            for begin, length in data_spans(physical, address, size):
                for start in range(begin, begin + length, _CHUNK):
                    data = physical.view(start, min(_CHUNK, begin + length - start))
                    for first, last in _filled(data):
                        self.write(offset + start - address + first, data[first:last].data)
                    if progress is not None:
                        progress(done + start - address + len(data), total)
            done += size
            if progress is not None:
                progress(done, total)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {self.path}: {error.strerror}, at {self.size:#x} bytes; nothing is left of it"
        )


def _filled(data: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """The parts (first byte, end) of `data` that are not all zeros, in steps of a block."""
    import numpy as np  # noqa: PLC0415 - slow to load

    whole = len(data) // _BLOCK * _BLOCK
    words = data[:whole].view(np.uint64).reshape(-1, _BLOCK // 8)
    filled = np.bitwise_or.reduce(words, axis=1) != 0
    if len(data) > whole:
        filled = np.append(filled, data[whole:].any())
    edges = np.flatnonzero(np.diff(filled.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    return [
        (int(first) * _BLOCK, min(int(last) * _BLOCK, len(data)))
        for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]
