"""Triage (mini) kernel dumps, type 4: no physical memory, but blocks of it by virtual address.

Source: `TRIAGE_DUMP64`, `TRIAGE_DATA_BLOCK`, `DUMP_DRIVER_ENTRY64` and `DUMP_STRING` of the WDK's ntiodump.h. Offsets
in it count from the file's start. No public PDB has these structures, so their offsets are numbers here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldframe.errors import FormatError
from coldframe.images import crashheader
from coldframe.images.image import ImageFile, whole_runs
from coldframe.memory import PhysicalMemory

TRIAGE = 4
_TRIAGE_SIZE = 0x80
_STACK, _DRIVERS, _STRINGS, _TOP_OF_STACK, _DATA_PAGE, _DEBUGGER_DATA, _BLOCKS = (
    0x28,
    0x30,
    0x38,
    0x48,
    0x60,
    0x70,
    0x78,
)
_BLOCK = struct.Struct("<QII")
_MOST_BLOCKS, _MOST_DRIVERS, _LONGEST_NAME = 1 << 16, 1 << 12, 1024
# DUMP_DRIVER_ENTRY64: where its name is, then a KLDR_DATA_TABLE_ENTRY (its length grew with Windows)
_ENTRY, _BASE, _SIZE, _LEAST_ENTRY, _MOST_ENTRY = 0x90, 0x38, 0x48, 0x60, 0x200
_END = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TriageDriver:
    """A kernel module that was loaded: its name, base address and size in bytes."""

    name: str
    base: int
    size: int


@dataclass(frozen=True, slots=True)
class TriageDump:
    """What a triage dump holds.

    `blocks` reads as far as the dump's blocks reach; its addresses are **virtual** ones of the kernel. `stack` is the
    part of the crashed thread's stack (start, size). `registers` are those of the processor that crashed, `bugcheck`
    its code and four parameters.
    """

    blocks: PhysicalMemory
    stack: tuple[int, int]
    drivers: Sequence[TriageDriver]
    registers: Mapping[str, int]
    bugcheck: Sequence[int]
    crash_header: bytes
    warnings: Sequence[str] = ()


def open_triage(path: str | os.PathLike[str]) -> TriageDump:
    """Open the triage dump of an x64 Windows at `path`; raises `FormatError` for any other file, `OSError`."""
    file = ImageFile.map(Path(path))
    header = bytes(file.at(0, crashheader.SIZE, "the crash dump's header"))
    (machine,) = struct.unpack_from("<I", header, crashheader.MACHINE)
    (kind,) = struct.unpack_from("<I", header, crashheader.DUMP_TYPE)
    if header[:8] != crashheader.MAGIC or machine != crashheader.AMD64 or kind != TRIAGE:
        raise FormatError(f"{file.path} is no triage dump of x64: {header[:8]!r}, machine {machine:#x}, type {kind}")
    triage = bytes(file.at(crashheader.SIZE, _TRIAGE_SIZE, "the triage dump's header"))
    warnings: list[str] = []
    stack_at, stack_size = struct.unpack_from("<II", triage, _STACK)
    (stack,) = struct.unpack_from("<Q", triage, _TOP_OF_STACK)
    (block,) = struct.unpack_from("<Q", header, crashheader.DEBUGGER_BLOCK)
    data_at, data_size = struct.unpack_from("<II", triage, _DEBUGGER_DATA)
    wanted = [(stack, stack_size, stack_at), (block, data_size, data_at)]
    address, offset, size = _BLOCK.unpack_from(triage, _DATA_PAGE)
    wanted += [(address, size, offset), *_blocks(file, triage, warnings)]
    blocks = whole_runs(file, [run for run in wanted if run[0] and run[0] + run[1] < _END], warnings)
    return TriageDump(
        PhysicalMemory(blocks),
        (stack, stack_size),
        tuple(_drivers(file, triage, warnings)),
        crashheader.registers(header),
        struct.unpack_from("<I4x4Q", header, crashheader.BUGCHECK),
        header,
        warnings,
    )


def _blocks(file: ImageFile, triage: bytes, warnings: list[str]) -> Iterator[tuple[int, int, int]]:
    """The data blocks, as (address, size, offset in the file)."""
    offset, count = struct.unpack_from("<II", triage, _BLOCKS)
    if count > _MOST_BLOCKS or offset + count * _BLOCK.size > len(file.data):
        warnings.append(f"{file.path}: {count} data blocks at {offset:#x} are not in the file")
        return
    for address, place, size in _BLOCK.iter_unpack(file.data[offset : offset + count * _BLOCK.size]):
        yield address, size, place


def _drivers(file: ImageFile, triage: bytes, warnings: list[str]) -> Iterator[TriageDriver]:
    offset, count, strings = struct.unpack_from("<III", triage, _DRIVERS)
    length = (strings - offset) // count if count and strings > offset else 0  # the strings follow the entries
    if not _LEAST_ENTRY <= length <= _MOST_ENTRY:
        length = _ENTRY
    if count > _MOST_DRIVERS or offset + count * length > len(file.data):
        warnings.append(f"{file.path}: {count} drivers at {offset:#x} are not in the file")
        return
    for entry in range(offset, offset + count * length, length):
        (base,) = struct.unpack_from("<Q", file.data, entry + _BASE)
        (size,) = struct.unpack_from("<I", file.data, entry + _SIZE)
        yield TriageDriver(_string(file, file.u32(entry, "a driver's name")), base, size)


def _string(file: ImageFile, offset: int) -> str:
    """A DUMP_STRING: how many characters, then these in UTF-16; empty where it is not in the file."""
    if offset + 4 > len(file.data):
        return ""
    count = file.u32(offset, "a string's length")
    if count > _LONGEST_NAME or offset + 4 + 2 * count > len(file.data):
        return ""
    return bytes(file.data[offset + 4 : offset + 4 + 2 * count]).decode("utf-16-le", "replace")
