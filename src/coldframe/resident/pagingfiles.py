"""Keeping paging files from being created: smss.exe asks for each with NtCreatePagingFile, and is told that it is done.

A hardware breakpoint stands on the function's first instruction. When smss.exe arrives there, RAX becomes
STATUS_SUCCESS and RIP a RET of the same function: it returns to its caller at once, by an instruction of its own, so
that a shadow stack stays in step with the stack. No byte of the guest's memory changes. Other callers are let through.
"""

from __future__ import annotations

from dataclasses import dataclass

from coldframe.debug import LiveGuest
from coldframe.debug.current import Current, process_at
from coldframe.errors import ColdframeError
from coldframe.resident.returning import NoReturnError, find_return
from coldframe.windows.process import Process

FUNCTION = "NtCreatePagingFile"
CALLER = "smss.exe"
_STATUS_SUCCESS = 0


@dataclass(frozen=True, slots=True)
class PagingFileCall:
    r"""One call of NtCreatePagingFile: the `file` that it named (`\??\C:\pagefile.sys`; None where the name could not
    be read), its minimum and maximum size in bytes (None likewise), who called, and whether it was prevented.

    `reason` says why a call was let through.
    """

    file: str | None
    minimum: int | None
    maximum: int | None
    process: str
    pid: int | None
    prevented: bool
    reason: str = ""


class PagingFileGate:
    """What happens at the breakpoint on nt!NtCreatePagingFile of one guest."""

    def __init__(self, guest: LiveGuest) -> None:
        self._guest = guest
        self.address = guest.kernel.symbol(FUNCTION)
        self._return: int | None = None

    def arrived(self, vcpu: int) -> PagingFileCall:
        """Deal with a vCPU that stands at the function's first instruction: let it return, if smss.exe called.

        Raises `GuestGoneError` when the machine ends.
        """
        guest = self._guest
        registers = guest.vm.registers(vcpu)
        arrival = Current(guest).arrival(vcpu, registers)
        process = process_at(guest, arrival.eprocess) if arrival.eprocess else None
        file, minimum, maximum = _arguments(process, registers["rcx"], registers["rdx"], registers["r8"])
        name, pid = (process.name, process.pid) if process is not None else ("a thread without a process", None)
        prevented, reason = False, f"only {CALLER} is kept from it"
        if process is not None and process.is_called(CALLER):
            try:
                if self._return is None:
                    self._return = find_return(process.memory, guest.kernel.base, self.address)
                guest.vm.write_registers(vcpu, {"rax": _STATUS_SUCCESS, "rip": self._return})
                prevented, reason = True, ""
            except NoReturnError as error:
                reason = str(error)
        return PagingFileCall(file, minimum, maximum, name, pid, prevented, reason)


def _arguments(
    process: Process | None, name: int, minimum: int, maximum: int
) -> tuple[str | None, int | None, int | None]:
    """The file's name and the two sizes, which the caller passes by pointers into its own memory (wdm.h's types)."""
    if process is None:
        return None, None, None

    def size(pointer: int) -> int | None:
        try:
            return process.memory.u64(pointer)
        except ColdframeError:
            return None

    try:
        text: str | None = process.typed.struct("_UNICODE_STRING", name).text
    except ColdframeError:
        text = None
    return text, size(minimum), size(maximum)
