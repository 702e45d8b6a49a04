"""Virtual disks: image files, volumes, NTFS files. Needs the extra `disk` (dissect.*), which is loaded when used."""

from coldframe.disk.blocks import Blocks, FileBlocks, read_pages
from coldframe.disk.images import open_image
from coldframe.disk.ntfs import NtfsVolume
from coldframe.disk.ntfsfile import CopiedFile, NtfsFile
from coldframe.disk.volumes import Volume, volumes

__all__ = [
    "Blocks",
    "CopiedFile",
    "FileBlocks",
    "NtfsFile",
    "NtfsVolume",
    "Volume",
    "open_image",
    "read_pages",
    "volumes",
]
