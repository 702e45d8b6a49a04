"""ReactOS' swap entries in PTEs of eight bytes, whose slots do not stand where its own types have PageFileHigh."""

from __future__ import annotations

import pytest

from builder import LAYOUTS, PAGE, ImageBuilder, pattern
from builder.layouts import BitFieldTypes
from builder.states import ListedVads
from coldframe.paging import FORMATS, AddressSpace, PteLayout, Resolver, State
from coldframe.paging.arrays import CODE
from coldframe.paging.page import PagefileSlot

SIZE, ROWS = LAYOUTS["x64 2003"]
TYPES = BitFieldTypes(SIZE, {**ROWS, "_MEMORY_AREA": {}})
VA = 0x7FF600000000


def space_of(value: int) -> tuple[AddressSpace, PteLayout]:
    builder = ImageBuilder(BitFieldTypes(SIZE, ROWS), ram=((0, 1 << 20),))
    builder.map(builder.kernel_dtb, VA + PAGE, pattern(1))
    builder.set_entry(builder.kernel_dtb, VA, value)
    layout = PteLayout.from_types(TYPES)
    resolver = Resolver(builder.physical(), FORMATS["4-level"], layout, kernel_dtb=builder.kernel_dtb)
    return AddressSpace(resolver, builder.kernel_dtb, ListedVads()), layout


@pytest.mark.parametrize(("file", "slot"), [(0, 1), (3, 0x45), (15, 0xFFFFF), (1, 0x100000), (2, 0x123456789)])
def test_the_slot_stands_above_the_transition_bit(file, slot):
    """`ENTRY_FROM_FILE_OFFSET` of ntoskrnl/mm/pagefile.c is `file | slot << 11 | 0x400`; mm/i386/page.c, which serves
    amd64 too, stores it shifted by one, while `_MMPTE_SOFTWARE.PageFileHigh` of amd64 begins at bit 32."""
    space, _ = space_of((file | slot << 11 | 0x400) << 1)
    page = space.resolve(VA)
    assert (page.state, page.pagefile) == (State.PAGEFILE, PagefileSlot(file, (slot - 1) * PAGE))
    pages = space.pages()
    (row,) = [row for row in range(len(pages)) if pages.address[row] == VA]
    assert (pages.state[row], pages.number[row], pages.offset[row]) == (CODE[State.PAGEFILE], file, (slot - 1) * PAGE)


def test_what_says_to_look_in_the_vad_is_still_pagefilehigh_all_ones():
    """`PrototypePte` of ntoskrnl/mm/amd64/init.c: `MI_PTE_LOOKUP_NEEDED`, 0xFFFFFFFF, at bit 32."""
    space, layout = space_of(0xFFFFFFFF << 32 | 1 << 10 | 4 << 5)
    assert layout.is_vad_marker(0xFFFFFFFF << 32 | 1 << 10 | 4 << 5)
    assert not layout.is_vad_marker(0xFFFFF << 12 | 1 << 10)
    assert space.resolve(VA).state is State.UNMAPPED
    assert VA not in space.pages().address


def test_demand_zero_stays_demand_zero():
    space, _ = space_of(4 << 5)
    assert space.resolve(VA).state is State.DEMAND_ZERO
    assert space.read(VA, PAGE) == bytes(PAGE)
