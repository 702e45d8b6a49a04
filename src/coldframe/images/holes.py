"""Where the file behind a mapping has no data, so that its zeros need not be read.

Reading them costs time, and of a guest's memory (a memfd) it costs the host: a page that the guest has never touched
comes into being when it is read through a mapping.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from coldframe.memory import PhysicalMemory


def data_spans(physical: PhysicalMemory, address: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts (address, size) of a span within one run that may be other than zeros; all of it where not known."""
    import numpy as np  # noqa: PLC0415 - slow to load

    run = physical.run_at(address)
    if run is None or not isinstance(run.backing, memoryview) or not size:
        yield address, size
        return
    view = np.frombuffer(run.backing, dtype=np.uint8, count=size, offset=run.offset + address - run.start)
    opened = _open_mapped(view.ctypes.data, size)
    if opened is None:
        yield address, size
        return
    descriptor, offset = opened
    try:
        yield from ((address + start - offset, length) for start, length in _extents(descriptor, offset, size))
    finally:
        os.close(descriptor)


def _open_mapped(pointer: int, size: int) -> tuple[int, int] | None:
    """The file mapped at `pointer`, opened, and the offset in it; None where there is none, or it may not be opened."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                span, _, offset, _, inode, *_ = line.split()
                start, end = (int(word, 16) for word in span.split("-"))
                if start <= pointer < end:
                    if inode == "0" or pointer + size > end:
                        return None
                    descriptor = os.open(f"/proc/self/map_files/{span}", os.O_RDONLY | os.O_CLOEXEC)
                    return descriptor, int(offset, 16) + pointer - start
    except (OSError, ValueError):  # map_files needs privileges
        return None
    return None


def _extents(descriptor: int, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents (offset, size) of the file that have data, within `size` bytes from `offset`."""
    end = offset + size
    while offset < end:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # this file system does not tell
                yield offset, end - offset
            return
        if start >= end:
            return
        yield start, min(stop, end) - start
        offset = stop
