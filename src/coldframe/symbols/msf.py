"""MSF 7, the container of a PDB: a file of blocks that holds numbered streams.

The format: https://llvm.org/docs/PDB/MsfFile.html. Every number is checked against the file before it is used; no
stream can be larger than the file, so a lying directory cannot ask for more memory than the file has bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from coldframe.errors import FormatError

MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_MAGIC_2 = b"Microsoft C/C++ program database 2.00"
_PORTABLE = b"BSJB"
_SUPERBLOCK = struct.Struct("<32s6I")
_NIL = 0xFFFF_FFFF
_BLOCK_SIZES = frozenset(1 << power for power in range(9, 17))


class Msf:
    """The streams of an MSF file; `data` is the whole file (bytes or a memory map)."""

    def __init__(self, data: memoryview, where: str) -> None:
        self.where = where
        self._data = data
        self.file_size = len(data)
        if len(data) < _SUPERBLOCK.size:
            raise FormatError(f"{where}: {len(data)} bytes are too few for a PDB")
        magic, block_size, _, blocks, directory_size, _, map_block = _SUPERBLOCK.unpack_from(data)
        if magic != MAGIC:
            raise FormatError(f"{where}: {_not_a_pdb(bytes(data[:40]))}")
        if block_size not in _BLOCK_SIZES:
            raise FormatError(f"{where}: block size {block_size} is no power of two from 512 to 65536")
        if not 0 < directory_size <= len(data):
            raise FormatError(f"{where}: stream directory of {directory_size} bytes in a file of {len(data)}")
        self._block_size = block_size
        self._blocks = min(blocks, -(-len(data) // block_size))
        count = -(-directory_size // block_size)
        block_map = self._read([map_block + i for i in range(-(-4 * count // block_size))], 4 * count, "block map")
        self._read_directory(self._read(struct.unpack(f"<{count}I", block_map), directory_size, "stream directory"))

    def _read_directory(self, directory: bytes) -> None:
        if len(directory) < 4:
            raise FormatError(f"{self.where}: the stream directory is cut off")
        (count,) = struct.unpack_from("<I", directory)
        if 4 + 4 * count > len(directory):
            raise FormatError(f"{self.where}: {count} streams do not fit a directory of {len(directory)} bytes")
        sizes = struct.unpack_from(f"<{count}I", directory, 4)
        self._streams: list[tuple[int, int]] = []  # size, where its block numbers start in the directory
        at = 4 + 4 * count
        for number, size in enumerate(sizes):
            if size == _NIL:
                size = 0  # noqa: PLW2901 - a deleted stream is an empty one
            if size > len(self._data):
                raise FormatError(f"{self.where}: stream {number} of {size} bytes in a file of {len(self._data)}")
            self._streams.append((size, at))
            at += 4 * -(-size // self._block_size)
        if at > len(directory):
            raise FormatError(f"{self.where}: the stream directory needs {at} bytes and has {len(directory)}")
        self._directory = directory

    def __len__(self) -> int:
        return len(self._streams)

    def size(self, number: int) -> int:
        """Bytes of stream `number`; 0 when there is no such stream."""
        return self._streams[number][0] if 0 <= number < len(self._streams) else 0

    def stream(self, number: int, limit: int | None = None) -> bytes:
        """The first `limit` bytes of stream `number`, or all; nothing when there is no such stream."""
        if not self.size(number):
            return b""
        size, at = self._streams[number]
        size = size if limit is None else min(size, limit)
        blocks = struct.unpack_from(f"<{-(-size // self._block_size)}I", self._directory, at)
        return self._read(blocks, size, f"stream {number}")

    def _read(self, blocks: Sequence[int], size: int, what: str) -> bytes:
        """The first `size` bytes of `blocks`, joined; neighbours are copied in one piece."""
        out, block_size, at = bytearray(), self._block_size, 0
        while at < len(blocks):
            run = at + 1
            while run < len(blocks) and blocks[run] == blocks[run - 1] + 1:
                run += 1
            if blocks[run - 1] >= self._blocks:
                raise FormatError(
                    f"{self.where}: {what} lies in block {blocks[run - 1]} of a file that has {self._blocks}; "
                    "the file may be cut off"
                )
            out += self._data[blocks[at] * block_size : blocks[run - 1] * block_size + block_size]
            at = run
        if len(out) < size:
            raise FormatError(f"{self.where}: {what} needs {size} bytes and the file has {len(out)} of them")
        return bytes(memoryview(out)[:size])


def _not_a_pdb(start: bytes) -> str:
    if start.startswith(_MAGIC_2):
        return "a PDB of version 2.00 (Visual C++ 6 or older), which is not read"
    if start.startswith(_PORTABLE):
        return "a portable PDB of .NET, which has no native symbols"
    if start.startswith(b"MSCF"):
        return "a cabinet; a compressed PDB is read when its name ends in _"
    return f"not a PDB: starts with {start[:16]!r}, not with {MAGIC[:16]!r}"
