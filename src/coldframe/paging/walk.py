"""What every walk of a format's tables needs to know, and the walks of entries that are plainly valid."""

from __future__ import annotations

from collections.abc import Callable

from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory
from coldframe.paging.formats import LARGE, PAGE_SIZE, VALID, PageTableFormat
from coldframe.paging.layout import PteLayout
from coldframe.paging.notes import ABSENT

VALID_OR_LARGE = VALID | LARGE


class Walk:
    """The tables of `physical` in `format`.

    `frame` masks the physical address in a PTE (as far as the kernel's types tell), `table_span` is how many bytes a
    table of PTEs maps.
    """

    def __init__(
        self,
        physical: PhysicalMemory,
        format: PageTableFormat,  # noqa: A002
        layout: PteLayout | None,
    ) -> None:
        self.physical = physical
        self.format = format

        # For each level above the PTEs: name, shift and mask that give the entry's offset in its table, the frame
        # mask of a large entry (or 0), and how much one entry maps.
        self._width = width = format.entry_size.bit_length() - 1
        self._tables = [
            (level.name, level.shift - width, ((1 << level.bits) - 1) << width, level.large_frame, 1 << level.shift)
            for level in format.levels[:-1]
        ]
        last = format.levels[-1]
        self._pte_shift = last.shift - width
        self._pte_index = ((1 << last.bits) - 1) << width
        self._entry_size = format.entry_size
        self._root = format.root
        self._table_frame = format.frame
        self.frame = self._frame = format.frame if layout is None else format.frame & layout.hardware_frame
        self.table_span = 1 << format.levels[-2].shift
        self._above = [(level.shift - width, ((1 << level.bits) - 1) << width) for level in format.levels[:-1]]
        self._low_end = 1 << (format.address_bits - 1 if format.canonical else format.address_bits)
        self._high_start = (1 << 64) - self._low_end if format.canonical else 1 << 64
        self._read: Callable[[int], int] = physical.u64 if format.entry_size == 8 else physical.u32

    def plain_table(self, dtb: int, address: int) -> int:
        """The guest-physical address of the table with the PTE of `address`, where all tables on the way are valid and
        in RAM; else (a large page, for one) `ABSENT`."""
        if not 0 <= address < self._low_end and not self._high_start <= address < 1 << 64:
            return ABSENT
        table = dtb & self._root
        try:
            for shift, index in self._above:
                stored = self._read(table + (address >> shift & index))
                if stored & VALID_OR_LARGE != VALID:
                    return ABSENT
                table = stored & self._table_frame
        except UnreadableMemoryError:
            return ABSENT
        run = self.physical.run_at(table)
        return table if run is not None and table + PAGE_SIZE <= run.end else ABSENT
