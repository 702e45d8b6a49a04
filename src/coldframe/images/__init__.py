"""Memory images, one module a format, told by content and never by name."""

from __future__ import annotations

import os
from pathlib import Path

from coldframe.images import crashdump, crashheader, elf, raw
from coldframe.images.image import ImageFile, PhysicalImage

__all__ = ["PhysicalImage", "open_image"]


def open_image(path: str | os.PathLike[str]) -> PhysicalImage:
    """Open the memory image at `path`: an ELF core, a Windows crash dump, else raw memory.

    The file is mapped, not read: opening costs the same whatever its size. Raises `FormatError` naming the file and
    the place for one that is damaged, `OSError` for one that cannot be opened.
    """
    file = ImageFile.map(Path(path))
    magic = bytes(file.data[:8])
    if magic.startswith(elf.MAGIC):
        return elf.open_elf(file)
    if magic in (crashheader.MAGIC, crashdump.MAGIC32):
        return crashdump.open_crash_dump(file)
    return raw.open_raw(file)
