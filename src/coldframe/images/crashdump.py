"""Windows crash dumps of x64 systems: complete (type 1) and by bitmap (types 2, 5 and 6).

Source: the header is documented by its readers, such as kdmp-parser (`kdmp-parser-structs.h`) and Volatility; a
type 1 dump has the pages of each run of PHYSICAL_MEMORY_DESCRIPTOR one after the other, a bitmap dump those pages
whose bit is set. No public PDB has `DUMP_HEADER64`, so its offsets are numbers here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PAGE_SIZE, PhysicalMemory

MAGIC, MAGIC32 = b"PAGEDU64", b"PAGEDUMP"
_HEADER_SIZE = 0x2000
_DIRECTORY_TABLE, _MODULE_LIST, _PROCESS_HEAD, _MACHINE, _DEBUGGER_BLOCK = 0x10, 0x20, 0x28, 0x30, 0x80
_RUN_COUNT, _RUNS = 0x88, 0x98
_CONTEXT, _DUMP_TYPE = 0x348, 0xF98
_MOST_RUNS_IN_HEADER = (_CONTEXT - _RUNS) // 16
_FULL = 1
_BY_BITMAP = {2: "kernel", 5: "bitmap", 6: "live kernel"}
_OTHERS = {4: "triage (mini) dump", 8: "kernel dump", 9: "kernel and user dump", 10: "complete dump"}
# The bitmap's header follows the dump's
_FIRST_PAGE, _PAGES, _BITMAP = 0x20, 0x30, 0x38
_MOST_PAGES = 1 << 34
_MOST_RUNS = 1 << 21
_AMD64 = 0x8664
# CONTEXT of winnt.h (AMD64): the integer registers from Rax on, in order, then Rip
_CONTEXT_REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
_CONTEXT_RAX, _CONTEXT_FLAGS, _CONTEXT_SEGMENTS = 0x78, 0x44, 0x38


def open_crash_dump(file: ImageFile) -> PhysicalImage:
    """The pages of a 64-bit crash dump; raises `FormatError` for kinds that hold no physical memory."""
    if bytes(file.data[:8]) == MAGIC32:
        raise FormatError(f"{file.path} is a crash dump of a 32-bit Windows, which is not read yet")
    header = bytes(file.at(0, _HEADER_SIZE, "the crash dump's header"))
    machine = int.from_bytes(header[_MACHINE : _MACHINE + 4], "little")
    if machine != _AMD64:
        raise FormatError(f"{file.path} is a crash dump of machine {machine:#x}; only x64 (0x8664) is read")
    kind = int.from_bytes(header[_DUMP_TYPE : _DUMP_TYPE + 4], "little")
    warnings: list[str] = []
    if kind == _FULL:
        name, wanted = "crash dump (complete)", list(_runs(file, header))
    elif kind in _BY_BITMAP:
        name, wanted = f"crash dump ({_BY_BITMAP[kind]})", _bitmap_runs(file)
    else:
        raise FormatError(
            f"{file.path} is a crash dump of type {kind} ({_OTHERS.get(kind, 'unknown')}); types 1, 2, 5 and 6 are read"
        )
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} is a crash dump without pages")
    return PhysicalImage(PhysicalMemory(runs), name, [_registers(header)], warnings)


def _runs(file: ImageFile, header: bytes) -> Iterator[tuple[int, int, int]]:
    count = int.from_bytes(header[_RUN_COUNT : _RUN_COUNT + 4], "little")
    if not 0 < count <= _MOST_RUNS_IN_HEADER:
        raise FormatError(f"{file.path}: the crash dump's header tells of {count} memory runs")
    offset = _HEADER_SIZE
    for number in range(count):
        page, pages = struct.unpack_from("<QQ", header, _RUNS + 16 * number)
        if page + pages > _MOST_PAGES:
            raise FormatError(f"{file.path}: memory run {number} has {pages:#x} pages at page {page:#x}")
        yield page * PAGE_SIZE, pages * PAGE_SIZE, offset
        offset += pages * PAGE_SIZE


def _bitmap_runs(file: ImageFile) -> list[tuple[int, int, int]]:
    signature = bytes(file.at(_HEADER_SIZE, 8, "the bitmap's header"))
    if signature not in (b"SDMPDUMP", b"FDMPDUMP"):
        raise FormatError(f"{file.path}: the bitmap's header begins with {signature!r}, not with SDMPDUMP or FDMPDUMP")
    first = file.u64(_HEADER_SIZE + _FIRST_PAGE, "the first page's offset")
    pages = file.u64(_HEADER_SIZE + _PAGES, "the number of pages")
    if pages > _MOST_PAGES:
        raise FormatError(f"{file.path}: the bitmap has {pages:#x} pages")
    bitmap = np.frombuffer(file.at(_HEADER_SIZE + _BITMAP, (pages + 7) // 8, "the bitmap"), dtype=np.uint8)
    bits = np.unpackbits(bitmap, bitorder="little")[:pages].view(np.int8)
    edges = np.flatnonzero(np.diff(bits, prepend=np.int8(0), append=np.int8(0)))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) > _MOST_RUNS:
        raise FormatError(f"{file.path}: the bitmap has {len(starts)} runs of pages; {_MOST_RUNS} are the most")
    sizes = ends - starts
    offsets = first + (np.cumsum(sizes) - sizes) * PAGE_SIZE
    return [
        (int(start) * PAGE_SIZE, int(size) * PAGE_SIZE, int(offset))
        for start, size, offset in zip(starts, sizes, offsets, strict=True)
    ]


def _registers(header: bytes) -> Mapping[str, int]:
    """The registers of the processor that wrote the dump, and a pointer into the kernel for finding it."""
    table, _, modules, processes = struct.unpack_from("<4Q", header, _DIRECTORY_TABLE)
    (block,) = struct.unpack_from("<Q", header, _DEBUGGER_BLOCK)
    registers = {"cr3": table, "nt_address": modules or processes or block}
    values = struct.unpack_from("<17Q", header, _CONTEXT + _CONTEXT_RAX)
    if values[-1]:
        registers |= zip(_CONTEXT_REGISTERS, values, strict=True)
        (registers["eflags"],) = struct.unpack_from("<I", header, _CONTEXT + _CONTEXT_FLAGS)
        names = ("cs", "ds", "es", "fs", "gs", "ss")
        registers |= zip(names, struct.unpack_from("<6H", header, _CONTEXT + _CONTEXT_SEGMENTS), strict=True)
    return registers
