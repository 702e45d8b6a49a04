"""A hit: one arrival of one thread at a breakpoint, with everything that can be asked about it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coldframe.debug.arguments import Arguments, StackSlots
from coldframe.debug.callstack import Frame
from coldframe.debug.current import Arrival, process_at, thread_at
from coldframe.debug.prototypes import prototype
from coldframe.debug.wow64stack import word_size
from coldframe.errors import NotFoundError, UsageError
from coldframe.paging import AddressSpace
from coldframe.windows.process import Process, Thread

if TYPE_CHECKING:
    from coldframe.debug.breakpoint import Breakpoint
    from coldframe.debug.live import LiveGuest


class Hit:
    """One arrival at a breakpoint.

    `registers` are those of vCPU number `vcpu` before the instruction under the breakpoint; `time` is the host's clock
    (seconds since 1970) when the guest stopped. Everything else is read when it is asked for, so ask before the guest
    runs on; `late` says that it has: then only `registers`, `address`, `vcpu` and `time` are of the moment of the hit.
    `ethread` and `eprocess` are the addresses of the thread and of its process, 0 before the kernel has any.
    """

    def __init__(self, guest: LiveGuest, breakpoint: Breakpoint, arrival: Arrival) -> None:  # noqa: A002 - its name
        self.guest = guest
        self.breakpoint = breakpoint
        self.vcpu = arrival.vcpu
        self.registers = arrival.registers
        self.accessed = arrival.accessed
        """The address of the data that was read or written, at a breakpoint on data."""
        self.time = time.time()
        self.pause = guest.pauses
        """The number of the guest's pause at which it arrived: later hits have higher ones."""
        self.ethread = arrival.ethread
        self.eprocess = arrival.eprocess

    def __repr__(self) -> str:
        return f"<Hit of {self.function} on vCPU {self.vcpu}>"

    @property
    def late(self) -> bool:
        """Whether the guest has run since."""
        return self.guest.pauses != self.pause

    @property
    def address(self) -> int:
        """The address of the instruction that comes next."""
        return self.registers["rip"]

    @property
    def thread(self) -> Thread:
        """The thread that arrived; raises `NotFoundError` before the kernel has threads."""
        if not self.ethread:
            raise NotFoundError("thread", f"of vCPU {self.vcpu}", hint="its KPCR is not set up yet")
        return thread_at(self.guest, self.ethread)

    @property
    def process(self) -> Process:
        """The process that the thread belongs to; raises `NotFoundError` before the kernel has threads."""
        if not self.eprocess:
            raise NotFoundError("process", f"of vCPU {self.vcpu}", hint="its KPCR is not set up yet")
        return process_at(self.guest, self.eprocess)

    @property
    def memory(self) -> AddressSpace:
        """The address space of the process, user and kernel half."""
        if self.eprocess:
            return self.process.memory
        return AddressSpace(self.guest.resolver, self.registers["cr3"] & self.guest.resolver.format.root)

    @property
    def args(self) -> Arguments:
        """The function's arguments, at a breakpoint on its first instruction; setting one changes the guest."""
        known = prototype(self.function)
        widths = known.widths if known is not None else ()
        return Arguments(self, widths, self.word)

    @property
    def stack(self) -> StackSlots:
        """The words above the stack pointer: `stack[0]` is the return address at a function's first instruction."""
        return StackSlots(self.memory, self.registers["rsp"], self.word)

    @property
    def word(self) -> int:
        """Bytes of a word of stack where it arrived: 8; 4 in 32-bit code, a WOW64 process's too."""
        return word_size(self.guest, self.registers)

    @property
    def result(self) -> int:
        """What a function returned, where it just has (`wait_return`, `Call.returned`); setting it changes the guest.

        RAX: 64 bits, of which an NTSTATUS is the lower half.
        """
        return self.registers["rax"]

    @result.setter
    def result(self, value: int) -> None:
        self.write_registers({"rax": value})

    @property
    def function(self) -> str:
        """What the breakpoint is called: `nt!NtWriteFile`."""
        return self.breakpoint.name

    @property
    def return_address(self) -> int:
        """Where the function returns to, at a breakpoint on its first instruction."""
        return int.from_bytes(self.memory.read(self.registers["rsp"], self.word), "little")

    def callstack(self, limit: int = 512) -> list[Frame]:
        """The frames of kernel and user mode, the innermost first."""
        process = self.process if self.eprocess else None
        thread = self.thread if self.ethread else None
        return self.guest.stacks.walk(self.registers, process, thread, limit=limit)

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Set registers of the vCPU, before the guest runs on; on error those before the one named were written."""
        self.guest.write_registers(self.vcpu, values)
        self.registers = self.guest.registers(self.vcpu)

    def wait_return(self, timeout: float | None = None) -> Hit | None:
        """Run the guest until this call of the function has returned; its result is `registers["rax"]` of the answer.

        None when `timeout` seconds passed first. Hits of other breakpoints meanwhile stay queued with them, `late`.
        Raises `UsageError` where this hit is late itself: the call may have returned by now.
        """
        with self.break_on_return() as returned:
            return returned.wait(timeout)

    def break_on_return(self) -> Breakpoint:
        """A breakpoint, not set yet, that is hit once: where this call of the function has returned.

        Right under recursion and with several threads: only this thread, and only with this call's stack gone. To be
        made at the function's first instruction; raises `UsageError` where the guest has run on since.
        """
        if self.late:
            raise UsageError(f"the guest ran on since this hit of {self.function}; `calls` follows calls to their ends")
        stack = self.registers["rsp"]
        return self.guest.break_on(
            self.return_address,
            thread=self.thread if self.ethread else None,
            condition=lambda hit: hit.registers["rsp"] > stack,
            once=True,
        )
