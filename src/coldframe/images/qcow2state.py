"""The memory in a qcow2's internal snapshot (`savevm`): a migration stream behind the disk's last byte.

Format: QEMU's docs/interop/qcow2.txt. A snapshot has an L1 table of its own; the state of the machine begins at the
first address of that table which no disk address needs. All numbers are big-endian. Unpacked into the cache once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage
from coldframe.images.migration import open_migration
from coldframe.images.output import Output
from coldframe.images.unpacked import kept

FORMAT = "QEMU snapshot (qcow2)"
MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED, _ZERO, _EXTENDED = 1 << 62, 1, 1 << 4
_MOST_SNAPSHOTS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A snapshot with the machine's state: `size` bytes of it from the table's entry `first` on."""

    name: str
    table: int
    first: int
    size: int


def open_snapshot(file: ImageFile) -> PhysicalImage:
    """The memory of the newest snapshot that has it; raises `FormatError` where none has."""
    head = _HEADER.unpack(file.at(0, _HEADER.size, "the qcow2 header"))
    version, bits, size, encrypted, count, table = head[1], head[4], head[5], head[6], head[11], head[12]
    features = int.from_bytes(file.at(72, 8, "the qcow2 features"), "big") if version >= 3 else 0
    if version not in (2, 3) or not 9 <= bits <= 21:
        raise FormatError(f"{file.path}: a qcow2 of version {version} with clusters of 2^{bits} bytes is not known")
    found = [snapshot for snapshot in _snapshots(file, count, table, size, bits) if snapshot.size]
    if not found:
        raise FormatError(
            f"{file.path} is a qcow2 disk, no memory: it has no snapshot with the state of a machine (savevm). Name "
            "the memory as the target, and the disk with --disk"
        )
    if encrypted or features & _EXTENDED:
        raise FormatError(f"{file.path} is encrypted or has extended L2 entries, so its snapshots' memory is not read")
    snapshot = found[-1]

    def write(output: Output) -> None:
        for offset, data in _clusters(file, snapshot, bits):
            output.put(offset, bytes(data))
        output.extend(snapshot.size)

    image = open_migration(kept(file, f"{FORMAT} {snapshot.table}", write))
    image.format = FORMAT
    if len(found) > 1:
        others = ", ".join(repr(each.name) for each in found[:-1])
        image.warnings = [*image.warnings, f"{file.path}: snapshot {snapshot.name!r} is taken, not {others}"]
    return image


def _snapshots(file: ImageFile, count: int, at: int, disk_size: int, bits: int) -> Iterator[_Snapshot]:
    """Each snapshot; its own disk size where it tells it."""
    if count > _MOST_SNAPSHOTS:
        raise FormatError(f"{file.path}: the qcow2 header tells of {count} snapshots")
    for _ in range(count):
        entry = _SNAPSHOT.unpack(file.at(at, _SNAPSHOT.size, "a snapshot of the qcow2"))
        table, id_size, name_size, state_size, extra_size = entry[0], entry[2], entry[3], entry[7], entry[8]
        extra = bytes(file.at(at + _SNAPSHOT.size, min(extra_size, 1024), "a snapshot's extra data"))
        at += _SNAPSHOT.size + extra_size
        name = bytes(file.at(at + id_size, name_size, "a snapshot's name")).decode("utf-8", "replace")
        at += -(-(id_size + name_size + extra_size) // 8) * 8 - extra_size
        if len(extra) >= 8:
            state_size = int.from_bytes(extra[:8], "big")
        if len(extra) >= 16:
            disk_size = int.from_bytes(extra[8:16], "big")
        if state_size > len(file.data):
            raise FormatError(
                f"{file.path}: the snapshot {name!r} has {state_size:#x} bytes of state, more than the file"
            )
        yield _Snapshot(name, table, -(-disk_size // (1 << 2 * bits - 3)), state_size)


def _clusters(file: ImageFile, snapshot: _Snapshot, bits: int) -> Iterator[tuple[int, memoryview]]:
    """Offset in the state and bytes of each cluster that is not zeros."""
    cluster, entries = 1 << bits, 1 << bits - 3
    for start in range(0, snapshot.size, cluster):
        index, inner = divmod(start >> bits, entries)
        entry = snapshot.table + 8 * (snapshot.first + index)
        second = int.from_bytes(file.at(entry, 8, "an L1 entry"), "big") & _OFFSET
        if not second:
            continue
        place = int.from_bytes(file.at(second + 8 * inner, 8, "an L2 entry"), "big")
        if place & _COMPRESSED:
            raise FormatError(f"{file.path}: the state of {snapshot.name!r} is compressed, which is not read")
        if place & _OFFSET and not place & _ZERO:
            size = min(cluster, snapshot.size - start)
            yield start, file.at(place & _OFFSET, size, "a cluster of the snapshot's state")
