"""The guest's own account of itself: the JSON lines of its serial log, as dataclasses.

The log is written by the guest's kernel from what its memory manager knows; nothing of coldframe's resolver is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Event: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TruthPage:
    """One page as the guest's memory manager knows it.

    `address` is virtual, page aligned; `state` and `via` are coldframe's words; `physical` is the page's
    guest-physical address where it is in RAM; `pagefile` (number, byte offset); `file` and `file_offset` where it is
    still in a file; `sha256` (lower-case hex) of the 4096 bytes that a fault would bring in: None where there
    are none, and for kernel pages that change while the guest tells of them.
    """

    pid: int
    address: int
    state: str
    via: tuple[str, ...]
    physical: int | None
    pagefile: tuple[int, int] | None
    file: str | None
    file_offset: int | None
    sha256: str | None

    @classmethod
    def of(cls, event: Event) -> TruthPage:
        """The page that a `page` event tells of."""
        slot = event.get("pagefile")
        offset = event.get("file_offset")
        return cls(
            pid=_number(event["pid"]),
            address=_number(event["va"]),
            state=str(event["state"]),
            via=tuple(str(word) for word in _list(event.get("via"))),
            physical=None if event.get("pa") is None else _number(event["pa"]),
            pagefile=(_number(slot["number"]), _number(slot["offset"])) if isinstance(slot, Mapping) else None,
            file=None if event.get("file") is None else str(event["file"]),
            file_offset=None if offset is None else _number(offset),
            sha256=None if event.get("sha256") is None else str(event["sha256"]),
        )


@dataclass(frozen=True, slots=True)
class Write:
    """One file write that the guest's kernel carried out: `offset` and `length` in bytes, `sha256` of the bytes."""

    pid: int
    tid: int
    file: str
    offset: int
    length: int
    sha256: str

    @classmethod
    def of(cls, event: Event) -> Write:
        """The write that a `write` event tells of."""
        return cls(
            pid=_number(event["pid"]),
            tid=_number(event["tid"]),
            file=str(event["file"]),
            offset=_number(event["offset"]),
            length=_number(event["length"]),
            sha256=str(event["sha256"]),
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """Everything the frozen guest said when it was asked: its pages, and all events since it booted."""

    pages: tuple[TruthPage, ...]
    events: tuple[Event, ...]

    @property
    def writes(self) -> list[Write]:
        """The file writes of notepad.exe since the guest booted, in order."""
        return [Write.of(event) for event in self.events if event.get("event") == "write"]


def read_log(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a serial log; lines that are no JSON objects (a crash's last words) become `text` events."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            yield event
        elif line.strip():
            yield {"event": "text", "text": line.strip()}


def _number(value: object) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return int(value, 0)
    raise ValueError(f"expected a number in the guest's log, found {value!r}")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
