"""Windows crash dumps: complete (type 1) and by bitmap (types 2, 5 and 6).

Source: the header is documented by its readers, such as kdmp-parser (`kdmp-parser-structs.h`) and Volatility; a
type 1 dump has the pages of each run of PHYSICAL_MEMORY_DESCRIPTOR one after the other, a bitmap dump those pages
whose bit is set. No public PDB has `DUMP_HEADER64`, so its offsets are numbers here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import FormatError
from coldframe.images import crashheader
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PAGE_SIZE, PhysicalMemory

MAGIC32 = b"PAGEDUMP"
_BY_BITMAP = {2: "kernel", 5: "bitmap", 6: "live kernel"}
_OTHERS = {4: "triage (mini) dump", 8: "kernel dump", 9: "kernel and user dump", 10: "complete dump"}
# The bitmap's header follows the dump's
_FIRST_PAGE, _PAGES, _BITMAP = 0x20, 0x30, 0x38
_MOST_PAGES = 1 << 34
_MOST_RUNS = 1 << 21
# DUMP_HEADER32 (Volatility's crash.json, QEMU's WinDumpHeader32) and CONTEXT of winnt.h (x86), from SegGs on
_I386, _MACHINE32, _RUN_COUNT32, _RUNS32, _DUMP_TYPE32, _CONTEXT32 = 0x14C, 0x20, 0x64, 0x6C, 0xF88, 0x320
_MOST_RUNS32 = 86
_SEG_GS32 = 0x8C
_CONTEXT32_REGISTERS = (
    *("gs", "fs", "es", "ds", "rdi", "rsi", "rbx", "rdx", "rcx", "rax", "rbp", "rip", "cs", "eflags", "rsp", "ss"),
)
_CHUNK = 1 << 20  # bytes of the bitmap that are looked at in one go


def open_crash_dump(file: ImageFile) -> PhysicalImage:
    """The pages of a crash dump; raises `FormatError` for kinds that hold no physical memory."""
    if bytes(file.data[:8]) == MAGIC32:
        return _open_32(file)
    header = bytes(file.at(0, crashheader.SIZE, "the crash dump's header"))
    machine = int.from_bytes(header[crashheader.MACHINE : crashheader.MACHINE + 4], "little")
    if machine != crashheader.AMD64:
        raise FormatError(f"{file.path} is a crash dump of machine {machine:#x}; only x64 (0x8664) is read")
    kind = int.from_bytes(header[crashheader.DUMP_TYPE : crashheader.DUMP_TYPE + 4], "little")
    warnings: list[str] = []
    if kind == crashheader.FULL:
        name, wanted = "crash dump (complete)", list(_runs(file, header))
    elif kind in _BY_BITMAP:
        name, wanted = f"crash dump ({_BY_BITMAP[kind]})", _bitmap_runs(file, crashheader.SIZE)
    else:
        found = _OTHERS.get(kind, "unknown")
        raise FormatError(
            f"{file.path} is a crash dump of type {kind} ({found}); those of types 1, 2, 5 and 6 have memory"
        )
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} is a crash dump without pages")
    return PhysicalImage(PhysicalMemory(runs), name, [crashheader.registers(header)], warnings, header)


def _open_32(file: ImageFile) -> PhysicalImage:
    """The pages of a crash dump of 32-bit Windows: DUMP_HEADER32, then a full dump's pages or a bitmap."""
    header = bytes(file.at(0, PAGE_SIZE, "the crash dump's header"))

    def word(at: int) -> int:
        return int.from_bytes(header[at : at + 4], "little")

    if word(_MACHINE32) != _I386:
        raise FormatError(
            f"{file.path} is a 32-bit crash dump of machine {word(_MACHINE32):#x}; only x86 (0x14c) is read"
        )
    kind, count = word(_DUMP_TYPE32), word(_RUN_COUNT32)
    warnings: list[str] = []
    if kind == crashheader.FULL:
        if not 0 < count <= _MOST_RUNS32:
            raise FormatError(f"{file.path}: the crash dump's header tells of {count} memory runs")
        name, wanted, offset = "32-bit crash dump (complete)", [], PAGE_SIZE
        for page, pages in struct.iter_unpack("<II", header[_RUNS32 : _RUNS32 + 8 * count]):
            wanted.append((page * PAGE_SIZE, pages * PAGE_SIZE, offset))
            offset += pages * PAGE_SIZE
    elif kind in _BY_BITMAP:
        name, wanted = f"32-bit crash dump ({_BY_BITMAP[kind]})", _bitmap_runs(file, PAGE_SIZE)
    else:
        raise FormatError(
            f"{file.path} is a 32-bit crash dump of type {kind} ({_OTHERS.get(kind, 'unknown')}); "
            "types 1, 2, 5 and 6 are read"
        )
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} is a crash dump without pages")
    return PhysicalImage(PhysicalMemory(runs), name, [registers32(header)], warnings)


def registers32(header: bytes) -> Mapping[str, int]:
    """As `crashheader.registers`, of a DUMP_HEADER32; registers by the names of their 64-bit forms."""
    table, _, modules, processes = struct.unpack_from("<4I", header, 0x10)
    (block,) = struct.unpack_from("<I", header, 0x60)
    found = {"cr3": table, "nt_address": modules or processes or block, "pae": header[0x5C]}
    values = struct.unpack_from("<16I", header, _CONTEXT32 + _SEG_GS32)
    if values[_CONTEXT32_REGISTERS.index("rip")]:
        found |= zip(_CONTEXT32_REGISTERS, values, strict=True)
    return found


def _runs(file: ImageFile, header: bytes) -> Iterator[tuple[int, int, int]]:
    count = int.from_bytes(header[crashheader.RUN_COUNT : crashheader.RUN_COUNT + 4], "little")
    if not 0 < count <= crashheader.MOST_RUNS + 1:  # QEMU's reader takes one more than fits whole
        raise FormatError(f"{file.path}: the crash dump's header tells of {count} memory runs")
    offset = crashheader.SIZE
    for number in range(count):
        page, pages = struct.unpack_from("<QQ", header, crashheader.RUNS + 16 * number)
        if page + pages > _MOST_PAGES:
            raise FormatError(f"{file.path}: memory run {number} has {pages:#x} pages at page {page:#x}")
        yield page * PAGE_SIZE, pages * PAGE_SIZE, offset
        offset += pages * PAGE_SIZE


def _bitmap_runs(file: ImageFile, at: int) -> list[tuple[int, int, int]]:
    signature = bytes(file.at(at, 8, "the bitmap's header"))
    if signature not in (b"SDMPDUMP", b"FDMPDUMP"):
        raise FormatError(f"{file.path}: the bitmap's header begins with {signature!r}, not with SDMPDUMP or FDMPDUMP")
    first = file.u64(at + _FIRST_PAGE, "the first page's offset")
    pages = file.u64(at + _PAGES, "the number of pages")
    if pages > _MOST_PAGES:
        raise FormatError(f"{file.path}: the bitmap has {pages:#x} pages")
    bitmap = file.at(at + _BITMAP, (pages + 7) // 8, "the bitmap")
    starts, ends = _set_bits(bitmap, pages)
    if len(starts) > _MOST_RUNS:
        raise FormatError(f"{file.path}: the bitmap has {len(starts)} runs of pages; {_MOST_RUNS} are the most")
    sizes = ends - starts
    offsets = first + (np.cumsum(sizes) - sizes) * PAGE_SIZE
    return [
        (int(start) * PAGE_SIZE, int(size) * PAGE_SIZE, int(offset))
        for start, size, offset in zip(starts, sizes, offsets, strict=True)
    ]


def _set_bits(bitmap: memoryview, pages: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each run of set bits starts and ends among the first `pages` bits; stops looking beyond `_MOST_RUNS`."""
    found: list[NDArray[np.int64]] = []
    before, count = 0, 0
    for start in range(0, len(bitmap), _CHUNK):
        part = np.frombuffer(bitmap[start : start + _CHUNK], dtype=np.uint8)
        if not before and not part.any():
            continue
        bits = np.unpackbits(part, bitorder="little")[: pages - 8 * start].view(np.int8)
        edges = np.flatnonzero(np.diff(bits, prepend=np.int8(before))) + 8 * start
        found.append(edges)
        before, count = int(bits[-1]), count + len(edges)
        if count > 2 * _MOST_RUNS:
            break
    edges = np.concatenate([*found, np.array([pages] if before else [], dtype=np.int64)])
    return edges[::2], edges[1 : len(edges) // 2 * 2 : 2]
