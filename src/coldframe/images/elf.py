"""ELF core files of a whole machine, as QEMU's `dump-guest-memory` writes them.

Format: https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.pheader.html; QEMU's note is `QEMUCPUState` in its
target/i386/arch_dump.c. A PT_LOAD segment's p_paddr is the guest-physical address.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PhysicalMemory

FORMAT = "ELF core"
MAGIC = b"\x7fELF"
_ET_CORE = 4
_MACHINES = (62, 3)  # x86-64; QEMU writes i386 into a 64-bit file while its first vCPU is not in long mode
_PT_LOAD, _PT_NOTE = 1, 4
_MANY_SEGMENTS = 0xFFFF  # then the count is in section header 0 (PN_XNUM)
_MOST_SEGMENTS = 1 << 20
_MOST_NOTES = 1 << 14
_HIGHEST = 1 << 52
_SEGMENT = struct.Struct("<II6Q")  # Elf64_Phdr
_NOTE = struct.Struct("<3I")
# QEMUCPUState: version and size; 18 registers; cs ds es fs gs ss ldt tr gdt idt as (selector, limit, flags, pad, base);
# cr0 to cr4; kernel GS base.
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "eflags"),
)
_SEGMENTS = ["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt"]
_CPU = struct.Struct("<II18Q" + "IIIIQ" * 10 + "5Q")
_KERNEL_GS = struct.Struct("<Q")


def open_elf(file: ImageFile) -> PhysicalImage:
    """The segments of a 64-bit little-endian x86 core file; raises `FormatError` for any other ELF file."""
    head = bytes(file.at(0, 64, "the ELF header"))
    kind, machine = struct.unpack_from("<HH", head, 16)
    if head[4:6] != b"\x02\x01" or kind != _ET_CORE or machine not in _MACHINES:
        raise FormatError(
            f"{file.path} is an ELF file, but no 64-bit x86 core: class {head[4]}, type {kind}, machine {machine}"
        )
    warnings: list[str] = []
    wanted: list[tuple[int, int, int]] = []
    registers: list[Mapping[str, int]] = []
    for segment, offset, physical, size in _segments(file, head):
        if segment == _PT_NOTE:
            registers += _qemu_registers(file, offset, size)
        elif segment == _PT_LOAD and size:
            if physical + size > _HIGHEST:
                warnings.append(f"{file.path}: a segment of {size:#x} bytes at {physical:#x} is no physical memory")
                continue
            wanted.append((physical, size, offset))
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} is an ELF core without memory: no PT_LOAD segment has bytes in the file")
    return PhysicalImage(PhysicalMemory(runs), FORMAT, registers, warnings)


def _segments(file: ImageFile, head: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, physical address and size in the file of each segment."""
    table, sections = struct.unpack_from("<QQ", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if count == _MANY_SEGMENTS:
        count = file.u32(sections + 44, "section header 0's sh_info")
    if size < _SEGMENT.size or count > _MOST_SEGMENTS:
        raise FormatError(f"{file.path}: {count} program headers of {size} bytes")
    headers = file.at(table, size * count, "the program headers")
    for at in range(0, size * count, size):
        kind, _, offset, _, physical, length, _, _ = _SEGMENT.unpack_from(headers, at)
        yield kind, offset, physical, length


def _qemu_registers(file: ImageFile, offset: int, size: int) -> Iterator[Mapping[str, int]]:
    """The registers of each vCPU, from the notes named QEMU."""
    end = min(offset + size, len(file.data))
    for _ in range(_MOST_NOTES):
        if offset + _NOTE.size > end:
            return
        name_size, length, kind = _NOTE.unpack(file.at(offset, _NOTE.size, "a note"))
        start = offset + _NOTE.size
        body = start + (name_size + 3 & ~3)
        offset = body + (length + 3 & ~3)
        if offset > end + 3 or offset <= start:
            return
        if bytes(file.data[start : start + 4]) == b"QEMU" and not kind and length >= _CPU.size:
            yield _cpu(bytes(file.at(body, length, "a QEMU note")))


def _cpu(note: bytes) -> Mapping[str, int]:
    values = _CPU.unpack_from(note)
    general, segments, control = values[2:20], values[20:70], values[70:75]
    registers = dict(zip(_GENERAL, general, strict=True))
    for number, name in enumerate(_SEGMENTS):
        selector, limit, _, _, base = segments[5 * number : 5 * number + 5]
        if name in ("gdt", "idt"):
            registers |= {f"{name}_base": base, f"{name}_limit": limit}
        else:
            registers[name] = selector
            registers[f"{name}_base"] = base
    registers |= {f"cr{number}": value for number, value in enumerate(control)}
    if len(note) >= _CPU.size + _KERNEL_GS.size:
        registers["k_gs_base"] = _KERNEL_GS.unpack_from(note, _CPU.size)[0]
    return registers
