"""Is every page in RAM? What was done at boot is not assumed to have worked: the running guest is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coldframe.errors import ColdframeError
from coldframe.memory import PAGE_SIZE
from coldframe.paging import State
from coldframe.paging.arrays import CODE, PageArrays
from coldframe.resident.images import RUNS_FROM_MEMORY, VARIABLE
from coldframe.windows import Guest

if TYPE_CHECKING:
    from coldframe.resident.booting import ResidentBoot
    from coldframe.windows.facts import Value

NEARLY_ALL = 0.9
"""The share of the commit limit from which on a warning is due: without paging files nothing raises the limit."""
_COMPRESSION = "MemCompression"
_COMMIT = (
    ("MiSystemPartition", "_MI_PARTITION", "Vp.TotalCommittedPages", "Vp.TotalCommitLimit"),
    ("MmTotalCommittedPages", "", "MmTotalCommittedPages", "MmTotalCommitLimit"),
)


@dataclass(frozen=True, slots=True)
class PageCounts:
    """4 KB pages of all address spaces, the kernel's half once. Shared pages count in each process that maps them.

    `states` are all pages by state. Of the pages in state subsection, `images` belong to image files, `data` to data
    files. `devices` are valid pages that lead to no RAM (device memory): nothing that could be read. `not_in_ram` are
    all other pages whose bytes are not in RAM, nor promised zeros; `unreadable` those of them that cannot be read
    otherwise either (a running guest's own disk has its files).
    """

    states: Mapping[str, int]
    images: int
    data: int
    devices: int
    not_in_ram: int
    unreadable: int

    @property
    def promised(self) -> int:
        """How many pages are where a resident boot leaves none: paging files, the compressed store, image files."""
        return self.states.get(State.PAGEFILE, 0) + self.states.get(State.COMPRESSED, 0) + self.images

    def facts(self) -> dict[str, Value]:
        """As JSON has it."""
        return {
            "pages": {str(state): count for state, count in self.states.items()},
            "image_subsection": self.images,
            "data_subsection": self.data,
            "device_memory": self.devices,
            "not_in_ram": self.not_in_ram,
            "unreadable": self.unreadable,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `problems` says what a resident boot promises and this guest lacks; `notes` what to know
    besides."""

    paging_files: Sequence[str]
    winpe_mode: int | None
    compression_process: int | None
    store: int | None
    committed: int | None
    commit_limit: int | None
    pages: PageCounts
    before: PageCounts | None = None
    prevented: Sequence[str] = ()
    let_through: Sequence[str] = ()
    lost: Sequence[str] = ()
    problems: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())

    @property
    def resident(self) -> bool:
        """Whether the promise holds: no paging file, no compression, no page in a paging file, a store or an image."""
        return not self.problems

    def facts(self) -> dict[str, Value]:
        """As JSON has it; sizes in bytes."""
        return {
            "resident": self.resident,
            "paging_files": list(self.paging_files),
            "prevented": list(self.prevented),
            "let_through": list(self.let_through),
            "winpe_mode": None if self.winpe_mode is None else f"{self.winpe_mode:#x}",
            "compression": {"process": self.compression_process, "store": self.store},
            "commit": {"bytes": self.committed, "limit": self.commit_limit},
            "before": None if self.before is None else self.before.facts(),
            "after": self.pages.facts(),
            "lost": list(self.lost),
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def verify(guest: Guest, boot: ResidentBoot | None = None) -> Report:
    """Look at `guest`, which must not run meanwhile; `boot` adds what its boot prevented, let through and missed."""
    files = [file for file in guest.paging_files if not file.is_store]
    names = [file.name or f"number {file.number}" for file in files]
    store = next((file.number for file in guest.paging_files if file.is_store), None)
    compression = next((process.pid for process in guest.processes if process.name.startswith(_COMPRESSION)), None)
    committed, limit = _commit(guest)
    calls = boot.calls if boot is not None else ()
    report = Report(
        paging_files=names,
        winpe_mode=_winpe_mode(guest),
        compression_process=compression,
        store=store,
        committed=committed,
        commit_limit=limit,
        pages=count_pages(guest),
        before=boot.before if boot is not None else None,
        prevented=[call.file or "a file without a readable name" for call in calls if call.prevented],
        let_through=[f"{call.file} for {call.process}: {call.reason}" for call in calls if not call.prevented],
        lost=tuple(boot.lost) if boot is not None else (),
    )
    return _judged(report, guest)


def count_pages(guest: Guest) -> PageCounts:
    """Count every page of every process's user half and of the kernel's half."""
    states: Counter[str] = Counter()
    images = data = devices = not_in_ram = unreadable = 0
    kinds: dict[int, bool] = {}
    spaces = [process.memory for process in guest.processes if process.dtb]
    for space in (*spaces, guest.memory):
        arrays = space.mapped_pages()
        counted = arrays.census()
        states.update({state.value: count for state, count in counted.pages.items() if count})
        of_images, of_data = _subsections(guest, arrays, kinds)
        images += of_images
        data += of_data
        no_ram = _pages(arrays, ~arrays.in_memory & (arrays.state == CODE[State.VALID]))
        devices += no_ram
        not_in_ram += _pages(arrays, ~arrays.in_memory) - no_ram
        unreadable += counted.unreadable - no_ram
    return PageCounts(dict(states), images, data, devices, not_in_ram, unreadable)


def _pages(arrays: PageArrays, rows: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
    return int((arrays.size[rows] // np.uint64(PAGE_SIZE)).sum())


def _subsections(guest: Guest, arrays: PageArrays, kinds: dict[int, bool]) -> tuple[int, int]:
    """How many pages in state subsection are of images, and how many of data files."""
    found = {True: 0, False: 0}
    rows = arrays.state == CODE[State.SUBSECTION]
    places, where = np.unique(arrays.subsection[rows], return_inverse=True)
    sizes = np.bincount(where, weights=arrays.size[rows] // np.uint64(PAGE_SIZE), minlength=len(places))
    for place, count in zip(places.tolist(), sizes.tolist(), strict=True):
        if place not in kinds:
            kinds[place] = _is_image(guest, place)
        found[kinds[place]] += int(count)
    return found[True], found[False]


def _is_image(guest: Guest, subsection: int) -> bool:
    """Whether a `_SUBSECTION` is of an image; one that cannot be read counts as one, since nothing shows otherwise."""
    try:
        area = guest.struct("_SUBSECTION", subsection).pointer("ControlArea").struct("_CONTROL_AREA")
        return bool(area.integer("u.Flags.Image"))
    except ColdframeError:
        return True


def _winpe_mode(guest: Guest) -> int | None:
    address = guest.variable(VARIABLE)
    try:
        return None if address is None else guest.memory.u32(address)
    except ColdframeError:
        return None


def _commit(guest: Guest) -> tuple[int | None, int | None]:
    """Bytes committed and the limit, from the system partition or, to 8.1, the variables of those names."""
    for symbol, record, used, limit in _COMMIT:
        address = guest.variable(symbol)
        try:
            if address is not None and record and guest.types.has_field(record, used):
                partition = guest.struct(record, address)
                return partition.integer(used) * PAGE_SIZE, partition.integer(limit) * PAGE_SIZE
            other = guest.variable(limit)
            if address is not None and not record and other is not None:
                return guest.typed.pointer(address) * PAGE_SIZE, guest.typed.pointer(other) * PAGE_SIZE
        except ColdframeError:
            continue
    return None, None


def _judged(report: Report, guest: Guest) -> Report:
    """With what is missing of the promise, and what else the user should know."""
    problems, notes = [], []
    states = report.pages.states
    if report.paging_files:
        problems.append(f"paging files are in use: {', '.join(report.paging_files)}")
    if report.compression_process is not None or report.store is not None:
        problems.append("memory compression runs: its store is pages of a process, which other tools do not read")
    if states.get(State.PAGEFILE):
        problems.append(f"{states[State.PAGEFILE]} pages are in paging files, or behind page tables that are")
    if states.get(State.COMPRESSED):
        problems.append(f"{states[State.COMPRESSED]} pages are in the compressed store")
    if report.pages.images:
        problems.append(f"{report.pages.images} pages of images are in their files")
    if report.pages.data:
        notes.append(
            f"{report.pages.data} pages of mapped data files are in their files: no boot option changes that, they are "
            "the files' own bytes, and read from the disk"
        )
    if report.committed is not None and report.commit_limit:
        share = report.committed / report.commit_limit
        if share >= NEARLY_ALL:
            notes.append(
                f"{share:.0%} of the commit limit is used and no paging file can raise it: programs will soon be "
                "refused memory; give the guest more RAM"
            )
    if report.winpe_mode is not None and report.winpe_mode & RUNS_FROM_MEMORY:
        notes.append(f"nt!{VARIABLE} says {report.winpe_mode:#x}: a program in the guest can tell WinPE mode")
    return Report(
        **{name: getattr(report, name) for name in Report.__slots__ if name not in ("problems", "notes")},
        problems=tuple(problems),
        notes=(*notes, *(f"warning: {warning}" for warning in guest.warnings)),
    )
