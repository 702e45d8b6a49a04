"""`trace`: every call of some functions, as plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

from coldframe.debug import Breakpoint, Calls, Condition, Frame, Hit, LiveGuest, prototype
from coldframe.debug.deadline import Deadline
from coldframe.errors import ColdframeError
from coldframe.trace.decode import Value, arguments
from coldframe.windows.process import Process

DATA_LIMIT = 1 << 16
"""How many bytes of a buffer an event carries."""


def trace(
    guest: LiveGuest,
    functions: str | Iterable[str],
    *,
    process: Process | str | int | None = None,
    limit: int | None = None,
    duration: float | None = None,
    data_limit: int = DATA_LIMIT,
    kind: str = "hardware",
    condition: Condition | str | None = None,
    results: bool = False,
    pending: bool = False,
) -> Iterator[dict[str, Value]]:
    """Let `guest` run and yield one event for each call of `functions`, in the order of the calls.

    Functions are named as for `LiveGuest.break_on`. Ends after `limit` events or `duration` seconds. The guest is
    paused while an event is looked at; when the iteration ends, however it ends, no breakpoint is left and the guest
    is paused. An event is `{"time", "vcpu", "pid", "process", "tid", "function", "arguments", "stack"}`: time is the
    host's, in ISO 8601; for arguments see `coldframe.trace.decode`; stack has the innermost frame first. With
    `results` an event comes when its call has returned, in the order of the returns, and has "result" too (RAX, as
    "0x..."). For `condition` and `pending` see `LiveGuest.break_on`.

    Raises as `break_on` does, before anything is set that stays.
    """
    names = [functions] if isinstance(functions, str) else list(functions)
    if isinstance(process, str | int):
        process = guest.process(process)
    points = [guest.break_on(name, process=process, kind=kind, condition=condition, pending=pending) for name in names]
    if results:
        yield from _returned(guest, points, limit, duration, data_limit)
        return
    with ExitStack() as stack:
        for point in points:
            stack.enter_context(point)
        yield from _events(guest, points, limit, duration, data_limit)


def _events(
    guest: LiveGuest, points: list[Breakpoint], limit: int | None, duration: float | None, data_limit: int
) -> Iterator[dict[str, Value]]:
    if limit is not None and limit <= 0:
        return
    for count, hit in enumerate(guest.events(*points, duration=duration), 1):
        yield event(hit, data_limit)
        if count == limit:
            return


def _returned(
    guest: LiveGuest, points: list[Breakpoint], limit: int | None, duration: float | None, data_limit: int
) -> Iterator[dict[str, Value]]:
    deadline = Deadline(duration)
    count = 0
    with Calls(guest, points, lambda hit: event(hit, data_limit)) as calls:
        while limit is None or count < limit:
            call = calls.wait(deadline.left)
            if call is None:
                return
            yield call.noted | {"result": f"{call.result:#x}"}
            count += 1


def event(hit: Hit, data_limit: int = DATA_LIMIT) -> dict[str, Value]:
    """One hit at the first instruction of a function as an event."""
    return {
        "time": when(hit),
        "vcpu": hit.vcpu,
        **who(hit),
        "function": hit.function,
        "arguments": arguments(hit, prototype(hit.function), data_limit),
        "stack": [frame_text(frame) for frame in hit.callstack()],
    }


def when(hit: Hit) -> str:
    """The host's time of a hit, in ISO 8601."""
    return datetime.fromtimestamp(hit.time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def who(hit: Hit) -> dict[str, Value]:
    """The process and thread of a hit; None for each before there are processes."""
    try:
        return {"pid": hit.process.pid, "process": hit.process.name, "tid": hit.thread.tid}
    except ColdframeError:
        return {"pid": None, "process": None, "tid": None}


def frame_text(frame: Frame) -> str:
    """A frame in one word: `nt!NtWriteFile` at its first instruction, else `nt!NtWriteFile+0x12`."""
    return str(frame) if frame.displacement else frame.function
