"""Network traffic: every frame that passes NDIS, with the process, the thread and the stack that it passes in.

Follows `ndis!NdisSendNetBufferLists`, which protocols call, and `ndis!NdisMIndicateReceiveNetBufferLists`, which
adapters call (NDIS 6, from Windows Vista on). A frame that goes through an intermediate driver passes, and is told,
once more. What is received is handled in whatever thread was interrupted, or in a thread of System: its process is
seldom the one that it is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from coldframe.debug import Condition, Hit, LiveGuest
from coldframe.debug.deadline import Deadline
from coldframe.errors import UnreadableMemoryError
from coldframe.trace.decode import Value
from coldframe.trace.events import frame_text, when, who
from coldframe.trace.netbuffers import NetBuffers, NetFrame
from coldframe.trace.pcapng import Direction, PcapngWriter
from coldframe.windows.process import Process

_PLACES: dict[str, Direction] = {
    "NdisSendNetBufferLists": "send",
    "NdisMIndicateReceiveNetBufferLists": "receive",
}
"""Both take the chain of lists as their second argument."""
_LISTS = 1
_ETHERNET = 14


class NetworkTracer:
    """The tracer. `events` may be iterated once; `summary` counts what it has yielded.

    With `save`, the frames go into that pcapng file too, each with a comment: process, thread, direction, call stack.
    Raises `NotFoundError` where there is no ndis.sys, `ColdframeError` where that file cannot be written.
    """

    def __init__(
        self,
        guest: LiveGuest,
        process: Process | str | int | None = None,
        *,
        condition: Condition | str | None = None,
        save: Path | None = None,
    ) -> None:
        self.guest = guest
        self.buffers = NetBuffers(guest, guest.module("ndis"))
        self._points = {
            guest.break_on(guest.locate(f"ndis!{name}")[0], process, condition=condition): direction
            for name, direction in _PLACES.items()
        }
        self._writer = None if save is None else PcapngWriter(save)
        self._packets: Counter[Direction] = Counter()
        self._bytes: Counter[Direction] = Counter()
        self._processes: dict[str, Counter[str]] = {}
        self._incomplete = 0
        self._unreadable = 0

    def events(self, *, limit: int | None = None, duration: float | None = None) -> Iterator[dict[str, Value]]:
        """One event for each frame, up to `limit` of them.

        `{"time", "vcpu", "kind", "pid", "process", "tid", "size", "pieces", "destination", "source", "ethertype",
        "data", "stack"}`: kind is "send" or "receive", data in hex; "missing" names the parts that could not be read
        (zeros in data), "error" a chain that breaks off.
        """
        deadline = Deadline(duration)
        count = 0
        try:
            for point in self._points:
                point.insert()
            while limit is None or count < limit:
                hit = self.guest.next_hit(tuple(self._points), deadline.left)
                if hit is None:
                    return
                for told in self._told(hit):
                    yield told
                    count += 1
                    if count == limit:
                        return
        finally:
            for point in self._points:
                point.remove()
            if self._writer is not None:
                self._writer.close()

    def summary(self) -> dict[str, Value]:
        """Frames and bytes by direction and process; how many had parts that could not be read; whose types told."""
        processes: dict[str, Value] = {
            name: dict(counts) for name, counts in sorted(self._processes.items(), key=lambda item: -item[1].total())
        }
        return {
            "packets": self._packets.total(),
            "sent": {"packets": self._packets["send"], "bytes": self._bytes["send"]},
            "received": {"packets": self._packets["receive"], "bytes": self._bytes["receive"]},
            "incomplete": self._incomplete,
            "broken_chains": self._unreadable,
            "layout": self.buffers.source,
            "processes": processes,
        }

    def _told(self, hit: Hit) -> Iterator[dict[str, Value]]:
        """The frames of one call."""
        direction = self._points[hit.breakpoint]
        stack: list[Value] = [frame_text(frame) for frame in hit.callstack()]
        head: dict[str, Value] = {"time": when(hit), "vcpu": hit.vcpu, "kind": direction, **who(hit)}
        try:
            for frame in self.buffers.frames(hit.memory, hit.args[_LISTS]):
                told = head | _described(frame) | {"stack": stack}
                self._count(told, frame, direction)
                if self._writer is not None:
                    self._writer.put(frame.data, hit.time, direction, size=frame.size, comment=comment(told))
                yield told
        except UnreadableMemoryError as error:
            self._unreadable += 1
            yield head | {"size": None, "error": str(error), "stack": stack}

    def _count(self, told: dict[str, Value], frame: NetFrame, direction: Direction) -> None:
        self._packets[direction] += 1
        self._bytes[direction] += frame.size
        self._incomplete += bool(frame.missing)
        way = "sent" if direction == "send" else "received"
        counts = self._processes.setdefault(f"{told['process']} ({told['pid']})", Counter())
        counts[f"packets_{way}"] += 1
        counts[f"bytes_{way}"] += frame.size


def _described(frame: NetFrame) -> dict[str, Value]:
    told: dict[str, Value] = {"size": frame.size, "pieces": frame.pieces}
    if len(frame.data) >= _ETHERNET:
        told["destination"], told["source"] = _station(frame.data[:6]), _station(frame.data[6:12])
        told["ethertype"] = f"{int.from_bytes(frame.data[12:14], 'big'):#06x}"
    told["data"] = frame.data.hex()
    if frame.missing:
        told["missing"] = [{"offset": at.offset, "size": at.size, "reason": at.reason} for at in frame.missing]
    return told


def _station(address: bytes) -> str:
    return address.hex(":")


def comment(told: dict[str, Value]) -> str:
    """What a packet's comment says: who, which way, what is missing, and the stack, a line a frame."""
    lines = [f"{told['process']} ({told['pid']}.{told['tid']}) {told['kind']}, vCPU {told['vcpu']}"]
    missing = told.get("missing")
    for part in missing if isinstance(missing, list) else ():
        if isinstance(part, dict):
            lines.append(f"{part['size']} bytes at {part['offset']} are not in RAM: {part['reason']}")
    stack = told["stack"]
    lines += [f"  {frame}" for frame in stack] if isinstance(stack, list) else []
    return "\n".join(lines)
