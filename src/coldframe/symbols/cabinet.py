"""Compressed symbol files (`ntkrnlmp.pd_`): a cabinet with one file in it.

Unpacked by libarchive (through libarchive-c), which knows MSZIP and LZX.
"""

from __future__ import annotations

from pathlib import Path

from coldframe.errors import CapabilityError, FormatError

MAGIC = b"MSCF"
_MAX_SIZE = 2 << 30  # a cabinet cannot hold a larger file


def unpack(path: Path) -> bytes:
    """The first file in the cabinet at `path`.

    Raises `FormatError` for a damaged one, `CapabilityError` when the libarchive library is not installed.
    """
    try:
        import libarchive  # noqa: PLC0415 - it loads libarchive.so, which only compressed symbols need
    except (ImportError, OSError, TypeError, AttributeError) as error:
        raise CapabilityError(f"{path}: unpacking it needs libarchive (Debian: libarchive13): {error}") from error
    content = bytearray()
    try:
        with libarchive.file_reader(str(path), format_name="cab") as archive:
            for entry in archive:
                for block in entry.get_blocks():
                    content += block
                    if len(content) > _MAX_SIZE:
                        raise FormatError(f"{path}: unpacks to more than {_MAX_SIZE >> 30} GB")
                break
    except libarchive.exception.ArchiveError as error:
        raise FormatError(f"{path}: a damaged cabinet: {error}") from error
    if not content:
        raise FormatError(f"{path}: a cabinet with nothing in it")
    return bytes(content)
