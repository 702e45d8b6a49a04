"""Tracers built on breakpoints: calls of functions as plain data, and ready tracers of what a guest does."""

from collections.abc import Iterator
from typing import Protocol

from coldframe.trace.decode import Value
from coldframe.trace.events import event, trace
from coldframe.trace.files import FileWrites, SavedFiles, Write, write_of
from coldframe.trace.filewrites import FileWriteTracer
from coldframe.trace.heap import HeapTracer
from coldframe.trace.modules import ModuleTracer
from coldframe.trace.network import NetworkTracer
from coldframe.trace.processes import ProcessTracer
from coldframe.trace.show import argument_lines, argument_text
from coldframe.trace.syscalls import Syscalls

__all__ = [
    "FileWriteTracer",
    "FileWrites",
    "HeapTracer",
    "ModuleTracer",
    "NetworkTracer",
    "ProcessTracer",
    "SavedFiles",
    "Syscalls",
    "Tracer",
    "Value",
    "Write",
    "argument_lines",
    "argument_text",
    "event",
    "trace",
    "write_of",
]


class Tracer(Protocol):
    """What every ready tracer has."""

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """Let the guest run and yield what happens, up to `limit` events or for `duration` seconds."""
        ...

    def summary(self) -> dict[str, Value]:
        """What was seen, counted."""
        ...
