"""Marks in minint's log between which its programs are counted: they wait, then work, then say that they are done."""

from __future__ import annotations

import time
from collections.abc import Iterable

from coldframe.minint import Minint
from coldframe.minint.truth import Write


def noted(machine: Minint, text: str) -> bool:
    """Whether the guest has noted `text` by now."""
    list(machine.new_events())
    return any(event.get("event") == "note" and event.get("text") == text for event in machine.events)


def stand_still(machine: Minint, *texts: str) -> int:
    """Stop the guest when it has noted all of `texts`; returns how many events its log has by then."""
    for text in texts:
        if not noted(machine, text):
            machine.wait_for("note", accept=lambda event, text=text: event.get("text") == text)  # type: ignore[misc]
    machine.control("stop")
    list(machine.new_events())
    return len(machine.events)


def writes_up_to(machine: Minint, first: int, last: Iterable[tuple[int, int]]) -> list[Write]:
    """The writes in the log from its event number `first`, when each of `last` (thread and offset) is among them.

    A call is seen when it begins, and logged when its bytes are on the disk: a starved guest may take seconds for that.
    """
    missing, deadline = set(last), time.monotonic() + 60
    while True:
        list(machine.new_events())
        writes = [Write.of(event) for event in machine.events[first:] if event.get("event") == "write"]
        missing -= {(write.tid, write.offset) for write in writes}
        if not missing:
            return writes
        assert time.monotonic() < deadline, f"not in the log: {missing}"
        time.sleep(0.02)
