"""Images and drivers that are loaded, and drivers that are unloaded, each told once.

Windows has no one place where a single image goes out of a process; all of them go with the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from coldframe.debug import Event, LiveGuest
from coldframe.debug.events import Kind
from coldframe.trace.decode import Value
from coldframe.trace.events import when, who
from coldframe.trace.processes import follow
from coldframe.windows.process import Process

KINDS: tuple[Kind, ...] = ("image", "driver", "driver-unload")


class ModuleTracer:
    """The tracer. `events` may be iterated once; `summary` counts what it has yielded.

    `process` may be a name of which no process runs yet; drivers are told only where no process is given.
    """

    def __init__(self, guest: LiveGuest, process: Process | str | int | None = None) -> None:
        self.guest = guest
        self._process = process
        self._kinds: Counter[str] = Counter()
        self._names: Counter[str] = Counter()

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """One event for each image or driver.

        {"time", "vcpu", "kind", "pid", "process", "name", "path", "base", "size", "by"}: `kind` is "image", "driver"
        or "driver-unload"; "pid" and "process" are None for a driver; "path" is the file as the kernel names it,
        "size" is in bytes; "by" is who did it: {"pid", "process", "tid"}.
        """
        for event in follow(self.guest, KINDS, self._process, limit=limit, duration=duration):
            told = _told(event)
            self._kinds[event.kind] += 1
            self._names[str(told["name"])] += 1
            yield told

    def summary(self) -> dict[str, Value]:
        """How many images and drivers there were, and how often each file was loaded or unloaded."""
        return {
            "images": self._kinds["image"],
            "drivers": self._kinds["driver"],
            "driver_unloads": self._kinds["driver-unload"],
            "files": dict(self._names.most_common()),
        }


def _told(event: Event) -> dict[str, Value]:
    process = event.process if event.kind == "image" else None
    return {
        "time": when(event.hit),
        "vcpu": event.hit.vcpu,
        "kind": event.kind,
        "pid": None if process is None else process.pid,
        "process": None if process is None else process.name,
        "name": event.name.rpartition("\\")[2],
        "path": event.name,
        "base": None if event.base is None else f"{event.base:#x}",
        "size": event.size,
        "by": who(event.hit),
    }
