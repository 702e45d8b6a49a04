"""LiME images: ranges of memory, each behind a header of 32 bytes. AVML writes the same when it does not compress.

Format: LiME's `doc/README.md`: magic, version, first and last address, eight bytes of padding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PhysicalMemory

FORMAT = "LiME"
MAGIC = b"EMiL"
_HEADER = struct.Struct("<4sIQQ8x")
_HIGHEST = 1 << 52
_MOST_RANGES = 1 << 20


def open_lime(file: ImageFile) -> PhysicalImage:
    """The ranges of a LiME image; raises `FormatError` when its first header is damaged."""
    warnings: list[str] = []
    runs = whole_runs(file, _ranges(file, warnings), warnings)
    if not runs:
        raise FormatError(f"{file.path} is a LiME image without memory")
    return PhysicalImage(PhysicalMemory(runs), FORMAT, warnings=warnings)


def _ranges(file: ImageFile, warnings: list[str]) -> Iterator[tuple[int, int, int]]:
    offset = 0
    for _ in range(_MOST_RANGES):
        if offset >= len(file.data):
            return
        magic, version, first, last = _HEADER.unpack(file.at(offset, _HEADER.size, "a LiME header"))
        if magic != MAGIC or version != 1 or not first <= last < _HIGHEST:
            said = f"{file.path}: the LiME header at {offset:#x} has {magic!r}, version {version}, {first:#x}-{last:#x}"
            if not offset:
                raise FormatError(said)
            warnings.append(f"{said}; what follows is left out")
            return
        offset += _HEADER.size
        yield first, last - first + 1, offset
        offset += last - first + 1
    warnings.append(f"{file.path} has more than {_MOST_RANGES} ranges; what follows is left out")
