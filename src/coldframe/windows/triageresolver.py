"""Reading and explaining addresses of a triage dump: bytes from its blocks, page tables where blocks hold the self-map.

A triage dump has virtual addresses and no physical memory. So "where a page is" is answered by its blocks alone; the
page tables can still be explained where the blocks reach the addresses at which Windows maps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from coldframe.errors import CapabilityError, UnreadableMemoryError
from coldframe.images.triage import TriageDump
from coldframe.memory import Run
from coldframe.paging import AddressSpace, Page, PageTableFormat, PteLayout, Resolver, State, Step
from coldframe.paging.formats import LARGE, VALID
from coldframe.paging.notes import ABSENT, Asked, Entry, Notes
from coldframe.paging.selfmap import entry_addresses
from coldframe.paging.sources import FindsVads

if TYPE_CHECKING:
    from coldframe.paging import PageArrays

_HOLE = 1 << 40  # bytes: behind the last block, how much is said to be unreadable


class TriageResolver(Resolver):
    """Answers for the blocks of `dump`; `pte_base` is nt!MmPteBase, or None where it is not known."""

    def __init__(
        self, dump: TriageDump, page_format: PageTableFormat, layout: PteLayout | None, pte_base: int | None
    ) -> None:
        super().__init__(dump.blocks, page_format, layout, kernel_dtb=dump.registers["cr3"])
        self.pte_base = pte_base

    def resolve(self, dtb: int, address: int, vads: FindsVads | None = None, *, depth: int = 0) -> Page:
        """As a resolver of physical memory does, but `physical` is None; bytes of a block are `supplied`."""
        notes = Notes(address)
        told = self._explain(Asked(address, None, notes, depth))
        run = self.physical.run_at(address)
        if run is not None:
            state = notes.state if told else State.VALID
            notes.steps.append(Step("block", run.start, run.offset, f"{self._block(run)} holds the bytes"))
            page = notes.page(ABSENT)
            return replace(page, state=state, reason="", hole=0, supplied=True, source="block")
        if told:
            page = notes.page(ABSENT)
            return page if page.readable else replace(page, hole=min(page.hole or 1, self._gap(address)))
        reason = "the dump has no page table for this address, and no block of it holds the byte"
        after = next((block for block in self.physical.runs if block.start > address), None)
        before = next((block for block in reversed(self.physical.runs) if block.end <= address), None)
        near = [self._block(block) for block in (before, after) if block is not None]
        notes.stop(State.UNMAPPED, f"{reason}; the nearest: {' and '.join(near)}" if near else reason)
        return replace(notes.page(ABSENT), hole=self._gap(address))

    def locate(self, dtb: int, address: int, vads: FindsVads | None = None, depth: int = 0) -> int:
        """The virtual address of the page itself where a block holds the byte: blocks are read by it."""
        return self._walk(dtb, address, vads, None, depth)

    def _walk(self, dtb: int, address: int, vads: FindsVads | None, notes: Notes | None, depth: int = 0) -> int:
        if self.physical.run_at(address) is not None:
            return address
        return ABSENT if notes is None else notes.stop(State.UNMAPPED, "no block of the dump holds it")

    def _in_ram(self, physical: int, state: State, notes: Notes | None) -> int:
        if notes is None:
            return ABSENT
        return notes.stop(state, f"page frame {physical >> 12:x} is not in a triage dump, and no block holds the byte")

    def _explain(self, asked: Asked) -> bool:
        """Note the entries on the way that blocks hold; whether they tell the page's state."""
        address, notes = asked.address, asked.notes
        assert notes is not None
        if self.pte_base is None or not self.format.is_canonical(address):
            return False
        places = entry_addresses(self.format, self.pte_base, address)
        for level in self.format.levels:
            at = places.get(level.name)
            if at is None:
                continue
            try:
                stored = self._read(at)
            except UnreadableMemoryError:
                continue
            entry = Entry(level.name, at, stored, 1 << level.shift)
            if level is self.format.levels[-1] or not stored & VALID or (stored & LARGE and level.large_frame):
                return self._last(asked, entry, level.large_frame)
            notes.steps.append(self._valid_step(entry, stored & self._table_frame))
        return False

    def _last(self, asked: Asked, entry: Entry, large_frame: int) -> bool:
        """The entry at which the walk ends, as far as tables are known."""
        assert asked.notes is not None
        if entry.stored & VALID and entry.level != "PTE":
            self._large(asked.address, asked.notes, entry, large_frame)
        elif entry.stored & VALID:
            frame = entry.stored & self._frame
            asked.notes.steps.append(self._valid_step(entry, frame))
            self._in_ram(frame, State.VALID, asked.notes)
        elif entry.level == "PTE":
            self._invalid_pte(asked, entry)
        else:
            found = self._invalid_table(asked, entry)
            return isinstance(found, int)
        return True

    def _block(self, run: Run) -> str:
        number = self.physical.runs.index(run)
        return f"block {number} ({run.start:#x}-{run.end:#x}, at {run.offset:#x} of the file)"

    def _gap(self, address: int) -> int:
        """How many bytes from `address` on no block holds."""
        return next((run.start - address for run in self.physical.runs if run.start > address), _HOLE)


class TriageSpace(AddressSpace):
    """The kernel's addresses as far as the blocks reach."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes at `address`; raises `UnreadableMemoryError` as an address space does."""
        try:
            return self._physical.read(address, size)
        except UnreadableMemoryError as error:
            page = self.resolve(error.address)
            raise UnreadableMemoryError(error.address, error.size, page.reason or error.reason) from None

    def read_padded(self, address: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
        """As an address space does: `size` bytes with zeros in place of holes, and the holes."""
        out, holes, position, end = bytearray(size), [], address, address + size
        for run in self._physical.runs:
            low, high = max(run.start, position), min(run.end, end)
            if low >= high:
                continue
            if low > position:
                holes.append((position, low - position))
            out[low - address : high - address] = self._physical.read(low, high - low)
            position = high
        if position < end:
            holes.append((position, end - position))
        return bytes(out), holes

    def u8(self, address: int) -> int:
        """The byte at `address`."""
        return self.read(address, 1)[0]

    def u16(self, address: int) -> int:
        """The little-endian 16-bit value at `address`."""
        return int.from_bytes(self.read(address, 2), "little")

    def u32(self, address: int) -> int:
        """The little-endian 32-bit value at `address`."""
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """The little-endian 64-bit value at `address`."""
        return int.from_bytes(self.read(address, 8), "little")

    def read_cstring(self, address: int, limit: int = 4096) -> bytes:
        """The bytes up to the first zero byte, or `limit` of them."""
        run = self._physical.run_at(address)
        here = self.read(address, 1 if run is None else min(limit, run.end - address))
        text, zero, _ = here.partition(b"\0")
        return text if zero or len(here) == limit else text + self.read_cstring(address + len(here), limit - len(here))

    def translate(self, address: int) -> int | None:
        """None: a triage dump has no physical addresses."""
        return None

    def pages(self, start: int | None = None, end: int | None = None) -> PageArrays:
        """Raises `CapabilityError`: there are no page tables to list."""
        raise _no_tables()

    def spans(self, *_: object, **__: object) -> Iterator[tuple[int, int, int | None]]:  # type: ignore[override]
        """Raises `CapabilityError`: there are no page tables to list."""
        raise _no_tables()

    def write(self, address: int, data: bytes) -> None:
        """Raises `CapabilityError`: a dump is not written to."""
        raise CapabilityError(f"cannot write {len(data):#x} bytes at {address:#x}: a triage dump is read-only")


def _no_tables() -> CapabilityError:
    return CapabilityError("a triage dump has no page tables, so its pages cannot be listed: take a complete dump")
