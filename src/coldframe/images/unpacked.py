"""Compressed images, unpacked once into the cache folder and mapped from there.

`$XDG_CACHE_HOME/coldframe/images` keeps as many as fit into 64 GB of disk, the one used longest ago goes first. A name
there tells which file it was made from, of what size and time; a file that changed is unpacked anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from coldframe.cachefolder import default_folder
from coldframe.errors import CapabilityError, FormatError
from coldframe.images.image import ImageFile
from coldframe.images.output import Output

MAGICS = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_UNPACKED = 1 << 40  # bytes that one file may become; zeros take no space
_MOST_KEPT = 64 << 30  # bytes of disk that the cache takes
_SPARE = 1 << 30  # bytes of disk that are left free
_CHECK = 64 << 20


def compression(file: ImageFile) -> str | None:
    """What `file` is compressed with, by its first bytes; None where it is not."""
    start = bytes(file.data[:8])
    return next((name for magic, name in MAGICS.items() if start.startswith(magic)), None)


def decompressed(file: ImageFile, how: str) -> ImageFile:
    """`file`, compressed by gzip, xz or zstd, without its compression.

    Raises `FormatError` for a damaged file or one that grows beyond any image, `CapabilityError` when there is no
    libarchive or no room for the result.
    """

    def write(output: Output) -> None:
        offset = 0
        for block in _blocks(file.path, how):
            output.put(offset, block)
            offset += len(block)

    return kept(file, how, write)


def kept(file: ImageFile, what: str, write: Callable[[Output], None]) -> ImageFile:
    """What `write` makes of `file`, named `what`, from the cache where it was made before."""
    folder = _folder()
    status = file.path.stat()
    key = f"{file.path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{len(file.data)}\0{what}"
    path = folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.image"
    try:
        found = ImageFile.map(path)
        os.utime(path)
    except (OSError, FormatError):
        _make_room(folder)
        with _Bounded(path, file.path) as output:
            write(output)
        found = ImageFile.map(path)
    return ImageFile(file.path, found.data)


class _Bounded(Output):
    """An output that stops before the disk is full, or the result is larger than any image."""

    def __init__(self, path: Path, source: Path) -> None:
        super().__init__(path)
        self._source = source
        self._checked = -_CHECK

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put all of `data` at `offset`; raises `FormatError`, `CapabilityError` at the bounds."""
        if offset - self._checked >= _CHECK:
            self._checked = offset
            free = shutil.disk_usage(self.path.parent).free
            if free < _SPARE:
                raise CapabilityError(
                    f"{self._source} is compressed, and {self.path.parent} has no room to unpack it ({free >> 20} MB "
                    "free): set XDG_CACHE_HOME to a folder that has, or unpack it yourself"
                )
        super().write(offset, data)

    def extend(self, size: int) -> None:
        """Make the file at least `size` bytes long."""
        if size > _MOST_UNPACKED:
            raise FormatError(f"{self._source} unpacks to more than {_MOST_UNPACKED >> 40} TB")
        super().extend(size)


def _folder() -> Path:
    base = default_folder()
    if base is None:
        raise CapabilityError("compressed images need a cache folder: set XDG_CACHE_HOME")
    folder = base / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapabilityError(f"compressed images need the cache folder {folder}: {error.strerror}") from None
    return folder


def _make_room(folder: Path) -> None:
    """Remove the files used longest ago until the rest takes less than the most."""
    files = []
    for path in folder.glob("*.image"):
        with suppress(FileNotFoundError):
            status = path.stat()
            files.append((status.st_mtime, status.st_blocks * 512, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= _MOST_KEPT:
            return
        path.unlink(missing_ok=True)
        total -= size


def _blocks(path: Path, how: str) -> Iterator[bytes]:
    try:
        import libarchive  # noqa: PLC0415 - it loads libarchive.so, which only compressed images need
    except (ImportError, OSError, TypeError, AttributeError) as error:
        raise CapabilityError(f"{path}: unpacking it needs libarchive (Debian: libarchive13): {error}") from error
    try:
        with libarchive.file_reader(str(path), format_name="raw", filter_name=how) as archive:
            for entry in archive:
                yield from entry.get_blocks()
    except libarchive.exception.ArchiveError as error:
        raise FormatError(f"{path} is damaged where it should be {how}: {error.msg}") from None
