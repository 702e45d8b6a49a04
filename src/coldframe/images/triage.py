"""Triage (mini) kernel dumps, type 4: no physical memory, but blocks of it by virtual address.

Source: `TRIAGE_DUMP32` and `TRIAGE_DUMP64`, `TRIAGE_DATA_BLOCK`, `DUMP_DRIVER_ENTRY32` and `64` and `DUMP_STRING` of
the WDK's ntiodump.h. Offsets in it count from the file's start. No public PDB has these structures, so their offsets
are numbers here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coldframe.errors import FormatError
from coldframe.images.crashheader import FORM32, FORM64, FORMS, HeaderForm
from coldframe.images.image import ImageFile, whole_runs
from coldframe.memory import PhysicalMemory

TRIAGE = 4
_BLOCK = struct.Struct("<QII")
_MOST_BLOCKS, _MOST_DRIVERS, _LONGEST_NAME = 1 << 16, 1 << 12, 1024
_OPTION_OVERFLOWED = 0x100  # TRIAGE_OPTION_OVERFLOWED: not all found room
# TRIAGE_DUMP, the same in both up to TriageOptions
_PRCB, _PROCESS, _THREAD, _STACK, _DRIVERS, _OPTIONS = 0x1C, 0x20, 0x24, 0x28, 0x30, 0x44


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are: in the dump's header, in TRIAGE_DUMP behind it, in DUMP_DRIVER_ENTRY.

    An entry has a KLDR_DATA_TABLE_ENTRY, whose length grew with Windows: `stamps` tells by an entry's length where
    its TimeDateStamp is.
    """

    header: HeaderForm
    lists_at: int
    triage_size: int
    top_of_stack: int
    data_page: int
    debugger_data: int
    blocks: int
    entry: int
    base: int
    image_size: int
    least_entry: int
    stamps: Mapping[int, int]


_LAYOUT64 = _Layout(
    header=FORM64, lists_at=0x20,
    triage_size=0x80, top_of_stack=0x48, data_page=0x60, debugger_data=0x70, blocks=0x78,
    entry=0x90, base=0x38, image_size=0x48, least_entry=0x60, stamps={0x90: 0x88, 0xA8: 0xA4},
)  # fmt: skip
_LAYOUT32 = _Layout(
    header=FORM32, lists_at=0x18,
    triage_size=0x68, top_of_stack=0x48, data_page=0x4C, debugger_data=0x58, blocks=0x60,
    entry=0x4C, base=0x1C, image_size=0x24, least_entry=0x30, stamps={0x4C: 0x48},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TriageDriver:
    """A kernel module that was loaded: its name, base address, size in bytes and its PE header's timestamp, or 0."""

    name: str
    base: int
    size: int
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class TriageDump:
    """What a triage dump holds.

    `blocks` reads as far as the dump's blocks reach; its addresses are **virtual** ones of the kernel. `stack` is the
    part of the crashed thread's stack (start, size). `registers` are those of the processor that crashed, `bugcheck`
    its code and four parameters. `copies` are the offsets in the file of its KPRCB ("prcb"), and of its process'
    EPROCESS and its ETHREAD ("process", "thread"), whose addresses the dump does not tell; `lists` the addresses of
    PsLoadedModuleList and PsActiveProcessHead.
    """

    file: ImageFile
    pointer_size: int
    blocks: PhysicalMemory
    stack: tuple[int, int]
    drivers: Sequence[TriageDriver]
    registers: Mapping[str, int]
    bugcheck: Sequence[int]
    crash_header: bytes
    copies: Mapping[str, int]
    lists: tuple[int, int]
    warnings: Sequence[str] = ()

    def with_copy(self, address: int, size: int, offset: int) -> TriageDump:
        """The same with `size` bytes at `offset` of the file known to be those at `address`, where no block has them.

        What goes past the end of the file, or of addresses, is left out.
        """
        end = 1 << 8 * self.pointer_size
        size = max(0, min(size, len(self.file.data) - offset, end - address))
        runs = [(run.start, run.size, run.offset) for run in self.blocks.runs]
        new: list[tuple[int, int, int]] = []
        at = address
        for start, length, _ in runs:
            if at < start < address + size:
                new.append((at, start - at, offset + at - address))
            if start < address + size:
                at = max(at, start + length)
        if at < address + size:
            new.append((at, address + size - at, offset + at - address))
        return replace(self, blocks=PhysicalMemory(whole_runs(self.file, [*runs, *new], [])))


def is_triage(file: ImageFile) -> bool:
    """Whether `file` begins as a triage dump does, of whichever machine."""
    form = FORMS.get(bytes(file.data[:8]))
    return form is not None and len(file.data) >= form.size and file.u32(form.type_at, "the dump's type") == TRIAGE


def open_triage(path: str | os.PathLike[str]) -> TriageDump:
    """Open the triage dump of an x64 or x86 Windows at `path`; raises `FormatError` for any other file, `OSError`."""
    file = ImageFile.map(Path(path))
    form = FORMS.get(bytes(file.data[:8]), FORM64)
    layout = _LAYOUT32 if form is FORM32 else _LAYOUT64
    header = bytes(file.at(0, form.size, "the crash dump's header"))
    machine, kind = form.word(header, form.machine_at), form.kind(header)
    if header[:8] != form.magic or machine != form.machine or kind != TRIAGE:
        raise FormatError(f"{file.path} is no triage dump: {header[:8]!r}, machine {machine:#x}, type {kind}")
    triage = bytes(file.at(form.size, layout.triage_size, "the triage dump's header"))
    warnings: list[str] = []
    if int.from_bytes(triage[_OPTIONS : _OPTIONS + 4], "little") & _OPTION_OVERFLOWED:
        warnings.append(f"{file.path}: Windows noted that not everything found room in this dump")
    stack_at, stack_size = struct.unpack_from("<II", triage, _STACK)
    (stack,) = struct.unpack_from(f"<{form.pointer}", triage, layout.top_of_stack)
    (block,) = struct.unpack_from(f"<{form.pointer}", header, form.debugger_block_at)
    data_at, data_size = struct.unpack_from("<II", triage, layout.debugger_data)
    wanted = [(stack, stack_size, stack_at), (block, data_size, data_at)]
    address, offset, size = struct.unpack_from(f"<{form.pointer}II", triage, layout.data_page)
    wanted += [(address, size, offset), *_blocks(file, triage, layout, warnings)]
    end = 1 << 8 * struct.calcsize(form.pointer)
    blocks = whole_runs(file, [run for run in wanted if run[0] and run[0] + run[1] < end], warnings)
    places = struct.unpack_from("<III", triage, _PRCB)
    return TriageDump(
        file,
        struct.calcsize(form.pointer),
        PhysicalMemory(blocks),
        (stack, stack_size),
        tuple(_drivers(file, triage, layout, warnings)),
        form.registers(header),
        struct.unpack_from(form.bugcheck, header, form.bugcheck_at),
        header,
        {name: at for name, at in zip(("prcb", "process", "thread"), places, strict=True) if form.size < at},
        struct.unpack_from(f"<2{form.pointer}", header, layout.lists_at),
        warnings,
    )


def _blocks(file: ImageFile, triage: bytes, layout: _Layout, warnings: list[str]) -> Iterator[tuple[int, int, int]]:
    """The data blocks, as (address, size, offset in the file); those of 32-bit dumps may be sign-extended."""
    offset, count = struct.unpack_from("<II", triage, layout.blocks)
    if count > _MOST_BLOCKS or offset + count * _BLOCK.size > len(file.data):
        warnings.append(f"{file.path}: {count} data blocks at {offset:#x} are not in the file")
        return
    mask = (1 << 8 * struct.calcsize(layout.header.pointer)) - 1
    for address, place, size in _BLOCK.iter_unpack(file.data[offset : offset + count * _BLOCK.size]):
        yield address & mask, size, place


def _drivers(file: ImageFile, triage: bytes, layout: _Layout, warnings: list[str]) -> Iterator[TriageDriver]:
    offset, count, strings = struct.unpack_from("<III", triage, _DRIVERS)
    length = (strings - offset) // count if count and strings > offset else 0  # the strings follow the entries
    if not layout.least_entry <= length <= 4 * layout.entry:
        length = layout.entry
    if count > _MOST_DRIVERS or offset + count * length > len(file.data):
        warnings.append(f"{file.path}: {count} drivers at {offset:#x} are not in the file")
        return
    stamp = layout.stamps.get(length)
    for entry in range(offset, offset + count * length, length):
        (base,) = struct.unpack_from(f"<{layout.header.pointer}", file.data, entry + layout.base)
        (size,) = struct.unpack_from("<I", file.data, entry + layout.image_size)
        timestamp = 0 if stamp is None else file.u32(entry + stamp, "a driver's timestamp")
        yield TriageDriver(_string(file, file.u32(entry, "a driver's name")), base, size, timestamp)


def _string(file: ImageFile, offset: int) -> str:
    """A DUMP_STRING: a length (ntiodump.h says bytes, Windows writes characters), then UTF-16 up to a zero.

    Empty where it is not in the file.
    """
    if offset + 4 > len(file.data):
        return ""
    count = file.u32(offset, "a string's length")
    if count > _LONGEST_NAME or offset + 4 + count > len(file.data):
        return ""
    return bytes(file.data[offset + 4 : offset + 4 + 2 * count]).decode("utf-16-le", "replace").partition("\0")[0]
