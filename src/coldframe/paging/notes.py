"""What a walk is about, and the notebook that turns a bare walk into an explained one."""

from __future__ import annotations

from typing import NamedTuple

from coldframe.paging.formats import PAGE_SIZE
from coldframe.paging.page import Page, PagefileSlot, State, Step, SubsectionPage, Via
from coldframe.paging.sources import FindsVads

ABSENT = -1
"""What a walk answers, instead of a physical address, for a page without bytes in RAM."""
ZERO = -2
"""What a walk answers for a page that is promised to read as zeros."""


class Notes:
    """The notebook of a walk: what `resolve` tells beyond the answer."""

    __slots__ = ("address", "hole", "pagefile", "reason", "state", "steps", "subsection", "via")

    def __init__(self, address: int) -> None:
        self.address = address
        self.state = State.UNMAPPED
        self.steps: list[Step] = []
        self.via: list[Via] = []
        self.pagefile: PagefileSlot | None = None
        self.subsection: SubsectionPage | None = None
        self.reason = ""
        self.hole = 0

    def passes(self, via: Via) -> None:
        """Note an indirection, once."""
        if via not in self.via:
            self.via.append(via)

    def stop(self, state: State, reason: str, span: int = PAGE_SIZE) -> int:
        """Note why the walk ends without bytes, and that this holds up to the end of the aligned `span`."""
        self.state = state
        self.reason = reason
        self.hole = span - (self.address & (span - 1))
        return ABSENT

    def page(self, answer: int) -> Page:
        """The notes as the public answer."""
        return Page(
            self.address,
            self.state,
            physical=answer if answer >= 0 else None,
            via=tuple(self.via),
            steps=tuple(self.steps),
            pagefile=self.pagefile,
            subsection=self.subsection,
            reason=self.reason,
            hole=self.hole if answer == ABSENT else 0,
        )


class Asked(NamedTuple):
    """One walk's question. `notes` is None in a walk that only answers; `depth` counts walks within walks."""

    address: int
    vads: FindsVads | None
    notes: Notes | None
    depth: int


class Entry(NamedTuple):
    """An entry as read: its level's name, where it was read, the stored value, and how many bytes it maps."""

    level: str
    at: int
    stored: int
    span: int


class Table(NamedTuple):
    """The next table to read: its physical address, or its bytes where a page source supplied them."""

    physical: int
    supplied: bytes | None
