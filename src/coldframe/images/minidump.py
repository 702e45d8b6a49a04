"""User-mode minidumps (`.dmp`, `.mdmp`) of one process with all of its memory, for WinDbg and its kin.

Format: MINIDUMP_HEADER and the streams of minidumpapiset.h
(https://learn.microsoft.com/windows/win32/api/minidumpapiset/); CONTEXT is winnt.h's for the process' machine.
Everything but the memory lies in the file's first 4 GB, memory comes last, its ranges one after the other
(Memory64ListStream).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coldframe.images.context import CONTEXT32, CONTEXT64
from coldframe.memory import PAGE_SIZE

MAGIC = b"MDMP"
MEM_COMMIT, MEM_RESERVE = 0x1000, 0x2000
MEM_PRIVATE, MEM_MAPPED, MEM_IMAGE = 0x20000, 0x40000, 0x1000000
_VERSION = 0xA793
_WITH_FULL_MEMORY, _WITH_FULL_MEMORY_INFO = 0x2, 0x800
_THREADS, _MODULES, _SYSTEM, _MEMORY, _MISC, _MEMORY_INFO = 3, 4, 7, 9, 15, 16
_HEADER, _DIRECTORY = struct.Struct("<4sHHIIIIQ"), struct.Struct("<III")
_SYSTEM_INFO = struct.Struct("<HHHBBIIIIIHHQQQ")
_THREAD, _MODULE = struct.Struct("<IIIIQQIIII"), struct.Struct("<QIIII52sIIIIQQ")
_MISC_INFO, _REGION = struct.Struct("<6I"), struct.Struct("<QQI4xQIII4x")
_RANGE = struct.Struct("<QQ")
_VER_PLATFORM_WIN32_NT = 2
X86, X64 = 0, 9
"""PROCESSOR_ARCHITECTURE_INTEL and PROCESSOR_ARCHITECTURE_AMD64."""
_CONTEXTS = {X86: CONTEXT32, X64: CONTEXT64}
_HAS_PROCESS_ID, _HAS_TIMES = 1, 2


@dataclass(frozen=True, slots=True)
class MinidumpModule:
    """An image: `name` is its path, `rsds` its CodeView record (`RSDS`, GUID, age, name) or empty."""

    name: str
    base: int
    size: int
    timestamp: int = 0
    rsds: bytes = b""


@dataclass(frozen=True, slots=True)
class MinidumpThread:
    """A thread; `registers` may be empty where they are not known."""

    tid: int
    teb: int = 0
    registers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MinidumpRegion:
    """What VirtualQuery would tell of a range: MEM_ state and type, PAGE_ protection."""

    base: int
    size: int
    allocation: int
    protection: int
    state: int
    type: int


@dataclass(frozen=True, slots=True)
class MinidumpProcess:
    """What a minidump tells of a process beside its memory; times in seconds since 1970.

    `machine` is X64 or X86.
    """

    pid: int
    machine: int = X64
    version: tuple[int, int, int] = (0, 0, 0)
    product_type: int = 1
    suite_mask: int = 0
    processors: int = 1
    created: int = 0
    written: int = 0
    threads: Sequence[MinidumpThread] = ()
    modules: Sequence[MinidumpModule] = ()
    regions: Sequence[MinidumpRegion] = ()


def minidump_head(process: MinidumpProcess, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, int]:
    """What comes before the memory, whose `ranges` (address, size) follow one another, and where that begins."""
    parts: list[bytes] = []
    streams: list[tuple[int, int, int]] = []
    kinds = (_SYSTEM, _MISC, _THREADS, _MODULES, _MEMORY_INFO, _MEMORY)
    offset = _HEADER.size + _DIRECTORY.size * len(kinds)

    def put(data: bytes) -> int:
        nonlocal offset
        parts.append(data + bytes(-len(data) % 8))
        offset += len(parts[-1])
        return offset - len(parts[-1])

    def stream(kind: int, data: bytes) -> None:
        streams.append((kind, len(data), put(data)))

    stream(_SYSTEM, _system(process, put(struct.pack("<I", 0) + b"\0\0")))
    flags = _HAS_PROCESS_ID | (_HAS_TIMES if process.created else 0)
    stream(_MISC, _MISC_INFO.pack(_MISC_INFO.size, flags, process.pid, process.created & 0xFFFFFFFF, 0, 0))
    threads, form = [], _CONTEXTS[process.machine]
    for thread in process.threads:
        at = put(form.pack(thread.registers)) if thread.registers else 0
        size = form.size if at else 0
        stack = thread.registers.get("rsp", 0)
        threads.append(_THREAD.pack(thread.tid & 0xFFFFFFFF, 0, 0, 0, thread.teb, stack, 0, 0, size, at))
    stream(_THREADS, struct.pack("<I", len(threads)) + b"".join(threads))
    modules = []
    for module in process.modules:
        text = module.name.encode("utf-16-le", "replace")
        name = put(struct.pack("<I", len(text)) + text + b"\0\0")
        record = put(module.rsds) if module.rsds else 0
        modules.append(
            _MODULE.pack(
                module.base, module.size & 0xFFFFFFFF, 0, module.timestamp & 0xFFFFFFFF, name, bytes(52),
                len(module.rsds), record, 0, 0, 0, 0,
            )
        )  # fmt: skip
    stream(_MODULES, struct.pack("<I", len(modules)) + b"".join(modules))
    regions = [
        _REGION.pack(region.base, region.allocation, region.protection, region.size, region.state,
                     region.protection if region.state == MEM_COMMIT else 0, region.type)
        for region in process.regions
    ]  # fmt: skip
    stream(_MEMORY_INFO, struct.pack("<IIQ", 16, _REGION.size, len(regions)) + b"".join(regions))
    size = 16 + _RANGE.size * len(ranges)
    first = -(-(offset + size) // PAGE_SIZE) * PAGE_SIZE
    stream(_MEMORY, struct.pack("<QQ", len(ranges), first) + b"".join(_RANGE.pack(*found) for found in ranges))
    told = _WITH_FULL_MEMORY | _WITH_FULL_MEMORY_INFO
    head = _HEADER.pack(MAGIC, _VERSION, 0, len(streams), _HEADER.size, 0, process.written & 0xFFFFFFFF, told)
    directory = b"".join(_DIRECTORY.pack(*found) for found in streams)
    return (head + directory + b"".join(parts)).ljust(first, b"\0"), first


def _system(process: MinidumpProcess, service_pack: int) -> bytes:
    major, minor, build = process.version
    return _SYSTEM_INFO.pack(
        process.machine, 0, 0, min(process.processors, 255), process.product_type & 0xFF, major, minor, build,
        _VER_PLATFORM_WIN32_NT, service_pack, process.suite_mask & 0xFFFF, 0, 0, 0, 0,
    )  # fmt: skip
