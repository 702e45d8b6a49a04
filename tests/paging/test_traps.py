"""Each trap that a published tool has fallen into, by name; over a kernel of every layout of PTEs at hand.

Two traps are elsewhere, being about structures: arrays of prototype PTEs in several pieces (`windows.test_vad`), and
one byte of nt!KiImplementedPhysicalBits early in boot (`windows.test_startup`).
"""

from __future__ import annotations

import pytest

from builder import MB, PAGE, ImageBuilder, pattern
from builder.states import ListedVads
from coldframe.paging import FORMATS, AddressSpace, PteLayout, Resolver, State, Via
from paging.scenes import KERNELS, types_of

USER, KERNEL = 0x7FF600000000, 0xFFFFF80123400000


def layouts() -> list[str]:
    """The first kernel of each layout, and the hand-written ones of before 2018."""
    found = {PteLayout.from_types(types_of(name)): name for name in reversed(KERNELS)}
    return ["x64 2003", "x64 7 RTM", *sorted(found.values())]


@pytest.fixture(params=layouts())
def types(request):
    return types_of(request.param)


@pytest.fixture
def swizzling(types):
    if "SwizzleBit" not in types.record("_MMPTE_SOFTWARE").fields:
        pytest.skip("a kernel of before 2018 swizzles nothing")
    return types


def built(types, **options):
    builder = ImageBuilder(types, **options)
    layout = PteLayout.from_types(types)
    mask = builder.invalid_pte_mask
    dtb = builder.kernel_dtb
    return builder, Resolver(
        builder.physical(), FORMATS["4-level"], layout, kernel_dtb=dtb, invalid_pte_mask=mask, virtual_store=2
    )


@pytest.mark.parametrize("protection", [1, 4, 31])
def test_a_transition_pde_is_a_table_and_neither_a_page_nor_a_large_one(types, protection):
    """IceBox takes it for the page; volatility3 (#518) takes bit 7, protection, for a large page's."""
    builder, resolver = built(types)
    physical = builder.map(resolver.kernel_dtb, USER, pattern(1))
    table = builder.get_entry(resolver.kernel_dtb, USER, "PDE") & 0xFFFFFFFFFF000
    builder.set_entry(resolver.kernel_dtb, USER, builder.transition(table, protection), "PDE")
    page = resolver.resolve(resolver.kernel_dtb, USER + 0x123)
    assert (page.state, page.physical, page.via) == (State.VALID, physical + 0x123, (Via.TRANSITION_TABLE,))


@pytest.mark.parametrize("level", ["PDPTE", "PML4E"])
def test_higher_tables_may_be_in_transition_too(types, level):
    builder, resolver = built(types)
    physical = builder.map(resolver.kernel_dtb, USER, pattern(1))
    table = builder.get_entry(resolver.kernel_dtb, USER, level) & 0xFFFFFFFFFF000
    builder.set_entry(resolver.kernel_dtb, USER, builder.transition(table), level)
    assert resolver.translate(resolver.kernel_dtb, USER) == physical


def test_bit_11_of_a_prototype_and_of_a_subsection_pte_is_not_transition(types):
    """There it is Combined and ColdPage; rekall takes both for pages in transition."""
    builder, resolver = built(types)
    frame, pool = builder.allocate_page(pattern(1)), builder.allocate_pool(16)
    builder.write(pool, builder.hardware(frame).to_bytes(8, "little"))
    builder.write(pool + 8, (builder.subsection(builder.allocate_pool(64)) | 1 << 11).to_bytes(8, "little"))
    for index in range(2):
        builder.set_entry(resolver.kernel_dtb, USER + index * PAGE, builder.prototype(pool + 8 * index) | 1 << 11)
    assert resolver.resolve(resolver.kernel_dtb, USER).physical == frame
    assert resolver.resolve(resolver.kernel_dtb, USER + PAGE).state is State.SUBSECTION


@pytest.mark.parametrize("protection", [1, 3, 4, 7, 31])
def test_bit_7_is_protection_and_no_sign_of_a_page_in_a_paging_file(types, protection):
    """volatility3 finds such pages only where bit 7 is set."""
    builder, resolver = built(types)
    builder.set_entry(resolver.kernel_dtb, USER, builder.paged(3, 0x1A3000, protection))
    slot = resolver.resolve(resolver.kernel_dtb, USER).pagefile
    assert (slot.number, slot.offset) == (3, 0x1A3000)


def test_the_paging_files_number_is_where_the_types_say():
    """Bits 1 to 4 before 17134, since then 12 to 15 (a raw entry of each)."""
    newest = [name for name in KERNELS if PteLayout.from_types(types_of(name)).page_file_low.position == 12]
    for name, shift in (("x64 7 RTM", 1), *((name, 12) for name in newest[:1])):
        builder, resolver = built(types_of(name))
        builder.set_entry(resolver.kernel_dtb, USER, 0x1A3 << 32 | 5 << shift | 4 << 5)
        slot = resolver.resolve(resolver.kernel_dtb, USER).pagefile
        assert (slot.number, slot.offset) == (5, 0x1A3000)


@pytest.mark.parametrize("bit", [35, 38, 45, 51])
def test_the_mask_is_not_always_bit_45(swizzling, bit):
    builder, resolver = built(swizzling, swizzle="windows", invalid_pte_mask=1 << bit)
    frame = builder.allocate_page(pattern(1))
    stored = builder.set_entry(resolver.kernel_dtb, USER, builder.transition(frame))
    assert builder._get(stored) >> bit & 1
    builder.set_entry(resolver.kernel_dtb, USER + PAGE, builder.paged(1, 0x1234000))
    assert resolver.translate(resolver.kernel_dtb, USER) == frame
    assert resolver.resolve(resolver.kernel_dtb, USER + PAGE).pagefile.offset == 0x1234000


def test_without_a_mask_bit_45_is_part_of_the_offset(types):
    builder, resolver = built(types)
    builder.set_entry(resolver.kernel_dtb, USER, builder.paged(0, 0x2001 * PAGE))
    assert resolver.resolve(resolver.kernel_dtb, USER).pagefile.offset == 0x2001 * PAGE


@pytest.mark.parametrize("mask", [0, 1 << 45])
@pytest.mark.parametrize("marker", [0xFFFFFFFF00000420, 0xFFFFFFFF00000430])
def test_the_marker_is_compared_as_it_is_stored(swizzling, mask, marker):
    """It has the mask's bit already: with SwizzleBit (0x10) unswizzling keeps it, without it would break it."""
    builder, resolver = built(swizzling, invalid_pte_mask=mask)
    frame, pool = builder.allocate_page(pattern(1)), builder.allocate_pool(8)
    builder.write(pool, builder.hardware(frame).to_bytes(8, "little"))
    builder.set_entry(resolver.kernel_dtb, USER, marker)
    vads = ListedVads([(USER, USER + PAGE, False)], {USER: pool})
    page = resolver.resolve(resolver.kernel_dtb, USER, vads)
    assert (page.physical, page.via) == (frame, (Via.VAD, Via.PROTOTYPE))


def test_a_null_pte_in_a_private_vad_is_zeros_and_outside_every_vad_nothing(types):
    """IceBox reads a prototype PTE out of what lies behind the short VAD."""
    builder, resolver = built(types)
    builder.set_entry(resolver.kernel_dtb, USER, 0)
    vads = ListedVads([(USER, USER + PAGE, True)], {USER: 0xFFFFEEEEEEEEEEE8})
    space = AddressSpace(resolver, resolver.kernel_dtb, vads)
    assert space.read(USER, PAGE) == bytes(PAGE)
    assert space.resolve(USER).state is State.DEMAND_ZERO
    assert space.resolve(USER + PAGE).state is State.UNMAPPED


def test_a_table_of_equal_entries_is_a_table(types):
    """volatility3 leaves it out (#723, #1923)."""
    builder, resolver = built(types)
    frame = builder.allocate_page(pattern(1))
    for index in range(512):
        builder.map(resolver.kernel_dtb, USER + index * PAGE, physical=frame)
    assert {resolver.translate(resolver.kernel_dtb, USER + index * PAGE) for index in range(512)} == {frame}


def test_a_frame_number_has_all_bits_that_the_types_give_it(types):
    """28, 36 or 40 of them: the highest frame that a PTE can name is in RAM here."""
    width = PteLayout.from_types(types).transition_frame.bit_count()
    top = (1 << min(12 + width, 52)) - MB
    builder, resolver = built(types, ram=((0, 8 * MB), (top, MB)))
    frame = builder.allocate_page(pattern(1), at=top + MB - PAGE)
    builder.set_entry(resolver.kernel_dtb, USER, builder.transition(frame))
    builder.set_entry(resolver.kernel_dtb, USER + PAGE, builder.hardware(frame))
    assert resolver.translate(resolver.kernel_dtb, USER) == frame
    assert resolver.translate(resolver.kernel_dtb, USER + PAGE) == frame


def test_a_software_pde_counts_used_entries_and_is_still_empty(types):
    """Only PageFileHigh tells: the other bits of a demand-zero entry need not be zero."""
    builder, resolver = built(types)
    count = builder.encode("_MMPTE_SOFTWARE", Protection=4, UsedPageTableEntries=9)
    builder.set_entry(resolver.kernel_dtb, USER, count, "PDE")
    vads = ListedVads([(USER, USER + PAGE, True)])
    assert resolver.resolve(resolver.kernel_dtb, USER, vads).state is State.DEMAND_ZERO
    assert resolver.resolve(resolver.kernel_dtb, USER + PAGE, vads).state is State.UNMAPPED


@pytest.mark.parametrize("level", ["PDE", "PDPTE", "PML4E"])
def test_a_table_in_a_paging_file_is_named_and_used_where_it_is_supplied(types, level):
    builder, resolver = built(types)
    physical = builder.map(resolver.kernel_dtb, USER, pattern(1))
    table = builder.get_entry(resolver.kernel_dtb, USER, level) & 0xFFFFFFFFFF000
    builder.set_entry(resolver.kernel_dtb, USER, builder.paged(1, 0x77000), level)
    page = resolver.resolve(resolver.kernel_dtb, USER)
    assert (page.state, page.via, page.pagefile.offset) == (State.PAGEFILE, (Via.PAGED_TABLE,), 0x77000)

    class Supplied:
        def read_page(self, page):
            return builder.read_physical(table, PAGE) if page.pagefile.offset == 0x77000 else None

    resolver.pages = Supplied()
    assert resolver.translate(resolver.kernel_dtb, USER) == physical
