"""What a dump of one process tells beside its pages: threads' registers, images, files, and what its VADs protect."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coldframe.errors import ColdframeError, TypeNotFoundError, UnreadableMemoryError
from coldframe.images.minidump import (
    MEM_COMMIT,
    MEM_IMAGE,
    MEM_MAPPED,
    MEM_PRIVATE,
    MEM_RESERVE,
    X64,
    X86,
    MinidumpModule,
    MinidumpProcess,
    MinidumpRegion,
    MinidumpThread,
)
from coldframe.windows.crashfacts import shared_data
from coldframe.windows.processor import processor_blocks

if TYPE_CHECKING:
    from coldframe.symbols.model import PdbIdentity
    from coldframe.windows import Guest, Process, Thread
    from coldframe.windows.vad import Vad

_LONG = 8  # bytes of a pointer of 64-bit Windows
_MOST_THREADS, _MOST_MODULES = 1 << 15, 1 << 14
_LONGEST_NAME = 1 << 10
# winnt.h
_PROTECTIONS: Mapping[str, int] = {
    "PAGE_NOACCESS": 0x01,
    "PAGE_READONLY": 0x02,
    "PAGE_READWRITE": 0x04,
    "PAGE_WRITECOPY": 0x08,
    "PAGE_EXECUTE": 0x10,
    "PAGE_EXECUTE_READ": 0x20,
    "PAGE_EXECUTE_READWRITE": 0x40,
    "PAGE_EXECUTE_WRITECOPY": 0x80,
    "PAGE_GUARD": 0x100,
    "PAGE_NOCACHE": 0x200,
    "PAGE_WRITECOMBINE": 0x400,
}
_KINDS: Mapping[str, int] = {"Private": MEM_PRIVATE, "Mapped": MEM_MAPPED, "Image": MEM_IMAGE}
_PF_X, _PF_W, _PF_R = 1, 2, 4
# What KiSystemCall64 and the trap entries save of user mode in _KTRAP_FRAME; r12 to r15 stay on the kernel's stack
_TRAP_REGISTERS: Mapping[str, str] = {
    **{name: name.capitalize() for name in ("rip", "rsp", "rbp", "rbx", "rsi", "rdi", "rax", "rcx", "rdx")},
    **{f"r{number}": f"R{number}" for number in range(8, 12)},
    "eflags": "EFlags",
    "cs": "SegCs",
    "ss": "SegSs",
}
# The x86 one, on a trap out of user mode
_TRAP_REGISTERS32: Mapping[str, str] = {
    **{f"r{name}": f"E{name}" for name in ("ip", "bp", "bx", "si", "di", "ax", "cx", "dx")},
    **{segment: f"Seg{segment.capitalize()}" for segment in ("cs", "ds", "es", "fs", "gs")},
    "rsp": "HardwareEsp",
    "eflags": "EFlags",
    "ss": "HardwareSegSs",
}


@dataclass(frozen=True, slots=True)
class KnownThread:
    """A thread and its registers in user mode: `source` says where from, or why there are none."""

    tid: int
    teb: int
    registers: Mapping[str, int]
    source: str


def threads(process: Process) -> Iterator[KnownThread]:
    """The threads, each with the registers with which it would go on in user mode."""
    guest = process.guest
    running = {thread.ethread.address: (vcpu, guest.registers(vcpu)) for vcpu, thread in guest.running_threads()}
    try:
        for number, thread in enumerate(process.threads):
            if number >= _MOST_THREADS:
                guest.warn(f"{process!r}: more than {_MOST_THREADS} threads; the rest is left out")
                return
            try:
                tid, teb = thread.tid, thread.teb
            except UnreadableMemoryError:
                continue
            yield KnownThread(tid, teb, *_registers(thread, running.get(thread.ethread.address)))
    except UnreadableMemoryError as error:
        guest.warn(f"threads of {process!r}: {error}")


def _registers(thread: Thread, running: tuple[int, Mapping[str, int]] | None) -> tuple[Mapping[str, int], str]:
    if running is not None and 0 < running[1].get("rip", 0) < thread.guest.kernel_start:
        return running[1], f"vCPU {running[0]}"
    return user_registers(thread)


def trap_registers(guest: Guest) -> Mapping[str, str]:
    """The registers that a trap frame of this kernel holds of user mode, each with its field of `_KTRAP_FRAME`."""
    return _TRAP_REGISTERS if guest.types.pointer_size == _LONG else _TRAP_REGISTERS32


def user_registers(thread: Thread) -> tuple[Mapping[str, int], str]:
    """The registers with which a thread in the kernel goes on in user mode, and where from, or why there are none."""
    try:
        frame = thread.trap_frame
        if frame is None:
            return {}, "none: the thread has no trap frame"
        if frame.integer("SegCs") & 3 != 3:
            return {}, "none: its trap frame is not of user mode"
        found = {name: frame.integer(path) for name, path in trap_registers(thread.guest).items()}
    except (UnreadableMemoryError, TypeNotFoundError) as error:
        return {}, f"none: {error}"
    return found, "trap frame"


def committed_ranges(process: Process) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
    """Start, end and whether what its empty PTEs stand for is committed, of each VAD; by address."""
    rows = [(vad.start, vad.end, not vad.private or _committed(vad)) for vad in _vads(process)]
    starts = np.array([start for start, _, _ in rows], dtype=np.uint64)
    ends = np.array([end for _, end, _ in rows], dtype=np.uint64)
    return starts, ends, np.array([whole for _, _, whole in rows], dtype=np.bool_)


def _committed(vad: Vad) -> bool:
    """Whether the range was committed as it was reserved; so for a kernel whose types do not tell."""
    told = any(vad.short.has(path) for path in ("u1.VadFlags1.MemCommit", "u.VadFlags.MemCommit"))
    return vad.committed or not told


def _vads(process: Process) -> list[Vad]:
    """The VADs that can be read, by address; of those that overlap the first."""
    found: list[Vad] = []
    for vad in process.vads:
        try:
            _ = vad.private, vad.protection
        except UnreadableMemoryError as error:
            process.guest.warn(f"VADs of {process!r}: {error}")
            continue
        if vad.start < vad.end and (not found or found[-1].end <= vad.start):
            found.append(vad)
    return found


def elf_flags(process: Process) -> Callable[[int], int]:
    """The PF_ flags of the page at an address, as its VAD was protected."""
    vads = _vads(process)
    starts = [vad.start for vad in vads]
    flags = [_flags(vad.protection) for vad in vads]

    def of(address: int) -> int:
        index = bisect_right(starts, address) - 1
        return flags[index] if index >= 0 and address in vads[index] else _PF_R

    return of


def _flags(protection: str) -> int:
    access = protection.partition("|")[0]
    return _PF_R | (_PF_X if "EXECUTE" in access else 0) | (_PF_W if "WRITE" in access else 0)


def files(process: Process) -> list[tuple[int, int, str]]:
    """The files that are mapped, as (start, end, name)."""
    found = []
    for vad in _vads(process):
        try:
            name = vad.file
        except ColdframeError:
            continue
        if name:
            found.append((vad.start, vad.end, name[:_LONGEST_NAME]))
    return found


def minidump_process(
    process: Process, known: Sequence[KnownThread], ranges: Sequence[tuple[int, int]]
) -> MinidumpProcess:
    """What a minidump with the memory `ranges` (address, size) tells of `process`; what cannot be read is 0."""
    guest = process.guest
    shared = shared_data(guest)

    def told(path: str) -> int:
        try:
            return shared.integer(path)
        except (TypeNotFoundError, UnreadableMemoryError):
            return 0

    created = process.created
    written = told("SystemTime.LowPart") | told("SystemTime.High1Time") << 32  # FILETIME
    return MinidumpProcess(
        machine=X64 if guest.types.pointer_size == _LONG else X86,
        pid=process.pid & 0xFFFF_FFFF,
        version=(told("NtMajorVersion"), told("NtMinorVersion"), (guest.build or 0) & 0xFFFF_FFFF),
        product_type=_product(told("NtProductType")),
        suite_mask=told("SuiteMask"),
        processors=len(processor_blocks(guest)) or guest.vcpus or 1,
        created=int(created.timestamp()) if created is not None else 0,
        written=max(0, written // 10_000_000 - 11_644_473_600),
        threads=[MinidumpThread(thread.tid, thread.teb, thread.registers) for thread in known],
        modules=list(_modules(process)),
        regions=list(_regions(process, ranges)),
    )


def _product(told: int) -> int:
    """VER_NT_WORKSTATION to VER_NT_SERVER, which are the numbers of NT_PRODUCT_TYPE."""
    return told if told in (1, 2, 3) else 1


def _modules(process: Process) -> Iterator[MinidumpModule]:
    for module in process.modules[:_MOST_MODULES]:
        try:
            identity = module.pdb
        except ColdframeError:
            identity = None
        name = (module.path or module.name)[:_LONGEST_NAME]
        record = b"" if identity is None else _rsds(identity)
        yield MinidumpModule(name, module.base, module.size, module.timestamp, record)


def _rsds(identity: PdbIdentity) -> bytes:
    """The CodeView record that names the PDB."""
    guid = bytes.fromhex(identity.guid)
    first, second, third = struct.unpack(">IHH", guid[:8])
    head = b"RSDS" + struct.pack("<IHH", first, second, third) + guid[8:] + struct.pack("<I", identity.age)
    return head + identity.name.encode("utf-8", "replace") + b"\0"


def _regions(process: Process, ranges: Sequence[tuple[int, int]]) -> Iterator[MinidumpRegion]:
    """The VADs as VirtualQuery would tell them; of a range only reserved, what is written was committed later."""
    starts = [start for start, _ in ranges]
    for vad in _vads(process):
        protection = 0
        for word in vad.protection.split("|"):
            protection |= _PROTECTIONS.get(word, 0)
        reached, parts = vad.start, []
        if vad.private and not _committed(vad):
            index = max(bisect_right(starts, vad.start) - 1, 0)
            while index < len(ranges) and starts[index] < vad.end:
                low, high = max(starts[index], vad.start), min(sum(ranges[index]), vad.end)
                if low < high:
                    parts += [(reached, low, MEM_RESERVE), (low, high, MEM_COMMIT)]
                    reached = high
                index += 1
            parts.append((reached, vad.end, MEM_RESERVE))
        else:
            parts.append((vad.start, vad.end, MEM_COMMIT))
        for low, high, state in parts:
            if low < high:
                yield MinidumpRegion(low, high - low, vad.start, protection, state, _KINDS[vad.kind])
