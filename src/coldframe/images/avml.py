"""AVML images, version 2: ranges of memory behind headers like LiME's, each compressed as a framed Snappy stream.

Format: AVML's `src/image.rs` (magic, version, first and last address, padding; the stream; its size in eight bytes) and
Snappy's `framing_format.txt`. Unpacked into the cache, as an ELF core.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from coldframe.errors import FormatError
from coldframe.images.elf import core_head, open_elf
from coldframe.images.image import ImageFile, PhysicalImage
from coldframe.images.output import Output
from coldframe.images.unpacked import kept
from coldframe.memory import PAGE_SIZE

FORMAT = "AVML"
MAGIC = b"AVML"
_HEADER = struct.Struct("<4sIQQ8x")
_TRAILER = 8
_COMPRESSED, _PLAIN, _FIRST_SKIPPABLE = 0, 1, 0x80
_MOST_IN_FRAME = 65536
_SMALLEST_FRAME, _FRAMES_AT_LEAST = 1024, 64  # 64 KB of zeros compress to three
_HIGHEST = 1 << 52
_MOST_RANGES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    size: int
    stream: int  # where its frames begin in the file
    end: int  # and end


def open_avml(file: ImageFile) -> PhysicalImage:
    """The ranges of an AVML image; raises `FormatError` for a damaged one."""
    ranges = list(_ranges(file))
    if any(after.start < before.start + before.size for before, after in pairwise(ranges)):
        raise FormatError(f"{file.path}: the ranges of this AVML image overlap")

    def write(output: Output) -> None:
        head, offset = core_head([(found.start, found.size) for found in ranges], (), PAGE_SIZE)
        output.write(0, head)
        for found in ranges:
            _unpack(file, found, output, offset)
            offset += -(-found.size // PAGE_SIZE) * PAGE_SIZE
            output.extend(offset)

    image = open_elf(kept(file, FORMAT, write))
    image.format = FORMAT
    return image


def _ranges(file: ImageFile) -> Iterator[_Range]:
    """The ranges; only headers are read, of ranges and of frames."""
    offset, unpacked = 0, 0
    for _ in range(_MOST_RANGES):
        if offset >= len(file.data):
            return
        magic, version, first, last = _HEADER.unpack(file.at(offset, _HEADER.size, "an AVML header"))
        if magic != MAGIC or version != 2 or not first <= last < _HIGHEST:
            raise FormatError(
                f"{file.path}: the AVML header at {offset:#x} has {magic!r}, version {version}, {first:#x}-{last:#x}"
            )
        stream = offset + _HEADER.size
        offset, frames = _end(file, stream)
        unpacked = last - first + 1
        if unpacked > frames * _MOST_IN_FRAME:
            raise FormatError(f"{file.path}: {frames} frames at {stream:#x} cannot be {unpacked:#x} bytes")
        yield _Range(first, unpacked, stream, offset)
        offset += _TRAILER
    raise FormatError(f"{file.path} has more than {_MOST_RANGES} ranges")


def _end(file: ImageFile, offset: int) -> tuple[int, int]:
    """Where the frames from `offset` end, and how many there are: the trailer there tells their size."""
    start, count = offset, 0
    while True:
        size = offset - start
        if size and bytes(file.data[offset : offset + _TRAILER]) == size.to_bytes(_TRAILER, "little"):
            return offset, count
        length = int.from_bytes(file.at(offset, 4, "a Snappy frame"), "little") >> 8
        offset += 4 + length
        count += 1
        if count > _FRAMES_AT_LEAST + (offset - start) // _SMALLEST_FRAME:
            raise FormatError(f"{file.path}: the Snappy frames at {start:#x} are too small for memory")
        file.at(offset, 0, "a Snappy frame's end")


def _unpack(file: ImageFile, found: _Range, output: Output, offset: int) -> None:
    """Put the range's bytes at `offset` of `output`."""
    import cramjam  # noqa: PLC0415 - only these images need it

    at, done = found.stream, 0
    while at < found.end:
        frame = file.at(at, 4, "a Snappy frame")
        kind, length = frame[0], int.from_bytes(frame, "little") >> 8
        body = file.at(at + 4, length, "a Snappy frame")
        at += 4 + length
        if kind in (_COMPRESSED, _PLAIN):
            data = bytes(body[4:])  # behind a checksum
            try:
                if kind == _COMPRESSED and cramjam.snappy.decompress_raw_len(data) > _MOST_IN_FRAME:
                    raise FormatError(f"{file.path}: the Snappy frame at {at:#x} is larger than any may be")
                plain = bytes(cramjam.snappy.decompress_raw(data)) if kind == _COMPRESSED else data
            except cramjam.DecompressionError as error:
                raise FormatError(f"{file.path}: the Snappy frame before {at:#x} is damaged: {error}") from None
            plain = plain[: found.size - done]
            output.put(offset + done, plain)
            done += len(plain)
        elif kind < _FIRST_SKIPPABLE:
            raise FormatError(f"{file.path}: the Snappy frame before {at:#x} is of the unknown kind {kind:#x}")
    if done != found.size:
        raise FormatError(f"{file.path}: the range at {found.start:#x} has {done:#x} of {found.size:#x} bytes")
