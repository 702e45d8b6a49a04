"""Every system call of a process, with its arguments and what it returned.

All system calls arrive at one instruction, `nt!KiSystemCall64` (or its Shadow), with the service's number in RAX. The
number's meaning is in the kernel's own table, `nt!KiServiceTable`: the routine's distance from the table in the upper
28 bits of each entry (64-bit kernels since Windows XP).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from coldframe.debug import Calls, Condition, Hit, LiveGuest
from coldframe.debug.current import Arrival
from coldframe.debug.deadline import Deadline
from coldframe.errors import CapabilityError, UnreadableMemoryError
from coldframe.trace.decode import Value
from coldframe.trace.events import DATA_LIMIT, event
from coldframe.windows.process import Process

_ENTRIES = ("KiSystemCall64", "KiSystemCall64Shadow")
_TABLE_BITS = 12
"""Services of one table; the number's bits above say which table (1: win32k's)."""
_MOST_SERVICES = 1 << _TABLE_BITS


class ServiceHit(Hit):
    """A thread that has just made a system call, as if it stood in the stub of ntdll that made it."""

    def __init__(self, hit: Hit, name: str) -> None:
        registers = dict(hit.registers)
        registers |= {"rip": registers["rcx"], "rcx": registers["r10"]}  # SYSCALL leaves the next address in RCX
        super().__init__(hit.guest, hit.breakpoint, Arrival(hit.vcpu, registers, hit.ethread, hit.eprocess))
        self.time = hit.time
        self._name = name

    @property
    def function(self) -> str:
        """The service's name, `nt!NtWriteFile`."""
        return self._name


class Services:
    """The names of system services by number, from the kernel's table."""

    def __init__(self, guest: LiveGuest) -> None:
        self._guest = guest
        self._names: dict[int, str] = {}
        table, limit = guest.variable("KiServiceTable"), guest.variable("KiServiceLimit")
        try:
            count = guest.memory.u32(limit) if limit is not None else 0
            if table is not None and 0 < count <= _MOST_SERVICES:
                raw = guest.memory.read(table, 4 * count)
                for number in range(count):
                    distance = int.from_bytes(raw[4 * number : 4 * number + 4], "little", signed=True) >> 4
                    self._names[number] = guest.symbolize(table + distance)
        except UnreadableMemoryError:
            pass

    def name(self, number: int) -> str:
        """`nt!NtWriteFile`; for services of other tables their number."""
        return self._names.get(number) or f"service {number:#x}"


class Syscalls:
    """The tracer. `events` may be iterated once; `summary` counts what it has yielded."""

    def __init__(
        self,
        guest: LiveGuest,
        process: Process | str | int | None = None,
        *,
        condition: Condition | str | None = None,
        data_limit: int = DATA_LIMIT,
    ) -> None:
        self.guest = guest
        self._services = Services(guest)
        self._data_limit = data_limit
        self._counts: Counter[str] = Counter()
        self._failed = 0
        self._process = process = guest.process(process) if isinstance(process, str | int) else process
        names = [name for name in _ENTRIES if guest.variable(name) is not None]
        if not names:
            raise CapabilityError(f"this kernel has neither of {', '.join(_ENTRIES)}: its system calls are not traced")
        self._points = [guest.break_on(name, process, condition=condition) for name in names]

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """One event for each call that has returned, as `coldframe.trace.trace` tells them with results.

        Ends when the process exits, if one is given.
        """
        deadline = Deadline(duration)
        count = 0
        with Calls(self.guest, self._points, self._event, self._service, self._process) as calls:
            while limit is None or count < limit:
                call = calls.wait(deadline.left)
                if call is None:
                    return
                self._counts[call.entered.function] += 1
                self._failed += call.result >> 31 & 1  # NTSTATUS of severity warning or error
                yield call.noted | {"result": f"{call.result & 0xFFFF_FFFF:#x}"}
                count += 1

    def summary(self) -> dict[str, Value]:
        """How many calls there were, of which services, and how many did not succeed."""
        return {"calls": self._counts.total(), "failed": self._failed, "services": dict(self._counts.most_common())}

    def _service(self, hit: Hit) -> Hit:
        return ServiceHit(hit, self._services.name(hit.registers["rax"] & 0xFFFF_FFFF))

    def _event(self, hit: Hit) -> dict[str, Value]:
        return event(hit, self._data_limit)
