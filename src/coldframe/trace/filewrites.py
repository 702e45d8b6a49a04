"""File writes: what a process writes to which file, put together in a folder if one is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from coldframe.debug import Condition, LiveGuest
from coldframe.trace.decode import Value
from coldframe.trace.events import DATA_LIMIT, trace
from coldframe.trace.files import SavedFiles, write_of
from coldframe.windows.process import Process

LARGEST_WRITE = 1 << 26
"""Bytes of one write that are read where they are saved."""


class FileWriteTracer:
    """The tracer. `events` may be iterated once; `summary` counts what it has yielded."""

    def __init__(
        self,
        guest: LiveGuest,
        process: Process | str | int | None = None,
        *,
        condition: Condition | str | None = None,
        save: Path | None = None,
    ) -> None:
        self.guest = guest
        self._process = process
        self._condition = condition
        self._saved = None if save is None else SavedFiles(save)
        self._bytes: Counter[str] = Counter()
        self._writes: Counter[str] = Counter()
        self._incomplete = 0

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """One event for each write to a file, as `coldframe.trace.trace` tells them, with "saved": the path."""
        data_limit = DATA_LIMIT if self._saved is None else LARGEST_WRITE
        count = 0
        for told in trace(
            self.guest,
            "nt!NtWriteFile",
            process=self._process,
            condition=self._condition,
            duration=duration,
            data_limit=data_limit,
        ):
            write = write_of(told)
            if write is None:  # to a pipe, or to what is no file
                continue
            self._writes[write.file] += 1
            self._bytes[write.file] += len(write.data)
            self._incomplete += not write.complete
            if self._saved is not None:
                told["saved"] = str(self._saved.put(write))
            yield told
            count += 1
            if count == limit:
                return

    def summary(self) -> dict[str, Value]:
        """How much was written to which file, and how many writes had bytes that could not be read."""
        files: dict[str, Value] = {
            name: {"writes": writes, "bytes": self._bytes[name]} for name, writes in self._writes.most_common()
        }
        return {
            "writes": self._writes.total(),
            "bytes": self._bytes.total(),
            "incomplete": self._incomplete,
            "files": files,
        }
