"""The main job on minint, as `coldframe demo` shows it: attach, list, trace, explain, let go, compare with the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

from coldframe.debug import LiveGuest
from coldframe.errors import ColdframeError
from coldframe.minint.machine import Minint, read_file, start
from coldframe.minint.truth import Event
from coldframe.paging import Page, State, Via
from coldframe.target import attach
from coldframe.trace import FileWrites, Value, trace

TRACED = "nt!NtWriteFile"
PROCESS = "notepad.exe"
_GOES_ON_SECONDS = 20.0


class Demonstration:
    """One run: a minint that boots, and a coldframe attached to it through its QMP socket alone.

    A context manager. Call `processes`, iterate `writes`, call `explain_one`, then `summary`, which lets the guest go.
    """

    def __init__(self, *, layout: str, vcpus: int, memory: str, say: Callable[[str], None]) -> None:
        self._began = time.monotonic()
        self._say = say
        say(f"building and booting minint with the structures of Windows build {layout}: {vcpus} vCPUs, {memory}")
        self._machine: Minint = start(layout=layout, vcpus=vcpus, memory=memory)
        try:
            say(f"attaching through {self._machine.qmp.name}: QMP and the gdbstub of a stock QEMU, nothing else")
            self._guest: LiveGuest = attach(self._machine.qmp, symbols=[self._machine.symbols_folder])
        except BaseException:
            self._machine.close()
            raise
        location = self._guest.location
        say(f"found {location.identity} at {location.base:#x} by {location.how}")
        self._seen = FileWrites()
        self._kinds: dict[tuple[str, ...], tuple[int, int]] = {}
        self._count = 0
        self._listed = len(self._guest.processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self._guest.close()
        self._machine.close()

    def processes(self) -> list[Mapping[str, int | str | None]]:
        """The guest's processes, as rows."""
        return [
            {"pid": process.pid, "ppid": process.ppid, "name": process.name, "dtb": hex(process.dtb)}
            for process in self._guest.processes
        ]

    def writes(self, limit: int) -> Iterator[dict[str, Value]]:
        """The next `limit` file writes of notepad.exe, as `trace` tells them."""
        self._say(f"tracing {TRACED} of {PROCESS}")
        for event in trace(self._guest, TRACED, process=PROCESS, limit=limit):
            self._seen.add(event)
            self._count += 1
            self._note_pages(event)
            yield event

    def _note_pages(self, event: Mapping[str, Value]) -> None:
        """Remember one page of each state that a buffer was found in."""
        arguments, pid = event["arguments"], event["pid"]
        buffer = arguments.get("Buffer") if isinstance(arguments, dict) else None
        pages = buffer.get("pages") if isinstance(buffer, dict) else None
        for page in pages if isinstance(pages, list) else []:
            if isinstance(page, dict) and isinstance(pid, int):
                via = page["via"]
                words = (str(page["state"]), *(map(str, via) if isinstance(via, list) else ()))
                self._kinds[words] = (pid, int(str(page["address"]), 16))

    def explain_one(self) -> Page | None:
        """One page that a buffer lay in, explained: the least plain one that was seen. None when none was."""
        plain = (str(State.VALID),)
        ranked = sorted(self._kinds, key=lambda words: (words != plain, Via.PROTOTYPE in words, words[0]), reverse=True)
        for words in ranked:
            pid, address = self._kinds[words]
            self._say(f"explaining {address:#x} of pid {pid}, where a buffer was")
            return self._guest.process(pid).memory.resolve(address)
        return None

    def summary(self) -> dict[str, int | float]:
        """Let the guest go, see that it goes on, and compare what was seen with the files on its disk.

        `matched` counts the writes whose bytes equal the file's. Raises `ColdframeError` when the guest does not go on.
        """
        self._say("detaching; the guest goes on")
        self._guest.close()
        self._wait_for_last_writes()
        self._machine.control("stop")  # QEMU flushes its disks as it stops
        self._say("comparing with the files on the guest's NTFS volume")
        matched = 0
        for name, writes in self._seen.writes.items():
            try:
                content = read_file(self._machine.disk, name)
            except ColdframeError as error:
                self._say(str(error))
                continue
            matched += sum(
                write.complete and write.offset is not None and content[write.offset :].startswith(write.data)
                for write in writes
            )
        return {
            "writes": self._count,
            "matched": matched,
            "processes": self._listed,
            "seconds": round(time.monotonic() - self._began, 3),
        }

    def _wait_for_last_writes(self) -> None:
        """Return when the guest's own log has every write that was seen: the last were seen as they began."""
        missing = {
            (name, write.offset) for name, writes in self._seen.writes.items() for write in writes
            if write.offset is not None
        }  # fmt: skip

        def was_last(event: Event) -> bool:
            missing.discard((str(event.get("file")), event.get("offset")))
            return not missing

        self._machine.wait_for("write", timeout=_GOES_ON_SECONDS, accept=was_last)
