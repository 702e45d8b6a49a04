"""Running a guest until a process is on a vCPU: in kernel mode, or in user mode.

Kernel mode: at the next system call or page fault of a thread of the process, where the processor enters the kernel.
User mode: at the instruction where a thread that is in the kernel now goes on in user mode, which its trap frame names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from coldframe.errors import NotFoundError, UnreadableMemoryError, UsageError
from coldframe.windows.process import Process

if TYPE_CHECKING:
    from coldframe.debug.breakpoint import Breakpoint
    from coldframe.debug.hit import Hit
    from coldframe.debug.live import LiveGuest

_ENTRIES = ("KiSystemCall64", "KiSystemCall64Shadow", "KiPageFault", "KiPageFaultShadow")
"""Where user mode enters the kernel, in kernels with and without KVA shadow."""
_USER_MODE = 3


def join(guest: LiveGuest, process: Process, mode: str, timeout: float | None) -> Hit | None:
    """Let `guest` run until a vCPU executes `process` in `mode` ("kernel" or "user"); None when it does already.

    None too when `timeout` seconds passed first. Raises `NotFoundError` where the process has no thread that could
    come back to user mode, `CapabilityError` where the machine has too few breakpoints for its threads.
    """
    if mode not in ("kernel", "user"):
        raise UsageError(f"a process is joined in 'kernel' or 'user' mode, not {mode!r}")
    guest.pause()
    if any(_executes(guest, vcpu, process, mode) for vcpu in range(guest.vcpus)):
        return None
    with ExitStack() as stack:
        if mode == "kernel":
            points = [stack.enter_context(point) for point in _entries(guest, process)]
        else:
            points = [stack.enter_context(point) for point in _returns(guest, process)]
        if not points:
            raise NotFoundError(f"way into {mode} mode", process.name, hint="it has no thread that was there")
        return guest.next_hit(points, timeout)


def _executes(guest: LiveGuest, vcpu: int, process: Process, mode: str) -> bool:
    registers = guest.registers(vcpu)
    if (registers["cs"] & 3 == _USER_MODE) != (mode == "user"):
        return False
    try:
        return guest.current_process(registers, vcpu) == process
    except (NotFoundError, UnreadableMemoryError):
        return False


def _entries(guest: LiveGuest, process: Process) -> Iterator[Breakpoint]:
    for name in _ENTRIES:
        if guest.variable(name) is not None:
            yield guest.break_on(name, process)


def _returns(guest: LiveGuest, process: Process) -> Iterator[Breakpoint]:
    for thread in process.threads:
        try:
            frame = thread.ethread.integer("Tcb.TrapFrame")
            if not frame:
                continue
            trap = guest.struct("_KTRAP_FRAME", frame)
            if trap.integer("SegCs") & 3 == _USER_MODE:
                yield guest.break_on(trap.integer("Rip"), process, thread)
        except UnreadableMemoryError:
            continue
