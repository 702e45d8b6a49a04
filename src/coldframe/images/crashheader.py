"""`DUMP_HEADER64`: what begins a Windows crash dump of an x64 system, read and made.

Source: the readers of the format (kdmp-parser's `kdmp-parser-structs.h`, Volatility's `crash64.json`, QEMU's
`win_dump_defs.h`). No public PDB has the structure, so its offsets are numbers here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAGIC = b"PAGEDU64"
SIZE = 0x2000
AMD64 = 0x8664
FULL, BITMAP = 1, 5

DIRECTORY_TABLE, MACHINE, DEBUGGER_BLOCK = 0x10, 0x30, 0x80
RUN_COUNT, RUNS, CONTEXT, DUMP_TYPE = 0x88, 0x98, 0x348, 0xF98
MOST_RUNS = 42
"""Of PHYSICAL_MEMORY_DESCRIPTOR's 700 bytes, 16 are counts and a run takes 16."""

BUGCHECK, _EXCEPTION, _REQUIRED_SPACE, _COMMENT, _UP_TIME, _PRODUCT = 0x38, 0xF00, 0xFA0, 0xFB0, 0x1030, 0x1040
_COMMENT_SIZE = 128
CONTEXT_SIZE = 0x4D0
# CONTEXT of winnt.h (AMD64): the integer registers from Rax on, in order, then Rip
_INTEGERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
_SELECTORS = ("cs", "ds", "es", "fs", "gs", "ss")
_FLAGS, _MXCSR, _SEGMENTS, _EFLAGS, _RAX, _MXCSR_SAVED = 0x30, 0x34, 0x38, 0x44, 0x78, 0x118
_CONTROL_INTEGER_SEGMENTS = 0x100007  # CONTEXT_AMD64 with what the registers tell
_DEFAULT_MXCSR = 0x1F80
_STATUS_BREAKPOINT = 0x80000003
LIVE_SYSTEM_DUMP = 0x161  # the bugcheck code of a dump of a system that did not crash


@dataclass(frozen=True, slots=True)
class CrashHeader:
    """What the header tells of the system; addresses are the kernel's virtual ones, times in units of 100 ns.

    `major_version` is 15 for a free build, `minor_version` the build number. `pfn_database` is the value of
    nt!MmPfnDatabase (KeInitializeCrashDumpHeader's).
    """

    directory_table: int
    pfn_database: int = 0
    loaded_modules: int = 0
    active_processes: int = 0
    debugger_block: int = 0
    processors: int = 1
    major_version: int = 15
    minor_version: int = 0
    bugcheck: Sequence[int] = (LIVE_SYSTEM_DUMP, 0, 0, 0, 0)
    system_time: int = 0
    up_time: int = 0
    product_type: int = 0
    suite_mask: int = 0
    comment: str = "written by coldframe"
    registers: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The header, as yet without memory runs (see `with_memory`)."""
        data = bytearray(SIZE)
        struct.pack_into("<8sII", data, 0, MAGIC, self.major_version, self.minor_version)
        struct.pack_into(
            "<4QII", data, DIRECTORY_TABLE,
            self.directory_table, self.pfn_database, self.loaded_modules, self.active_processes, AMD64, self.processors,
        )  # fmt: skip
        struct.pack_into("<I4xQQQQ", data, BUGCHECK, *self.bugcheck)
        struct.pack_into("<Q", data, DEBUGGER_BLOCK, self.debugger_block)
        struct.pack_into("<Q", data, _REQUIRED_SPACE + 8, self.system_time)
        data[_COMMENT : _COMMENT + _COMMENT_SIZE] = self.comment.encode("ascii", "replace")[: _COMMENT_SIZE - 1].ljust(
            _COMMENT_SIZE, b"\0"
        )
        struct.pack_into("<Q", data, _UP_TIME, self.up_time)
        struct.pack_into("<II", data, _PRODUCT, self.product_type, self.suite_mask)
        if self.registers.get("rip"):
            data[CONTEXT : CONTEXT + CONTEXT_SIZE] = context(self.registers)
            record = (_STATUS_BREAKPOINT, 0, 0, self.registers["rip"] & 0xFFFF_FFFF_FFFF_FFFF, 0)
            struct.pack_into("<IIQQI", data, _EXCEPTION, *record)
        return bytes(data)


def context(registers: Mapping[str, int]) -> bytes:
    """A CONTEXT with these registers; those not named are 0."""

    def word(name: str) -> int:
        return registers.get(name, 0) & 0xFFFF_FFFF_FFFF_FFFF

    data = bytearray(CONTEXT_SIZE)
    mxcsr = registers.get("mxcsr", _DEFAULT_MXCSR) & 0xFFFF_FFFF
    struct.pack_into("<II", data, _FLAGS, _CONTROL_INTEGER_SEGMENTS, mxcsr)
    struct.pack_into("<I", data, _MXCSR_SAVED, mxcsr)
    struct.pack_into("<6H", data, _SEGMENTS, *(word(name) & 0xFFFF for name in _SELECTORS))
    struct.pack_into("<I", data, _EFLAGS, word("eflags") & 0xFFFF_FFFF)
    struct.pack_into("<17Q", data, _RAX, *(word(name) for name in _INTEGERS))
    return bytes(data)


def with_memory(header: bytes, kind: int, runs: Sequence[tuple[int, int]], pages: int, size: int) -> bytes:
    """`header` for a dump of type `kind` and `size` bytes; `runs` are (first page, pages), at most `MOST_RUNS`."""
    data = bytearray(header)
    data[RUN_COUNT:CONTEXT] = bytes(CONTEXT - RUN_COUNT)
    struct.pack_into("<IIQ", data, RUN_COUNT, len(runs), 0, pages)
    for number, run in enumerate(runs):
        struct.pack_into("<QQ", data, RUNS + 16 * number, *run)
    struct.pack_into("<I", data, DUMP_TYPE, kind)
    struct.pack_into("<Q", data, _REQUIRED_SPACE, size)
    return bytes(data)


def registers(header: bytes) -> Mapping[str, int]:
    """The registers of the processor that wrote the dump, and a pointer into the kernel for finding it."""
    table, _, modules, processes = struct.unpack_from("<4Q", header, DIRECTORY_TABLE)
    (block,) = struct.unpack_from("<Q", header, DEBUGGER_BLOCK)
    found = {"cr3": table, "nt_address": modules or processes or block}
    values = struct.unpack_from("<17Q", header, CONTEXT + _RAX)
    if values[-1]:
        found |= zip(_INTEGERS, values, strict=True)
        (found["eflags"],) = struct.unpack_from("<I", header, CONTEXT + _EFLAGS)
        found |= zip(_SELECTORS, struct.unpack_from("<6H", header, CONTEXT + _SEGMENTS), strict=True)
    return found
