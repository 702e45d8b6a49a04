"""Processes from more than one place: what the kernel's list of active processes lacks is found beside it.

A process that was unlinked from nt!PsActiveProcessHead, or that has exited and left it, still has its identifier in
nt!PspCidTable (a handle table whose entries point at the bodies of processes and threads) until its object goes. Its
threads have theirs there and name it, and its handle table is on nt!HandleTableListHead. Its `_EPROCESS` stays in RAM
even longer, until the pool is used again: two scans find it there, one by a structure within it, one by its pool block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PAGE_SIZE
from coldframe.symbols.model import Enum
from coldframe.windows.handle import HandleTable
from coldframe.windows.process import Process, Thread

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

LIST = "list"
CID_TABLE = "cid table"
THREADS = "threads"
HANDLE_TABLES = "handle tables"
SCAN = "scan"
POOL = "pool"

_CHUNK = 16 << 20
_TAG, _PROC = 0x7FFF_FFFF, int.from_bytes(b"Proc", "little")  # the upper bit marks a protected block (up to 7)
_MOST_OPTIONAL_HEADERS = 0x100
_SELF_LISTS = ("Pcb.Header.WaitListHead", "Pcb.ProfileListHead")
_PROCESS_OBJECT = 3  # KOBJECTS, for kernels whose types leave it out
_LARGEST_PID = 1 << 32


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process, and the places that it was found in.

    `list` (PsActiveProcessHead), `cid table`, `threads` (of the CID table), `handle tables`; by a scan of RAM `scan`
    (an `_EPROCESS` that the kernel's tables map) and `pool` (a pool block tagged "Proc").
    """

    process: Process
    found_by: tuple[str, ...]


def sightings(guest: Guest, *, scan: bool = False) -> tuple[Sighting, ...]:
    """Every process of every source: the list's in its order, then the others by pid; see `Guest.sightings`."""
    found: dict[Process, list[str]] = {process: [LIST] for process in guest.processes}
    listed = len(found)
    sources = {CID_TABLE: cid_processes, THREADS: thread_owners, HANDLE_TABLES: table_owners}
    if scan:
        sources |= {SCAN: scanned_processes, POOL: pool_processes}
    for name, source in sources.items():
        for process in dict.fromkeys(source(guest)):
            found.setdefault(process, []).append(name)
    ordered = list(found)
    ordered[listed:] = sorted(ordered[listed:], key=lambda process: process.pid)
    return tuple(Sighting(process, tuple(found[process])) for process in ordered)


def cid_processes(guest: Guest) -> Iterator[Process]:
    """The processes in nt!PspCidTable, by identifier; none where the table cannot be had (a warning tells why)."""
    for cid, body in _cid_bodies(guest):
        process = _process(guest, body, cid)
        if process is not None:
            yield process


def thread_owners(guest: Guest) -> Iterator[Process]:
    """The processes that the threads in nt!PspCidTable belong to."""
    for tid, body in _cid_bodies(guest):
        try:
            if _type_of(guest, body) == "Thread":
                thread = Thread(guest, guest.struct("_ETHREAD", body))
                owner = thread.process.eprocess.address
                process = (
                    _process(guest, owner, thread.ethread.integer("Cid.UniqueProcess")) if thread.tid == tid else None
                )
                if process is not None:
                    yield process
        except UnreadableMemoryError:
            continue


def _cid_bodies(guest: Guest) -> Iterator[tuple[int, int]]:
    """Each identifier in nt!PspCidTable and the address that its entry holds."""
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
            yield cid, table.pointer_of(entry)
    except UnreadableMemoryError as error:
        guest.warn(f"nt!PspCidTable: {error}")


def table_owners(guest: Guest) -> Iterator[Process]:
    """The processes that the handle tables on nt!HandleTableListHead belong to."""
    head, types = guest.variable("HandleTableListHead"), guest.types
    needed = ("HandleTableList", "QuotaProcess")
    if head is None or not all(types.has_field("_HANDLE_TABLE", name) for name in needed):
        return
    try:
        for table in guest.list_entries(head, "_HANDLE_TABLE", "HandleTableList"):
            process = _process(guest, table.integer("QuotaProcess"))
            if process is not None and process.eprocess.integer("ObjectTable") == table.address:
                yield process
    except UnreadableMemoryError as error:
        guest.warn(f"nt!HandleTableListHead: {error}")


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
        process = _process(guest, body, scanned=True)
        if process is not None:
            yield process


def _empty_lists(guest: Guest, offset: int) -> Iterator[tuple[int, int]]:
    """Physical and virtual address of each `_LIST_ENTRY` of the kernel that points at itself, `offset` into a block.

    The pool's blocks are aligned to two pointers (wdm.h, ExAllocatePoolWithTag: 16 bytes on 64-bit Windows, else 8).
    """
    import numpy as np  # noqa: PLC0415 - slow to load

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


def pool_processes(guest: Guest) -> Iterator[Process]:
    """The processes in pool blocks tagged "Proc", by physical address; as `scanned_processes`, where they are mapped.

    Between a block's header and the object's body lie the object's header and optional ones, so the body is looked for
    behind each number of them. A list in the body that is empty points at itself, and so tells the virtual address.
    """
    types = guest.types
    if "_POOL_HEADER" not in types:
        guest.warn("the kernel's types have no _POOL_HEADER: processes are not looked for by the pool's tags")
        return
    step = 2 * types.pointer_size
    least = types.size("_POOL_HEADER") + types.offset("_OBJECT_HEADER", "Body")
    lists = [types.offset("_EPROCESS", path) for path in _SELF_LISTS if types.has_field("_EPROCESS", path)]
    for block in _tagged_blocks(guest, types.offset("_POOL_HEADER", "PoolTag")):
        for body in range(block + least, block + least + _MOST_OPTIONAL_HEADERS, step):
            process = next(filter(None, (_process_at(guest, body, offset) for offset in lists)), None)
            if process is not None:
                yield process
                break


def _process_at(guest: Guest, physical: int, offset: int) -> Process | None:
    """The process whose body is at `physical`, if the list `offset` behind points at itself where that is mapped."""
    try:
        links = guest.physical.read(physical + offset, 2 * guest.types.pointer_size)
    except UnreadableMemoryError:
        return None
    flink, blink = links[: len(links) // 2], links[len(links) // 2 :]
    address = int.from_bytes(flink, "little") - offset
    if flink != blink or address < guest.kernel_start or (address ^ physical) % PAGE_SIZE:
        return None
    return _process(guest, address, scanned=True) if guest.resolver.translate(guest.dtb, address) == physical else None


def _tagged_blocks(guest: Guest, offset: int) -> Iterator[int]:
    """The physical address of each aligned place whose pool tag, `offset` behind it, is a process's."""
    import numpy as np  # noqa: PLC0415 - slow to load

    step = 2 * guest.types.pointer_size
    for run in guest.physical.runs:
        for at in range(run.start, run.end - step + 1, _CHUNK):
            try:
                words = guest.physical.view(at, min(_CHUNK, run.end - at) // step * step).view("<u4")
            except UnreadableMemoryError as error:
                guest.warn(f"scan of the pool: {error}")
                continue
            tags = words.reshape(-1, step // 4)[:, offset // 4]
            for place in np.flatnonzero((tags & _TAG) == _PROC):
                yield at + int(place) * step


def _type_of(guest: Guest, body: int) -> str:
    header = guest.struct("_OBJECT_HEADER", body - guest.types.offset("_OBJECT_HEADER", "Body"))
    return guest.objects.type_name(header)


def _process(guest: Guest, body: int, pid: int | None = None, *, scanned: bool = False) -> Process | None:
    """The process at `body`, if what is there is one (that with `pid`): its object header says so.

    One that was `scanned` for, where no pointer led, has to say more of itself.
    """
    if body < guest.kernel_start:
        return None
    try:
        if _type_of(guest, body) != "Process":
            return None
        process = Process(guest, guest.struct("_EPROCESS", body))
        if scanned and not (_is_dispatched_as_process(process) and 0 < process.pid < _LARGEST_PID):
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
