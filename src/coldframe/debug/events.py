"""Events of the guest: processes, threads and images that come and go, each told once, where the kernel does it.

Source of the places: the kernel's own routines, whose names its PDB has from Windows 7 to 11 and whose first arguments
the published sources and headers tell (`PspInsertProcess(Process)`, `PspExitProcess(TrimAddressSpace, Process)`,
`PspInsertThread(Thread, Process)`, `PspExitThread`, `PsCallImageNotifyRoutines(FullImageName, ProcessId, ImageInfo)`
with `IMAGE_INFO` of ntddk.h, `MiUnloadSystemImage(LoaderEntry)`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from coldframe.debug.breakpoint import Breakpoint, check_set
from coldframe.debug.current import process_at, thread_at
from coldframe.debug.deadline import Deadline
from coldframe.errors import NotFoundError, SymbolNotFoundError, UnreadableMemoryError
from coldframe.windows.process import Process, Thread

if TYPE_CHECKING:
    from coldframe.debug.condition import Condition
    from coldframe.debug.hit import Hit
    from coldframe.debug.live import LiveGuest

Kind = Literal["process", "process-exit", "thread", "thread-exit", "image", "driver", "driver-unload"]


@dataclass(frozen=True, slots=True)
class Event:
    """What happens at `hit`; the fields that its kind does not have are None.

    A process that begins is not on the kernel's list yet, one that exits still is. An image's `name` is its file's as
    the kernel gives it, a process's or a thread's is the process's as EPROCESS keeps it; `base` and `size` (bytes) are
    where the image was mapped. A driver's process is System. The guest stands there unless `hit` is `late`; then
    `process` and `thread` may be gone, and `pid`, `tid`, `name`, `base` and `size` are what they were.
    """

    kind: Kind
    hit: Hit
    process: Process | None
    thread: Thread | None = None
    pid: int | None = None
    tid: int | None = None
    name: str = ""
    base: int | None = None
    size: int | None = None


Decoder = Callable[["Hit"], Event]


def _of_process(kind: Kind, hit: Hit, process: Process, thread: Thread | None = None) -> Event:
    tid = None if thread is None else thread.tid
    return Event(kind, hit, process, thread, pid=process.pid, tid=tid, name=process.name)


def _process(hit: Hit) -> Event:
    return _of_process("process", hit, process_at(hit.guest, hit.args[0]))


def _process_exit(hit: Hit) -> Event:
    return _of_process("process-exit", hit, process_at(hit.guest, hit.args[1]))


def _thread(hit: Hit) -> Event:
    thread = thread_at(hit.guest, hit.args[0])
    return _of_process("thread", hit, thread.process, thread)


def _thread_exit(hit: Hit) -> Event:
    return _of_process("thread-exit", hit, hit.process, hit.thread)


def decode_image(hit: Hit) -> Event:
    """The image that a hit of PsCallImageNotifyRoutines announces.

    IMAGE_INFO: Properties (ULONG), ImageBase, ImageSelector (ULONG), ImageSize (SIZE_T), naturally aligned.
    """
    guest, pid, info = hit.guest, hit.args[1], hit.args[2]
    size = guest.types.pointer_size
    base = int.from_bytes(hit.memory.read(info + size, size), "little")
    length = int.from_bytes(hit.memory.read(info + 3 * size, size), "little")
    try:
        name = guest.struct("_UNICODE_STRING", hit.args[0]).text if hit.args[0] else ""
    except UnreadableMemoryError:
        name = ""
    process = _of_pid(hit, pid)
    return Event("image" if pid else "driver", hit, process, pid=pid or None, name=name, base=base, size=length)


def decode_driver_unload(hit: Hit) -> Event:
    """The driver whose loader entry MiUnloadSystemImage is given."""
    entry = hit.guest.struct("_KLDR_DATA_TABLE_ENTRY", hit.args[0])
    name = entry.struct("FullDllName").text
    return Event(
        "driver-unload", hit, None, name=name, base=entry.integer("DllBase"), size=entry.integer("SizeOfImage")
    )


def _of_pid(hit: Hit, pid: int) -> Process | None:
    """A process that may not be on the list yet: the current one, the one being built, or one of the list."""
    if not pid:
        return None
    try:
        if hit.process.pid == pid:
            return hit.process
        return hit.guest.process(pid)
    except NotFoundError:
        return None


_PLACES: dict[str, tuple[Decoder, tuple[Kind, ...]]] = {
    "PspInsertProcess": (_process, ("process",)),
    "PspExitProcess": (_process_exit, ("process-exit",)),
    "PspInsertThread": (_thread, ("thread",)),
    "PspExitThread": (_thread_exit, ("thread-exit",)),
    "PsCallImageNotifyRoutines": (decode_image, ("image", "driver")),
    "MiUnloadSystemImage": (decode_driver_unload, ("driver-unload",)),
}
KINDS: tuple[Kind, ...] = ("process", "process-exit", "thread", "thread-exit", "image", "driver", "driver-unload")


class Events:
    """Made by `LiveGuest.system_events`; iterating lets the guest run to the next event at every turn.

    Breakpoints are set by entering the block and gone when it is left. Every event of the kinds is told exactly once,
    in the order in which they happened. One that happens while the guest runs for something else (a breakpoint's next
    hit) is read there and told later: what it says is of its moment, and its `hit` is `late`.
    """

    def __init__(self, guest: LiveGuest, kinds: Sequence[Kind], process: Process | None) -> None:
        self.guest = guest
        self._kinds = frozenset(kinds)
        self._process = process
        self._points: list[Breakpoint] = []
        self._read: dict[Hit, Event] = {}
        for name, (decoder, told) in _PLACES.items():
            if self._kinds.isdisjoint(told):
                continue
            if guest.variable(name) is None:
                if told == ("driver-unload",):
                    continue  # kernels that never unload
                raise SymbolNotFoundError("symbol", name, hint=f"events of kind {', '.join(told)} are found there")
            self._points.append(guest.break_on(name, condition=self._wants(decoder)))
        self._stack = ExitStack()

    def __enter__(self) -> Events:
        with ExitStack() as stack:
            for point in self._points:
                stack.enter_context(point)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._read.clear()

    def __iter__(self) -> Iterator[Event]:
        while (event := self.wait()) is not None:
            yield event

    def wait(self, timeout: float | None = None) -> Event | None:
        """The next event; None when `timeout` seconds passed first. The guest is paused in either case."""
        check_set(self._points)
        hit = self.guest.next_hit(self._points, timeout)
        return None if hit is None else self._read.pop(hit)

    def _wants(self, decoder: Decoder) -> Condition:
        """Whether a hit tells an event that is wanted, which is read while the guest stands there."""

        def wanted(hit: Hit) -> bool:
            event = decoder(hit)
            told = event.kind in self._kinds and (self._process is None or event.process == self._process)
            if told:
                self._read[hit] = event
            return told

        return wanted


def wait_for_process(guest: LiveGuest, name: str, timeout: float | None) -> Process | None:
    """See `LiveGuest.wait_for_process`."""
    deadline = Deadline(timeout)
    with Events(guest, ("process",), None) as events:
        while (event := events.wait(deadline.left)) is not None:
            if event.process is not None and event.process.is_called(name):
                return event.process if event.hit.wait_return(deadline.left) is not None else None
    return None
