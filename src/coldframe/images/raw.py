"""Raw images: the file's offset is the guest-physical address."""

from __future__ import annotations

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage
from coldframe.memory import PAGE_SIZE, PhysicalMemory, Run

FORMAT = "raw"


def open_raw(file: ImageFile) -> PhysicalImage:
    """The whole file as memory from address 0; the rest of a page at its end is left out."""
    size = len(file.data) // PAGE_SIZE * PAGE_SIZE
    if not size:
        raise FormatError(f"{file.path} is no memory image: {len(file.data)} bytes are less than a page")
    return PhysicalImage(PhysicalMemory([Run(0, size, file.data)]), FORMAT)
