"""Processes from more than one place in the kernel: what the list of active processes lacks is found beside it.

A process that was unlinked from nt!PsActiveProcessHead, or that has exited and left it, still has its identifier in
nt!PspCidTable (a handle table whose entries point at the bodies of processes and threads) until its object goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import UnreadableMemoryError
from coldframe.windows.handle import HandleTable
from coldframe.windows.kernel import KERNEL_HALF
from coldframe.windows.process import Process

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

LIST = "list"
CID_TABLE = "cid table"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process, and the places that it was found in: `list`, `cid table`."""

    process: Process
    found_by: tuple[str, ...]


def sightings(guest: Guest) -> tuple[Sighting, ...]:
    """Every process of every source: the list's in its order, then the others by pid."""
    found: dict[Process, list[str]] = {process: [LIST] for process in guest.processes}
    listed = len(found)
    for process in cid_processes(guest):
        found.setdefault(process, []).append(CID_TABLE)
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
        if address < KERNEL_HALF:
            guest.warn(f"nt!PspCidTable holds {address:#x}: unlinked processes are not looked for there")
            return
        table = HandleTable(guest, address)
        for cid, entry in table.entries():
            process = _process(guest, table.pointer_of(entry), cid)
            if process is not None:
                yield process
    except UnreadableMemoryError as error:
        guest.warn(f"nt!PspCidTable: {error}")


def _process(guest: Guest, body: int, pid: int) -> Process | None:
    """The process at `body`, if what is there is one: threads share the table."""
    if body < KERNEL_HALF:
        return None
    try:
        header = guest.struct("_OBJECT_HEADER", body - guest.types.offset("_OBJECT_HEADER", "Body"))
        if guest.objects.type_name(header) != "Process":
            return None
        process = Process(guest, guest.struct("_EPROCESS", body))
        return process if process.pid == pid and is_plausible(process) else None
    except UnreadableMemoryError:
        return None


def is_plausible(process: Process) -> bool:
    """Whether an `_EPROCESS` can be one: page tables in RAM, a list of threads in the kernel's half.

    Raises `UnreadableMemoryError` where it is not in RAM itself. An exited process's page tables may have been given
    back, so then only the list of threads is asked.
    """
    threads = process.eprocess.struct("ThreadListHead")
    if threads.integer("Flink") < KERNEL_HALF or threads.integer("Blink") < KERNEL_HALF:
        return False
    return not process.alive or any(
        run.start <= process.dtb < run.start + run.size for run in process.guest.physical.runs
    )
