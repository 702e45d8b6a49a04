"""A PE image in memory: its size, its sections, its directories, and the PDB that its CodeView record names.

Format: https://learn.microsoft.com/windows/win32/debug/pe-format. Reads headers of mapped images (RVAs are offsets
from the base); every size is checked, since the guest wrote them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from coldframe.capabilities import ReadsMemory
from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.symbols.model import PdbIdentity

EXPORT, EXCEPTION, DEBUG = 0, 3, 6
_CODEVIEW = 2
_LARGEST = 1 << 31
_MOST_SECTIONS = 96
_MOST_DEBUG_ENTRIES = 32
_MOST_EXPORTS = 1 << 16
_LONGEST_NAME = 32


@dataclass(frozen=True, slots=True)
class Section:
    """A section: `rva` and `size` as mapped, in bytes."""

    name: str
    rva: int
    size: int
    characteristics: int


@dataclass(frozen=True, slots=True)
class PeImage:
    """The headers of the image at `base`.

    `directories` is (RVA, size) by number; `machine` is 0x8664 for x64, 0x14C for x86.
    """

    memory: ReadsMemory
    base: int
    size: int
    machine: int
    timestamp: int
    checksum: int
    entry: int
    directories: tuple[tuple[int, int], ...]
    sections: tuple[Section, ...]

    @classmethod
    def read(cls, memory: ReadsMemory, base: int) -> PeImage:
        """Read the headers at `base`; raises `FormatError` when no PE is there, `UnreadableMemoryError`."""
        head = memory.read(base, 0x40)
        if head[:2] != b"MZ":
            raise FormatError(f"no PE image at {base:#x}: it begins with {head[:2]!r}, not with b'MZ'")
        start = int.from_bytes(head[0x3C:0x40], "little")
        if not 0x40 <= start <= 0xE00:
            raise FormatError(f"no PE image at {base:#x}: e_lfanew is {start:#x}")
        header = memory.read(base + start, 24)
        if header[:4] != b"PE\0\0":
            raise FormatError(f"no PE image at {base:#x}: signature is {header[:4]!r}")
        machine, count, timestamp = struct.unpack_from("<HHI", header, 4)
        optional_size = int.from_bytes(header[20:22], "little")
        if count > _MOST_SECTIONS or not 96 <= optional_size <= 0x200:
            raise FormatError(f"no PE image at {base:#x}: {count} sections, optional header of {optional_size:#x}")
        optional = memory.read(base + start + 24, optional_size)
        magic = int.from_bytes(optional[:2], "little")
        if magic not in (0x10B, 0x20B):
            raise FormatError(f"no PE image at {base:#x}: optional header's magic is {magic:#x}")
        table = 96 if magic == 0x10B else 112
        entry, size, checksum = (int.from_bytes(optional[at : at + 4], "little") for at in (16, 56, 64))
        if not 0x1000 <= size <= _LARGEST:
            raise FormatError(f"no PE image at {base:#x}: SizeOfImage is {size:#x}")
        directories = tuple(
            struct.unpack_from("<II", optional, at) for at in range(table, min(optional_size, table + 128) - 7, 8)
        )
        return cls(
            memory=memory,
            base=base,
            size=size,
            machine=machine,
            timestamp=timestamp,
            checksum=checksum,
            entry=entry,
            directories=directories,
            sections=_sections(memory, base + start + 24 + optional_size, count, size),
        )

    def directory(self, number: int) -> tuple[int, int] | None:
        """RVA and size of a data directory that lies within the image, else None."""
        if number >= len(self.directories):
            return None
        rva, size = self.directories[number]
        return (rva, size) if rva and size and rva + size <= self.size else None

    def codeview(self) -> PdbIdentity | None:
        """What the image's RSDS record names; None when it has none, or names nonsense.

        Raises `UnreadableMemoryError` when the record is not in RAM.
        """
        directory = self.directory(DEBUG)
        if directory is None:
            return None
        rva, size = directory
        entries = self.memory.read(self.base + rva, min(size, 28 * _MOST_DEBUG_ENTRIES) // 28 * 28)
        for at in range(0, len(entries), 28):
            kind, length, where = struct.unpack_from("<III", entries, at + 12)
            if kind == _CODEVIEW and 24 < length <= 0x1000 and where and where + length <= self.size:
                return parse_rsds(self.memory.read(self.base + where, length))
        return None

    def export_name(self) -> str | None:
        """The file's name as its export directory has it (`ntoskrnl.exe`); None where it has none.

        Raises `UnreadableMemoryError`.
        """
        directory = self.directory(EXPORT)
        if directory is None:
            return None
        place = int.from_bytes(self.memory.read(self.base + directory[0] + 12, 4), "little")
        if not 0 < place < self.size - _LONGEST_NAME:
            return None
        name = self.memory.read(self.base + place, _LONGEST_NAME).partition(b"\0")[0].decode("latin-1")
        return name if name and name.isprintable() else None

    def exports(self) -> Iterator[tuple[str, int]]:
        """Each exported name and its RVA; forwarders left out."""
        directory = self.directory(EXPORT)
        if directory is None:
            return
        rva, size = directory
        head = self.memory.read(self.base + rva, 40)
        functions, names, function_at, name_at, ordinal_at = struct.unpack_from("<5I", head, 20)
        if functions > _MOST_EXPORTS or names > _MOST_EXPORTS:
            return
        table = self.memory.read(self.base + function_at, 4 * functions)
        name_table = self.memory.read(self.base + name_at, 4 * names)
        ordinals = self.memory.read(self.base + ordinal_at, 2 * names)
        block = self.memory.read(self.base + rva, size)
        for number in range(names):
            name_rva = int.from_bytes(name_table[4 * number : 4 * number + 4], "little")
            ordinal = int.from_bytes(ordinals[2 * number : 2 * number + 2], "little")
            if ordinal >= functions or not rva <= name_rva < rva + size:
                continue
            target = int.from_bytes(table[4 * ordinal : 4 * ordinal + 4], "little")
            if target and not rva <= target < rva + size:
                yield block[name_rva - rva :].partition(b"\0")[0][:512].decode("latin-1"), target


def parse_rsds(record: bytes) -> PdbIdentity | None:
    """The identity in an RSDS record (`RSDS`, GUID, age, name), or None when it is not one."""
    if record[:4] != b"RSDS" or len(record) < 25:
        return None
    first, second, third = struct.unpack_from("<IHH", record, 4)
    age = int.from_bytes(record[20:24], "little")
    name = record[24:].partition(b"\0")[0].decode("utf-8", "replace")
    if not name or not name.isprintable():
        return None
    return PdbIdentity(
        name.replace("/", "\\").rpartition("\\")[2],
        f"{first:08X}{second:04X}{third:04X}" + record[12:20].hex().upper(),
        age,
    )


def _sections(memory: ReadsMemory, address: int, count: int, image_size: int) -> tuple[Section, ...]:
    try:
        table = memory.read(address, 40 * count)
    except UnreadableMemoryError:
        return ()
    found = []
    for at in range(0, len(table), 40):
        size, rva = struct.unpack_from("<II", table, at + 8)
        if rva + size <= image_size + 0xFFF:
            name = table[at : at + 8].rstrip(b"\0").decode("latin-1")
            found.append(Section(name, rva, size, int.from_bytes(table[at + 36 : at + 40], "little")))
    return tuple(found)
