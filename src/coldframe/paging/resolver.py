"""One algorithm from a virtual address to its page, through every state that Windows keeps a page in.

`Resolver.resolve` explains, `Resolver.translate` only answers: both are the same walk, the one with a notebook and the
other without, so that they cannot differ.

Here are the entries that the processor itself would follow; what those that are not valid mean is in `invalid`.

Nothing loops over guest data: the levels are counted, and a prototype PTE's own address is resolved to a depth of
`MAX_DEPTH`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging.asks import Asks
from coldframe.paging.formats import LARGE, PAGE_MASK, PAGE_SIZE, VALID, PageTableFormat
from coldframe.paging.invalid import InvalidEntries
from coldframe.paging.layout import PteLayout
from coldframe.paging.notes import ABSENT, Asked, Entry, Notes
from coldframe.paging.page import Page, State, Via
from coldframe.paging.sources import DescribesSubsections, FindsVads, NamesPagingFiles, PageSource
from coldframe.paging.walk import VALID_OR_LARGE, Walk

RUNNING = float("nan")
"""The epoch of a guest that runs: it equals none, itself included, so that nothing which was kept is used."""


class Resolver(InvalidEntries):
    """Finds pages in one guest's memory.

    `layout` None means that the kernel's types are not known yet: then only what the processor itself would find is
    found. `kernel_dtb` is the DTB by which prototype PTEs are read. `virtual_store` is the paging-file number that
    stands for the compressed store, or tells it when called. `kernel_dtb` and all that follows it may be set later, as
    it becomes known; then call `drop_caches`.

    The resolver itself keeps nothing of the guest's memory. `epoch` counts the calls of `drop_caches`: what others keep
    (`AddressSpace` its translations) is good for one epoch. While the guest runs it is `RUNNING`, which nothing equals.
    """

    def __init__(
        self,
        physical: PhysicalMemory,
        format: PageTableFormat,  # noqa: A002
        layout: PteLayout | None,
        *,
        kernel_dtb: int,
        invalid_pte_mask: int = 0,
        subsections: DescribesSubsections | None = None,
        paging_files: NamesPagingFiles | None = None,
        virtual_store: int | Callable[[], int | None] | None = None,
        pages: PageSource | None = None,
    ) -> None:
        if layout is not None and layout.entry_size != format.entry_size:
            raise FormatError(
                f"the kernel's page-table entries have {layout.entry_size} bytes and those of {format.name} paging"
                f" {format.entry_size}: the symbol file is of another kernel"
            )
        Walk.__init__(self, physical, format, layout)
        Asks.__init__(self, layout, subsections, paging_files, virtual_store, pages)
        self.kernel_dtb = kernel_dtb
        self.invalid_pte_mask = invalid_pte_mask
        self.epoch: float = 0
        self.runs = False
        """Whether the guest runs while it is read; whoever changes this calls `drop_caches` then."""
        self._drops = 0

    def drop_caches(self) -> None:
        """Make every translation kept from now on a new one; whoever lets the guest run calls this."""
        self._drops += 1
        self.epoch = RUNNING if self.runs else self._drops

    def resolve(self, dtb: int, address: int, vads: FindsVads | None = None, *, depth: int = 0) -> Page:
        """The page of `address` in the address space of `dtb`, with every entry read on the way.

        `vads` are the VADs of the process; without them, pages that only the VAD tree tells of are `unmapped`, and
        the reason says so. `depth` is how many prototype PTEs this address itself lies behind. Raises nothing for any
        content of the guest's memory; `GuestGoneError` when the guest ends.
        """
        notes = Notes(address)
        page = notes.page(self._walk(dtb, address, vads, notes, depth))
        if page.readable:
            return page
        told = self.explained(page)
        if told is not None:
            steps, reason = page.steps + told.steps, told.reason or page.reason
            page = replace(page, steps=steps, source=told.source, reason=reason)
        return page if self.supplied(page) is None else replace(page, supplied=True, reason="", hole=0)

    def look(self, dtb: int, address: int, vads: FindsVads | None = None) -> Page:
        """As `resolve`, without asking the page source whether it has the page."""
        notes = Notes(address)
        return notes.page(self._walk(dtb, address, vads, notes))

    def translate(self, dtb: int, address: int, vads: FindsVads | None = None) -> int | None:
        """The guest-physical address of the byte at `address`, or None where `resolve` finds none in RAM."""
        answer = self.locate(dtb, address, vads, 0)  # all of them: Python is quicker to call so
        return answer if answer >= 0 else None

    def locate(self, dtb: int, address: int, vads: FindsVads | None = None, depth: int = 0) -> int:
        """As `translate`, but `ZERO` for a page promised to read as zeros, and `ABSENT` for any other without RAM.

        `depth` is how many prototype PTEs this address lies behind.
        """
        # The walk of what nearly every address has: valid entries in the run of RAM that was read last. Anything else
        # is `_walk`'s, which begins anew.
        start, end, words = self.physical.words64 if self._width == 3 else self.physical.words32
        width, frame, table = self._width, self._table_frame, dtb & self._root
        if 0 <= address < self._low_end or self._high_start <= address < 1 << 64:
            try:
                for shift, index in self._above:
                    if table < start:
                        break
                    stored = words[(table + (address >> shift & index) - start) >> width]
                    if stored & VALID_OR_LARGE != VALID:
                        break
                    table = stored & frame
                else:
                    if table >= start:
                        stored = words[(table + (address >> self._pte_shift & self._pte_index) - start) >> width]
                        physical = stored & self._frame | address & PAGE_MASK
                        if stored & VALID and start <= physical < end:
                            return physical
            except IndexError:
                pass
        return self._walk(dtb, address, vads, None, depth)

    def _walk(self, dtb: int, address: int, vads: FindsVads | None, notes: Notes | None, depth: int = 0) -> int:
        """Walk the tables; a physical address, `ZERO` or `ABSENT`. The one algorithm."""
        if not 0 <= address < self._low_end and not self._high_start <= address < 1 << 64:
            return ABSENT if notes is None else self._not_canonical(address, notes)
        read, width = self._read, self._width
        start, end, words = self.physical.words64 if width == 3 else self.physical.words32
        table = dtb & self._root
        supplied: bytes | None = None
        name, at, span = "", 0, PAGE_SIZE
        try:
            for name, shift, index, large_frame, span in self._tables:
                at = table + (address >> shift & index)
                if supplied is not None:
                    stored = self._supplied_entry(supplied, at)
                else:
                    stored = words[(at - start) >> width] if start <= at < end else read(at)
                if not stored & VALID:
                    found = self._invalid_table(Asked(address, vads, notes, depth), Entry(name, at, stored, span))
                    if isinstance(found, int):
                        return found
                    table, supplied = found
                    continue
                if stored & LARGE and large_frame:
                    return self._large(address, notes, Entry(name, at, stored, span), large_frame)
                table = stored & self._table_frame
                supplied = None
                if notes is not None:
                    notes.steps.append(self._valid_step(Entry(name, at, stored, span), table))
            name, span = "PTE", PAGE_SIZE
            at = table + (address >> self._pte_shift & self._pte_index)
            if supplied is not None:
                stored = self._supplied_entry(supplied, at)
            else:
                stored = words[(at - start) >> width] if start <= at < end else read(at)
        except UnreadableMemoryError as error:
            if notes is None:
                return ABSENT
            return notes.stop(State.UNMAPPED, f"the {name} at {at:#x} cannot be read: {error.reason}", span)
        if not stored & VALID:
            return self._invalid_pte(Asked(address, vads, notes, depth), Entry("PTE", at, stored, PAGE_SIZE))
        frame = stored & self._frame
        physical = frame | address & PAGE_MASK
        if notes is None and start <= physical < end:
            return physical
        if notes is not None:
            notes.steps.append(self._valid_step(Entry("PTE", at, stored, PAGE_SIZE), frame))
        return self._in_ram(physical, State.VALID, notes)

    def _large(self, address: int, notes: Notes | None, entry: Entry, large_frame: int) -> int:
        frame = entry.stored & large_frame
        if self.format.pse36:
            frame |= (entry.stored >> 13 & 0xFF) << 32
        if notes is not None:
            notes.passes(Via.LARGE_PAGE)
            notes.steps.append(self._valid_step(entry, frame, large=True))
        return self._in_ram(frame | address & (entry.span - 1), State.VALID, notes)

    def _not_canonical(self, address: int, notes: Notes) -> int:
        reason = f"no address of {self.format.name} paging: those have {self.format.address_bits} bits"
        notes.stop(State.UNMAPPED, reason + (", sign-extended" if self.format.canonical else ""))
        if self._low_end <= address < self._high_start:
            notes.hole = self._high_start - address
        return ABSENT
