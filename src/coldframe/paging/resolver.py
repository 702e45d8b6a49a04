"""One algorithm from a virtual address to its page, through every state that Windows keeps a page in.

`Resolver.resolve` explains, `Resolver.translate` only answers: both are the same walk, the one with a notebook and the
other without, so that they cannot differ.

The order of tests, for an entry whose Valid bit is clear (the raw value first where a test must see it as stored, else
with the swizzle mask taken out):

- in a table above the PTEs: transition -> the table is read where it still is; zero or the "look in the VAD" marker
  -> VAD; PageFileHigh zero -> a table of zeros, so VAD; else the table is in a paging file or in the store.
- PTE: zero, or the marker on what is not in transition -> VAD; prototype bit -> the prototype PTE, read in the
  kernel's address space; transition; PageFileHigh zero -> demand-zero; the virtual store's number -> compressed; else
  paging file.
- prototype PTE: valid; transition; prototype bit -> subsection; PageFileHigh zero -> demand-zero; store; paging file.

Transition is tested as bit `Transition` set *and* bit `Prototype` clear: in prototype and subsection PTEs the same
place holds other things.

Nothing here loops over guest data: the levels are counted, and a prototype PTE's own address is resolved to a depth of
`MAX_DEPTH`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging import says
from coldframe.paging.asks import MAX_DEPTH, TROUBLE, Asks
from coldframe.paging.formats import LARGE, PAGE_MASK, PAGE_SIZE, VALID, PageTableFormat
from coldframe.paging.layout import Bits, PteLayout
from coldframe.paging.notes import ABSENT, ZERO, Asked, Entry, Notes, Table
from coldframe.paging.page import Page, State, Step, SubsectionPage, Via
from coldframe.paging.sources import DescribesSubsections, FindsVads, NamesPagingFiles, PageSource
from coldframe.paging.swizzle import unswizzle
from coldframe.paging.walk import VALID_OR_LARGE, Walk

RUNNING = float("nan")
"""The epoch of a guest that runs: it equals none, itself included, so that nothing which was kept is used."""


class Resolver(Walk, Asks):
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

    def _supplied_entry(self, table: bytes, offset: int) -> int:
        return int.from_bytes(table[offset : offset + self._entry_size], "little")

    def _in_ram(self, physical: int, state: State, notes: Notes | None) -> int:
        """The end of every walk that found a frame: the frame may still be none of the guest's RAM."""
        if physical in self.physical:
            if notes is not None:
                notes.state = state
            return physical
        if notes is None:
            return ABSENT
        told = self.physical.why_absent(physical)
        if told:
            return notes.stop(state, f"page frame {physical >> 12:x}: {told}")
        where = f"page frame {physical >> 12:x} is outside the guest's RAM"
        return notes.stop(state, where + ": a device's memory, or a table that is none")

    def _large(self, address: int, notes: Notes | None, entry: Entry, large_frame: int) -> int:
        frame = entry.stored & large_frame
        if self.format.pse36:
            frame |= (entry.stored >> 13 & 0xFF) << 32
        if notes is not None:
            notes.passes(Via.LARGE_PAGE)
            notes.steps.append(self._valid_step(entry, frame, large=True))
        return self._in_ram(frame | address & (entry.span - 1), State.VALID, notes)

    # Tables that are not valid

    def _invalid_table(self, asked: Asked, entry: Entry) -> Table | int:
        """Where the table of an invalid entry above the PTEs is, or the walk's answer where there is none."""
        notes, layout = asked.notes, self.layout
        if layout is None:
            return ABSENT if notes is None else self._types_unknown(entry, notes)
        value = unswizzle(entry.stored, self.invalid_pte_mask, layout.swizzle_bit)
        if layout.is_transition(value):
            table = value & layout.transition_frame & self._table_frame
            if notes is not None:
                notes.passes(Via.TRANSITION_TABLE)
                notes.steps.append(self._invalid_step(entry, value, f"transition table: pfn {table >> 12:x}"))
            return Table(table, None)
        if value == 0 or layout.is_vad_marker(entry.stored):
            if notes is not None:
                notes.steps.append(self._step(entry, "not valid; no table, look in the VADs"))
            return self._vad(asked, entry.span)
        if value & layout.prototype:
            if notes is None:
                return ABSENT
            notes.steps.append(self._step(entry, "not valid; prototype bit set"))
            reason = f"the {entry.level} at {entry.at:#x} has the prototype bit, which no table has"
            return notes.stop(State.UNMAPPED, reason, entry.span)
        if layout.page_file_high.get(value) == 0:
            if notes is not None:
                notes.steps.append(self._invalid_step(entry, value, "demand-zero table, look in the VADs"))
            return self._vad(asked, entry.span)
        return self._paged_table(asked, entry, value, layout)

    def _paged_table(self, asked: Asked, entry: Entry, value: int, layout: PteLayout) -> Table | int:
        """The table out of a paging file or the store, where a page source has it."""
        notes = asked.notes
        if notes is None and self.pages is None:
            return ABSENT
        state, slot = self.slot(value, layout)
        held = self.supplied_table(asked.address, value)
        if notes is not None:
            notes.passes(Via.PAGED_TABLE)
            notes.steps.append(self._invalid_step(entry, value, f"table in {self.place(state, slot)}"))
        if held is not None:
            return Table(0, held)
        if notes is None:
            return ABSENT
        notes.pagefile = slot
        reason = f"the table that the {entry.level} at {entry.at:#x} names is in {self.where(state, slot)}"
        return notes.stop(state, reason, entry.span)

    # PTEs that are not valid

    def _invalid_pte(self, asked: Asked, entry: Entry) -> int:
        notes, layout = asked.notes, self.layout
        if layout is None:
            return ABSENT if notes is None else self._types_unknown(entry, notes)
        value = unswizzle(entry.stored, self.invalid_pte_mask, layout.swizzle_bit)
        if value == 0 or (layout.is_vad_marker(entry.stored) and not layout.is_transition(value)):
            if notes is not None:
                words = "not valid; prototype: look in the VADs" if value else "zero, look in the VADs"
                notes.steps.append(self._step(entry, words))
            return self._vad(asked, PAGE_SIZE)
        if value & layout.prototype:
            pointer = layout.prototype_address(value)
            if notes is not None:
                words = "prototype relative to an unknown pool" if pointer is None else f"prototype: {pointer:#x}"
                notes.steps.append(self._invalid_step(entry, value, words, layout.prototype_protection))
            return self._prototype(asked, pointer)
        return self._software(asked, entry, value, layout)

    def _software(self, asked: Asked, entry: Entry, value: int, layout: PteLayout) -> int:
        """What a PTE and a prototype PTE have in common: transition, demand-zero, compressed, paging file."""
        notes = asked.notes
        if layout.is_transition(value):
            frame = value & layout.transition_frame & self._table_frame
            if notes is not None:
                notes.steps.append(self._invalid_step(entry, value, f"transition: pfn {frame >> 12:x}"))
            return self._in_ram(frame | asked.address & PAGE_MASK, State.TRANSITION, notes)
        if layout.page_file_high.get(value) == 0:
            if notes is not None:
                notes.state = State.DEMAND_ZERO
                notes.steps.append(self._invalid_step(entry, value, "demand-zero"))
            return ZERO
        if notes is None:
            return ABSENT
        state, slot = self.slot(value, layout)
        notes.pagefile = slot
        notes.steps.append(self._invalid_step(entry, value, self.place(state, slot)))
        return notes.stop(state, f"page is in {self.where(state, slot)}")

    # Prototype PTEs and VADs

    def _prototype(self, asked: Asked, pointer: int | None) -> int:
        """Follow the prototype PTE at kernel-virtual `pointer`."""
        notes, layout = asked.notes, self.layout
        if notes is not None:
            notes.passes(Via.PROTOTYPE)
        if layout is None or pointer is None:
            if notes is None:
                return ABSENT
            reason = "this kernel keeps prototype PTEs relative to nt!MmPagedPoolStart, which is not known"
            return notes.stop(State.UNMAPPED, reason)
        stored = self._prototype_pte(asked, pointer)
        if stored is None:
            return ABSENT
        entry = Entry("prototype PTE", pointer, stored, PAGE_SIZE)
        if stored & VALID:
            frame = stored & self._frame
            if notes is not None:
                notes.steps.append(self._valid_step(entry, frame))
            return self._in_ram(frame | asked.address & PAGE_MASK, State.VALID, notes)
        value = unswizzle(stored, self.invalid_pte_mask, layout.swizzle_bit)
        if value & layout.prototype:
            return ABSENT if notes is None else self._subsection(entry, value, layout, notes)
        return self._software(asked, entry, value, layout)

    def _prototype_pte(self, asked: Asked, pointer: int) -> int | None:
        """The entry at kernel-virtual `pointer`, found by this same algorithm; None, and why noted, if it cannot be."""
        notes, depth = asked.notes, asked.depth
        trouble = ""
        if pointer & (self._entry_size - 1):
            trouble = f" is no PTE's address: not a multiple of {self._entry_size}"
        elif depth >= MAX_DEPTH:
            trouble = f" lies behind {MAX_DEPTH} other prototype PTEs: a circle"
        else:
            answer = self.locate(self.kernel_dtb, pointer, depth=depth + 1)
            if answer == ZERO:
                return 0
            if answer >= 0:
                try:
                    return self._read(answer)
                except UnreadableMemoryError as error:
                    trouble = f" cannot be read: {error.reason}"
        if trouble:
            if notes is not None:
                notes.stop(State.UNMAPPED, f"the prototype PTE at {pointer:#x}{trouble}")
            return None
        return self._absent_prototype_pte(asked, pointer)

    def _absent_prototype_pte(self, asked: Asked, pointer: int) -> int | None:
        """A prototype PTE whose own page left RAM: from the page source, or not at all."""
        if asked.notes is None and self.pages is None:
            return None
        inner = Notes(pointer)
        page = inner.page(self._walk(self.kernel_dtb, pointer, None, inner, asked.depth + 1))
        held = self.supplied(page)
        if held is not None:
            return self._supplied_entry(held, pointer & PAGE_MASK)
        if asked.notes is not None:
            asked.notes.pagefile = page.pagefile
            state = State.UNMAPPED if page.pagefile is None else page.state
            asked.notes.stop(state, f"the prototype PTE at {pointer:#x} cannot be read: {page.reason}")
        return None

    def _subsection(self, entry: Entry, value: int, layout: PteLayout, notes: Notes) -> int:
        """A prototype PTE with the prototype bit: the page is in a file."""
        address = layout.subsection_address(value)
        words = "subsection relative to an unknown pool" if address is None else f"subsection: {address:#x}"
        notes.steps.append(self._invalid_step(entry, value, words, layout.subsection_protection))
        if address is None:
            unknown = "nt!MmSubsectionBase or nt!MmNonPagedPoolEnd, which are not known"
            return notes.stop(State.SUBSECTION, f"page is in a file; this kernel names subsections by {unknown}")
        described, subsections = None, self.subsections
        if subsections is not None:
            described = self.ask(1, lambda: subsections.subsection_page(address, entry.at))
        notes.subsection = described or SubsectionPage(address, None, None)
        if described is None:
            return notes.stop(State.SUBSECTION, f"page is in the file of the subsection at {address:#x}: give --disk")
        name = described.file or "a file whose name is not in memory"
        place = name if described.file_offset is None else f"{name} at {described.file_offset:#x}"
        step = Step("subsection", address, described.file_offset or 0, f"subsection at {address:#x}: {place}")
        notes.steps.append(step)
        return notes.stop(State.SUBSECTION, f"page is in {place}: give --disk")

    def _vad(self, asked: Asked, span: int) -> int:
        """What the VADs say of a page that the tables say nothing of."""
        address, vads, notes, _ = asked
        if address >= self.format.user_end or vads is None:
            if notes is None:
                return ABSENT
            if address >= self.format.user_end:
                return notes.stop(State.UNMAPPED, "nothing is mapped there", span)
            reason = "the tables are empty there, and there are no VADs to ask: name the process"
            return notes.stop(State.UNMAPPED, reason, span)
        try:
            vad = vads.vad_page(address)
        except TROUBLE as error:
            return ABSENT if notes is None else notes.stop(State.UNMAPPED, f"the VADs cannot be read: {error}")
        if vad is None:
            reason = "nothing is mapped there: no VAD holds the address"
            return ABSENT if notes is None else notes.stop(State.UNMAPPED, reason)
        if notes is not None:
            notes.passes(Via.VAD)
            words = vad.says if isinstance(vad.says, str) else self.ask(1, vad.says) or "not to be read"
            notes.steps.append(Step("VAD", vad.vad, vad.prototype_pte or 0, f"VAD at {vad.vad:#x}: {words}"))
        if vad.private:
            if notes is not None:
                notes.state = State.DEMAND_ZERO
            return ZERO
        if vad.prototype_pte is not None:
            return self._prototype(asked, vad.prototype_pte)
        if notes is None:
            return ABSENT
        reason = vad.trouble or f"the VAD at {vad.vad:#x} has no prototype PTE for this page"
        return notes.stop(State.UNMAPPED, reason)

    # Words

    def _step(self, entry: Entry, meaning: str) -> Step:
        words = says.entry(entry.level, entry.at, entry.stored, self._entry_size, meaning)
        return Step(entry.level, entry.at, entry.stored, words)

    def _valid_step(self, entry: Entry, frame: int, *, large: bool = False) -> Step:
        return self._step(entry, says.frame(frame, entry.stored, self.layout, large=large))

    def _invalid_step(self, entry: Entry, value: int, meaning: str, protection: Bits | None = None) -> Step:
        assert self.layout is not None
        return self._step(entry, says.not_valid(meaning, value, self.layout, entry.stored, protection))

    def _not_canonical(self, address: int, notes: Notes) -> int:
        reason = f"no address of {self.format.name} paging: those have {self.format.address_bits} bits"
        notes.stop(State.UNMAPPED, reason + (", sign-extended" if self.format.canonical else ""))
        if self._low_end <= address < self._high_start:
            notes.hole = self._high_start - address
        return ABSENT

    def _types_unknown(self, entry: Entry, notes: Notes) -> int:
        notes.steps.append(self._step(entry, "not valid"))
        reason = f"the {entry.level} at {entry.at:#x} is not valid, and what it means needs the kernel's types"
        return notes.stop(State.UNMAPPED, reason, entry.span)
