"""What the resolver answers: a page's state, the indirections passed on the way, and every entry that was read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a page's content is."""

    VALID = "valid"
    TRANSITION = "transition"
    PAGEFILE = "pagefile"
    COMPRESSED = "compressed"
    DEMAND_ZERO = "demand-zero"
    SUBSECTION = "subsection"
    UNMAPPED = "unmapped"


class Via(StrEnum):
    """An indirection passed on the way to the page."""

    LARGE_PAGE = "large-page"
    TRANSITION_TABLE = "transition-table"
    PAGED_TABLE = "paged-table"
    PROTOTYPE = "prototype"
    VAD = "vad"


@dataclass(frozen=True, slots=True)
class Step:
    """One entry read on the way.

    `level` is "PML5E", "PML4E", "PDPTE", "PDE", "PTE", "prototype PTE", "VAD" or "subsection", or what a page source
    calls its own ("store record"); `entry_address` where the entry was read from (guest-physical for hardware levels,
    kernel-virtual for the others); `value` its raw value; `says` what it said, in words.
    """

    level: str
    entry_address: int
    value: int
    says: str


@dataclass(frozen=True, slots=True)
class PagefileSlot:
    """A place in a paging file: its number (0 to 15) and the byte offset of the page."""

    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class SubsectionPage:
    """A page that is still in a file: the `_SUBSECTION`'s kernel-virtual address and the byte offset in the file.

    `file` is the name that the FILE_OBJECT gives, or None where it cannot be read; `file_offset` is None where the
    subsection itself cannot be read.
    """

    address: int
    file: str | None
    file_offset: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """The answer for one virtual address.

    `physical` is the guest-physical address of the *byte asked for* (page offset included) where the page is in RAM,
    else None. `readable` says whether `read` would return bytes now; if not, `reason` says which state stopped it and
    what would unlock it, and `hole` how many bytes from `address` on are known to be unreadable for that same reason,
    so that a reader can skip them in one step. `supplied` says that a page source has the bytes of a page that left
    RAM, and `source` which place it has them from (`store:3`).
    """

    address: int
    state: State
    physical: int | None = None
    via: tuple[Via, ...] = ()
    steps: tuple[Step, ...] = ()
    pagefile: PagefileSlot | None = None
    subsection: SubsectionPage | None = None
    reason: str = ""
    hole: int = 0
    supplied: bool = False
    source: str = ""

    @property
    def readable(self) -> bool:
        """Whether the bytes can be had: in RAM, promised zeros, or supplied by a page source."""
        return self.physical is not None or self.state is State.DEMAND_ZERO or self.supplied
