"""ELF core files of a whole machine, as QEMU's `dump-guest-memory` and VirtualBox' `dumpvmcore` write them.

Format: https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.pheader.html; QEMU's note is `QEMUCPUState` in its
target/i386/arch_dump.c. A PT_LOAD segment's p_paddr is the guest-physical address.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from coldframe.errors import FormatError
from coldframe.images import vboxcore
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PhysicalMemory

FORMAT, FORMAT32 = "ELF core", "ELF core (32 bits)"
MAGIC = b"\x7fELF"
_ET_CORE = 4
_MACHINES = (62, 3)  # x86-64; QEMU writes i386 into a 64-bit file while its first vCPU is not in long mode
_PT_LOAD, _PT_NOTE = 1, 4
_MANY_SEGMENTS = 0xFFFF  # then the count is in section header 0 (PN_XNUM)
_MOST_SEGMENTS = 1 << 20
_MOST_NOTES = 1 << 14
_MOST_NOTE_SEGMENTS = 4
_MOST_NOTE_BYTES = 64 << 20
_HIGHEST = 1 << 52
_SEGMENT = struct.Struct("<II6Q")  # Elf64_Phdr
_SEGMENT32 = struct.Struct("<8I")  # Elf32_Phdr
_NOTE = struct.Struct("<3I")
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_NT_PRSTATUS, _NT_FILE = 1, 0x46494C45
_PAGE = 4096
# user_regs_struct of Linux' x86-64; orig_rax is none of a virtual processor's
_USER_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
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
    """The segments of a little-endian x86 core file, 64 or 32 bits; raises `FormatError` for any other ELF file."""
    head = bytes(file.at(0, 64, "the ELF header"))
    kind, machine = struct.unpack_from("<HH", head, 16)
    wide = head[4:6] == b"\x02\x01"
    if not (wide or head[4:6] == b"\x01\x01") or kind != _ET_CORE or machine not in _MACHINES:
        raise FormatError(
            f"{file.path} is an ELF file, but no x86 core: class {head[4]}, type {kind}, machine {machine}"
        )
    warnings: list[str] = []
    wanted: list[tuple[int, int, int]] = []
    registers: list[Mapping[str, int]] = []
    name, note_segments = FORMAT if wide else FORMAT32, 0
    for segment, offset, physical, size in _segments(file, head) if wide else _segments32(file, head):
        if segment == _PT_NOTE and note_segments < _MOST_NOTE_SEGMENTS:
            note_segments += 1
            notes = list(_notes(file, offset, size))
            virtualbox = vboxcore.registers(notes)
            name = vboxcore.FORMAT if virtualbox is not None else name
            registers += virtualbox or ()
            registers += (
                _cpu(body) for owner, kind, body in notes if owner == b"QEMU" and not kind and len(body) >= _CPU.size
            )
        elif segment == _PT_LOAD and size:
            if physical + size > _HIGHEST:
                warnings.append(f"{file.path}: a segment of {size:#x} bytes at {physical:#x} is no physical memory")
                continue
            wanted.append((physical, size, offset))
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} is an ELF core without memory: no PT_LOAD segment has bytes in the file")
    return PhysicalImage(PhysicalMemory(runs), name, registers, warnings)


def _segments(file: ImageFile, head: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, physical address and size in the file of each segment."""
    table, sections = struct.unpack_from("<QQ", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if count == _MANY_SEGMENTS:
        count = file.u32(sections + 44, "section header 0's sh_info")
    for kind, _, offset, _, physical, length, _, _ in _table(file, _SEGMENT, table, size, count):
        yield kind, offset, physical, length


def _segments32(file: ImageFile, head: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The same of a 32-bit file, whose addresses end at 4 GB."""
    (table,) = struct.unpack_from("<I", head, 28)
    size, count = struct.unpack_from("<HH", head, 42)
    for kind, offset, _, physical, length, _, _, _ in _table(file, _SEGMENT32, table, size, count):
        yield kind, offset, physical, length


def _table(file: ImageFile, form: struct.Struct, start: int, size: int, count: int) -> Iterator[tuple[int, ...]]:
    """The program headers."""
    if size < form.size or count > _MOST_SEGMENTS:
        raise FormatError(f"{file.path}: {count} program headers of {size} bytes")
    headers = file.at(start, size * count, "the program headers")
    for at in range(0, size * count, size):
        yield form.unpack_from(headers, at)


def _notes(file: ImageFile, offset: int, size: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Owner, type and content of each note, as far as they are whole."""
    end = min(offset + size, len(file.data))
    left = _MOST_NOTE_BYTES
    for _ in range(_MOST_NOTES):
        if offset + _NOTE.size > end:
            return
        name_size, length, kind = _NOTE.unpack(file.at(offset, _NOTE.size, "a note"))
        start = offset + _NOTE.size
        body = start + (name_size + 3 & ~3)
        offset = body + (length + 3 & ~3)
        left -= name_size + length
        if offset > end + 3 or left < 0 or body + length > len(file.data):
            return
        yield bytes(file.data[start : start + name_size]).rstrip(b"\0"), kind, bytes(file.data[body : body + length])


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
    if control[0]:  # CR0.ET reads as 1 on every processor: zero says that the writer did not know
        registers |= {f"cr{number}": value for number, value in enumerate(control)}
    else:
        registers["cr3"] = control[3]
    if len(note) >= _CPU.size + _KERNEL_GS.size:
        registers["k_gs_base"] = _KERNEL_GS.unpack_from(note, _CPU.size)[0]
    return registers


def core_head(
    segments: Sequence[tuple[int, int]], registers: Sequence[Mapping[str, int]], alignment: int
) -> tuple[bytes, int]:
    """What comes before the memory of a core file with these `segments` (address, size), and where the memory begins.

    A note named CORE (NT_PRSTATUS, for debuggers) and one named QEMU for each of `registers`; what a mapping does not
    tell is written as 0. Each segment's bytes are `alignment` bytes aligned, one after the other.
    """
    notes = b"".join(_prstatus(number + 1, known) for number, known in enumerate(registers))
    notes += b"".join(_note(b"QEMU", 0, _pack_cpu(known)) for known in registers)
    return _head([(start, size, 0) for start, size in segments], notes, alignment, physical=True)


def process_head(
    segments: Sequence[tuple[int, int, int]],
    threads: Sequence[tuple[int, Mapping[str, int]]],
    files: Sequence[tuple[int, int, str]] = (),
) -> tuple[bytes, int]:
    """As `core_head` for the core of one process: `segments` are virtual (address, size, flags PF_X, PF_W, PF_R).

    A note NT_PRSTATUS for each of `threads` (number, registers) and one NT_FILE for the `files` mapped (start, end,
    name). Each segment's bytes begin at a page of the file.
    """
    notes = b"".join(_prstatus(number, known) for number, known in threads)
    if files:
        places = b"".join(struct.pack("<QQQ", start, end, 0) for start, end, _ in files)
        names = b"".join(name.encode("utf-8", "replace").replace(b"\0", b"?") + b"\0" for _, _, name in files)
        notes += _note(b"CORE", _NT_FILE, struct.pack("<QQ", len(files), _PAGE) + places + names)
    return _head(segments, notes, _PAGE, physical=False)


def _head(
    segments: Sequence[tuple[int, int, int]], notes: bytes, alignment: int, *, physical: bool
) -> tuple[bytes, int]:
    """File header, program headers and notes, and where the segments' bytes begin."""
    count = len(segments) + 1
    many = count >= _MANY_SEGMENTS
    after = _HEADER.size + _SEGMENT.size * count
    note_at = after + (_SECTION.size if many else 0)
    first = offset = -(-(note_at + len(notes)) // alignment) * alignment
    ident = MAGIC + b"\x02\x01\x01"
    data = bytearray(
        _HEADER.pack(
            ident, _ET_CORE, _MACHINES[0], 1, 0, _HEADER.size, after if many else 0, 0, _HEADER.size, _SEGMENT.size,
            _MANY_SEGMENTS if many else count, _SECTION.size if many else 0, int(many), 0,
        )
    )  # fmt: skip
    data += _SEGMENT.pack(_PT_NOTE, 0, note_at, 0, 0, len(notes), len(notes), 0)
    for start, size, flags in segments:
        data += _SEGMENT.pack(_PT_LOAD, flags, offset, start, start if physical else 0, size, size, 0)
        offset += -(-size // alignment) * alignment
    if many:
        data += _SECTION.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    return bytes(data + notes), first


def _note(name: bytes, kind: int, body: bytes) -> bytes:
    """A note whose name ends in a zero; name and body are padded to four bytes."""
    name += b"\0"
    padded = name.ljust(-(-len(name) // 4) * 4, b"\0") + body.ljust(-(-len(body) // 4) * 4, b"\0")
    return _NOTE.pack(len(name), len(body), kind) + padded


def _pack_cpu(known: Mapping[str, int]) -> bytes:
    """A QEMUCPUState with the kernel's GS base."""

    def of(name: str, bits: int = 64) -> int:
        return known.get(name, 0) & (1 << bits) - 1

    values = [of(name) for name in _GENERAL]
    for name in _SEGMENTS:
        table = name in ("gdt", "idt")
        values += [0 if table else of(name, 32), of(f"{name}_limit", 32), 0, 0, of(f"{name}_base")]
    values += [of(f"cr{number}") for number in range(5)]
    size = _CPU.size + _KERNEL_GS.size
    return _CPU.pack(1, size, *values) + _KERNEL_GS.pack(of("k_gs_base"))


def _prstatus(number: int, known: Mapping[str, int]) -> bytes:
    """The note NT_PRSTATUS of one processor or thread: elf_prstatus of x86-64, its number and its registers."""
    words = [known.get(name, 0) & 0xFFFF_FFFF_FFFF_FFFF for name in _USER_REGISTERS]
    return _note(b"CORE", _NT_PRSTATUS, struct.pack("<32xI76x27Q8x", number & 0xFFFF_FFFF, *words))
