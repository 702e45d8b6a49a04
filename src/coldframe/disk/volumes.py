"""The volumes of a disk: GPT and MBR partitions through dissect.volume, or one volume on the bare disk.

Formats: https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html; the first sector of a volume tells what
it holds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from coldframe.disk.blocks import Blocks, BlockStream, Part
from coldframe.disk.dissected import load, reading
from coldframe.errors import FormatError

SECTOR_SIZES = (512, 4096)
_MOST_PARTITIONS = 1024  # Windows makes room for 128
_SIGNATURES = {
    b"NTFS    ": "NTFS",
    b"-FVE-FS-": "BitLocker",
    b"ReFS\0\0\0\0": "ReFS",
    b"EXFAT   ": "exFAT",
    b"MSDOS5.0": "FAT",
}


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, or a bare disk's one volume.

    `number` is the partition's, from 1 (0: the bare disk); `offset` and `size` in bytes on the disk; `guid` the GPT's
    unique partition GUID in lower case, or empty; `holds` what the first sector says: "NTFS", "BitLocker", "ReFS"...,
    or empty.
    """

    disk: Blocks
    number: int
    offset: int
    size: int
    guid: str
    holds: str

    @property
    def name(self) -> str:
        """For people: the disk and the partition."""
        return f"{self.disk.name}, partition {self.number}" if self.number else self.disk.name

    def blocks(self) -> Blocks:
        """Its bytes."""
        return Part(self.disk, self.offset, min(self.size, self.disk.size - self.offset), self.name)


def volumes(disk: Blocks) -> list[Volume]:
    """The volumes on `disk`, by place. Raises `FormatError` where neither a partition table nor a volume is found."""
    bare = _holds(disk, 0)
    if bare:
        return [Volume(disk, 0, 0, disk.size, "", bare)]
    troubles, tables = [], []
    for sector in SECTOR_SIZES:
        try:
            found = _partitions(disk, sector)
        except FormatError as error:
            troubles.append(str(error))
            continue
        tables.append(sorted(found, key=lambda volume: volume.offset))
        if any(volume.holds for volume in found):  # an MBR does not say how large the sectors are that it counts
            return tables[-1]
    if tables:
        return tables[0]
    raise FormatError(f"{disk.name}: no partition table and no volume ({troubles[0]})")


def _holds(disk: Blocks, offset: int) -> str:
    """What the volume at `offset` holds, by its boot sector."""
    try:
        return _SIGNATURES.get(disk.read(offset + 3, 8), "")
    except FormatError:
        return ""


def _partitions(disk: Blocks, sector: int) -> list[Volume]:
    module = load("volume.disk.disk")
    what = f"{disk.name}: partition table in sectors of {sector} bytes"
    if disk.size > 2 * sector:
        head = disk.read(sector, 92)
        if head[:8] == b"EFI PART":
            count, size = struct.unpack_from("<II", head, 80)
            if count > _MOST_PARTITIONS or not 128 <= size <= 4096:
                raise FormatError(f"{what}: a GPT with {count} entries of {size} bytes")
    with reading(what):
        table = module.Disk(BlockStream(disk), sector_size=sector)
        found = []
        for partition in table.partitions:
            raw = partition.raw
            last = getattr(raw, "last_lba", None)  # inclusive
            size = partition.size if last is None else (int(last) + 1 - int(raw.first_lba)) * sector
            offset = int(partition.offset)
            if size <= 0 or offset <= 0 or offset >= disk.size:
                continue
            guid = str(partition.guid).lower() if getattr(partition, "guid", None) else ""
            found.append(Volume(disk, int(partition.number), offset, int(size), guid, _holds(disk, offset)))
        return found
