"""What page-table entries mean whose Valid bit is clear: the kernel's half of every walk.

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
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from coldframe.errors import UnreadableMemoryError
from coldframe.paging import says
from coldframe.paging.asks import MAX_DEPTH, TROUBLE, Asks
from coldframe.paging.formats import PAGE_MASK, PAGE_SIZE, VALID
from coldframe.paging.layout import Bits, PteLayout
from coldframe.paging.notes import ABSENT, ZERO, Asked, Entry, Notes, Table
from coldframe.paging.page import State, Step, SubsectionPage, Via
from coldframe.paging.sources import FindsVads
from coldframe.paging.swizzle import unswizzle
from coldframe.paging.walk import Walk


class InvalidEntries(Walk, Asks, ABC):
    """Finds a page from an entry that is not valid: `_invalid_table` above the PTEs, `_invalid_pte` for a PTE."""

    kernel_dtb: int
    invalid_pte_mask: int

    @abstractmethod
    def locate(self, dtb: int, address: int, vads: FindsVads | None = None, depth: int = 0) -> int:
        """The whole walk: where the page of `address` is; a prototype PTE is read by it."""

    @abstractmethod
    def _walk(self, dtb: int, address: int, vads: FindsVads | None, notes: Notes | None, depth: int = 0) -> int:
        """The same with notes of the way."""

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

    def _types_unknown(self, entry: Entry, notes: Notes) -> int:
        notes.steps.append(self._step(entry, "not valid"))
        reason = f"the {entry.level} at {entry.at:#x} is not valid, and what it means needs the kernel's types"
        return notes.stop(State.UNMAPPED, reason, entry.span)
