"""Processes from more than one place: what the kernel's list of active processes lacks is found beside it.

A process that was unlinked from nt!PsActiveProcessHead, or that has exited and left it, still has its identifier in
nt!PspCidTable (a handle table whose entries point at the bodies of processes and threads) until its object goes. Its
`_EPROCESS` stays in RAM even longer, until the pool is used again: a scan finds it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.symbols.model import Enum
from coldframe.windows.handle import HandleTable
from coldframe.windows.process import Process

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

LIST = "list"
CID_TABLE = "cid table"
SCAN = "scan"

_CHUNK = 16 << 20
_PROCESS_OBJECT = 3  # KOBJECTS, for kernels whose types leave it out
_LARGEST_PID = 1 << 32


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process, and the places that it was found in: `list`, `cid table`, `scan`."""

    process: Process
    found_by: tuple[str, ...]


def sightings(guest: Guest, *, scan: bool = False) -> tuple[Sighting, ...]:
    """Every process of every source: the list's in its order, then the others by pid; see `Guest.sightings`."""
    found: dict[Process, list[str]] = {process: [LIST] for process in guest.processes}
    listed = len(found)
    for process in cid_processes(guest):
        found.setdefault(process, []).append(CID_TABLE)
    for process in scanned_processes(guest) if scan else ():
        found.setdefault(process, []).append(SCAN)
    ordered = list(found)
    ordered[listed:] = sorted(ordered[listed:], key=lambda process: process.pid)
    return tuple(Sighting(process, tuple(found[process])) for process in ordered)


def cid_processes(guest: Guest) -> Iterator[Process]:
    """The processes in nt!PspCidTable, by identifier; none where the table cannot be had (a warning tells why)."""
    variable = guest.variable("PspCidTable")
    if variable is None:
        guest.warn("the kernel's symbols have no PspCidTable: unlinked processes are not looked for there")
        return
    try:
        address = guest.typed.pointer(variable)
        if address < guest.kernel_start:
            guest.warn(f"nt!PspCidTable holds {address:#x}: unlinked processes are not looked for there")
            return
        table = HandleTable(guest, address)
        for cid, entry in table.entries():
            process = _process(guest, table.pointer_of(entry), cid)
            if process is not None:
                yield process
    except UnreadableMemoryError as error:
        guest.warn(f"nt!PspCidTable: {error}")


def scanned_processes(guest: Guest) -> Iterator[Process]:
    """The processes whose `_EPROCESS` lies in RAM where the kernel's page tables reach it, by physical address.

    Found by `Pcb.ProfileListHead`, an empty list (it points at itself) unless the process is being profiled: so the
    virtual address is known, and has to lead back to the same byte of RAM. Reads all RAM, about a second a gigabyte.
    """
    head = guest.types.offset("_EPROCESS", "Pcb.ProfileListHead")
    seen: set[int] = set()
    for physical, address in _empty_lists(guest, head):
        body = address - head
        if body in seen or guest.resolver.translate(guest.dtb, address) != physical:
            continue
        seen.add(body)
        process = _process(guest, body)
        if process is not None:
            yield process


def _empty_lists(guest: Guest, offset: int) -> Iterator[tuple[int, int]]:
    """Physical and virtual address of each `_LIST_ENTRY` of the kernel that points at itself, `offset` into a block.

    The pool's blocks are aligned to two pointers (wdm.h, ExAllocatePoolWithTag: 16 bytes on 64-bit Windows, else 8).
    """
    pointer = guest.types.pointer_size
    alignment = 2 * pointer
    start = offset % alignment
    for run in guest.physical.runs:
        for at in range(run.start + start, run.end - alignment + 1, _CHUNK):
            size = min(_CHUNK, run.end - at) // alignment * alignment
            try:
                links = guest.physical.view(at, size).view(f"<u{pointer}").reshape(-1, 2)
            except UnreadableMemoryError as error:
                guest.warn(f"scan for processes: {error}")
                continue
            flinks = links[:, 0]
            places = np.flatnonzero((flinks == links[:, 1]) & (flinks >= guest.kernel_start))
            found = [(at + int(place) * alignment, int(flinks[place])) for place in places]
            for physical, address in found:
                if not (physical ^ address) % PAGE_SIZE:
                    yield physical, address


def _process(guest: Guest, body: int, pid: int | None = None) -> Process | None:
    """The process at `body`, if what is there is one (that with `pid`): its object header says so."""
    if body < guest.kernel_start:
        return None
    try:
        header = guest.struct("_OBJECT_HEADER", body - guest.types.offset("_OBJECT_HEADER", "Body"))
        if guest.objects.type_name(header) != "Process":
            return None
        process = Process(guest, guest.struct("_EPROCESS", body))
        if pid is None and not (_is_dispatched_as_process(process) and 0 < process.pid < _LARGEST_PID):
            return None
        return process if pid in (None, process.pid) and is_plausible(process) else None
    except UnreadableMemoryError:
        return None


def _is_dispatched_as_process(process: Process) -> bool:
    """Whether the dispatcher header says "process", as waits on it rely on."""
    kinds = process.guest.types.find("_KOBJECTS")
    wanted = kinds.constants.get("ProcessObject", _PROCESS_OBJECT) if isinstance(kinds, Enum) else _PROCESS_OBJECT
    return process.eprocess.integer("Pcb.Header.Type") & 0x7F == wanted  # the upper bit is a lock


def is_plausible(process: Process) -> bool:
    """Whether an `_EPROCESS` can be one: page tables in RAM, a list of threads in the kernel's half.

    Raises `UnreadableMemoryError` where it is not in RAM itself. An exited process's page tables may have been given
    back, so then only the list of threads is asked.
    """
    threads = process.eprocess.struct("ThreadListHead")
    start = process.guest.kernel_start
    if threads.integer("Flink") < start or threads.integer("Blink") < start:
        return False
    return not process.alive or process.dtb in process.guest.physical
