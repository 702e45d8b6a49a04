"""Processes and threads that begin and end, each told once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from coldframe.debug import Event, LiveGuest
from coldframe.debug.deadline import Deadline
from coldframe.debug.events import Kind
from coldframe.errors import ColdframeError
from coldframe.trace.decode import Value
from coldframe.trace.events import when, who
from coldframe.windows.process import Process

KINDS: tuple[Kind, ...] = ("process", "process-exit", "thread", "thread-exit")


def is_meant(process: Process | None, wanted: Process | str | int | None) -> bool:
    """Whether `process` is the wanted one: that process, one of that pid, or any that is called so, now or later."""
    if wanted is None or isinstance(wanted, Process):
        return wanted is None or process == wanted
    if process is None:
        return False
    return process.pid == wanted if isinstance(wanted, int) else process.is_called(wanted)


def follow(
    guest: LiveGuest,
    kinds: tuple[Kind, ...],
    wanted: Process | str | int | None,
    *,
    limit: int | None,
    duration: float | None,
) -> Iterator[Event]:
    """The events of `kinds` of the wanted processes, as they happen; the guest stands at each of them."""
    deadline = Deadline(duration)
    count = 0
    with guest.system_events(*kinds) as happening:
        while limit is None or count < limit:
            event = happening.wait(deadline.left)
            if event is None:
                return
            if is_meant(event.process, wanted):
                yield event
                count += 1


class ProcessTracer:
    """The tracer. `events` may be iterated once; `summary` counts what it has yielded.

    `process` may be a name of which no process runs yet: all that are called so are followed.
    """

    def __init__(self, guest: LiveGuest, process: Process | str | int | None = None) -> None:
        self.guest = guest
        self._process = process
        self._kinds: Counter[str] = Counter()
        self._started: Counter[str] = Counter()

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """One event for each process and thread that begins or ends.

        {"time", "vcpu", "kind", "pid", "process", "tid", "by"}: `kind` is "process", "process-exit", "thread" or
        "thread-exit"; "tid" is None but for threads; "by" is who did it: {"pid", "process", "tid"}. A process that
        begins has "ppid" and "path" too, a thread "start": where it will begin.
        """
        for event in follow(self.guest, KINDS, self._process, limit=limit, duration=duration):
            told = self._told(event)
            self._kinds[event.kind] += 1
            if event.kind == "process":
                self._started[str(told["process"])] += 1
            yield told

    def summary(self) -> dict[str, Value]:
        """How many processes and threads began and ended, and which processes began."""
        return {
            "processes": self._kinds["process"],
            "process_exits": self._kinds["process-exit"],
            "threads": self._kinds["thread"],
            "thread_exits": self._kinds["thread-exit"],
            "started": dict(self._started.most_common()),
        }

    def _told(self, event: Event) -> dict[str, Value]:
        hit, process, thread = event.hit, event.process, event.thread
        told: dict[str, Value] = {
            "time": when(hit),
            "vcpu": hit.vcpu,
            "kind": event.kind,
            "pid": None if process is None else process.pid,
            "process": None if process is None else process.name,
            "tid": None if thread is None else thread.tid,
            "by": who(hit),
        }
        if event.kind == "process" and process is not None:
            told |= {"ppid": process.ppid, "path": process.path}
        if event.kind == "thread" and thread is not None:
            told["start"] = self._place(thread.start_address, process)
        return told

    def _place(self, address: int, process: Process | None) -> str:
        """The name of an address; in a process whose modules are not listed yet, its number."""
        try:
            return self.guest.symbolize(address, process)
        except ColdframeError:
            return f"{address:#x}"
