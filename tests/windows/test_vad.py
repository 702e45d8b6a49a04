"""VADs, sections and their prototype PTEs, in the tree of every layout."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import pattern
from coldframe.paging import State, Via
from windows.conftest import KERNELS, Built

NTDLL = "\\Windows\\System32\\ntdll.dll"
PAGE = 4096


@pytest.fixture
def views(built):
    image, process = built.image, built.notepad
    image.add_private_vad(process, 0x1000_0000, 16)  # addresses below 8 TB: 64-bit Windows has no more up to 8.0
    image.add_private_vad(process, 0x7FE_0000_0000, 1, protection=1)
    image.add_view(process, 0x2000_0000, file="\\Users\\minint\\a.txt", counts=(5,))
    image.add_view(process, 0x7FB_1234_0000, file=NTDLL, counts=(1, 6, 3, 2), image=True, protection=7)
    image.add_view(process, 0x3000_0000, file="\\big.dat", counts=(3, 4, 2), contiguous=False, skip=5, protection=4)
    image.add_view(process, 0x4000_0000, counts=(2,), protection=4)
    chosen = random.Random(7)
    for number in range(40):
        image.add_private_vad(process, 0x5000_0000 + number * 0x10_0000, chosen.randrange(1, 200))
    return built


def test_vads_are_listed_by_address(views):
    process = views.open().process(812)
    expected = sorted(views.notepad.vads, key=lambda vad: vad.start)
    assert [(v.start, v.end, v.address, v.private, v.file) for v in process.vads] == [
        (b.start, b.end, b.address, b.private, b.file) for b in expected
    ]
    assert len(views.open().process(368).vads) == 0


def test_kinds_and_protections_have_windows_words(views):
    vads = {vad.start: vad for vad in views.open().process(812).vads}
    assert (vads[0x1000_0000].kind, vads[0x1000_0000].protection) == ("Private", "PAGE_READWRITE")
    assert (vads[0x2000_0000].kind, vads[0x2000_0000].protection) == ("Mapped", "PAGE_READONLY")
    assert (vads[0x7FB_1234_0000].kind, vads[0x7FB_1234_0000].protection) == ("Image", "PAGE_EXECUTE_WRITECOPY")


def test_any_address_is_found_and_none_between(views):
    vads = views.open().process(812).vads
    for built in views.notepad.vads:
        for address in (built.start, built.end - 1):
            assert vads.find(address).address == built.address
        for address in (built.start - 1, built.end):
            found = vads.find(address)
            assert found is None or found.address != built.address


def test_prototype_ptes_follow_the_array_and_then_the_subsections(views):
    vads = views.open().process(812).vads
    for built in views.notepad.vads:
        for index, pte in enumerate(built.pages):
            page = vads.vad_page(built.start + index * PAGE + 0x123)
            assert (page.prototype_pte, page.private) == (pte, False)
        if not built.private:
            assert vads.find(built.start).prototype_pte(built.end) is None


def test_a_zero_pte_is_read_through_the_vad(views):
    image = views.image
    view = next(vad for vad in views.notepad.vads if vad.file == "\\big.dat")
    for index, pte in enumerate(view.pages):
        frame = image.allocate_page(pattern(index))
        entry = image.hardware(frame) if index % 2 else image.transition(frame)
        image.write(pte, struct.pack("<Q", entry))
    memory = views.open().process(812).memory
    for index in range(len(view.pages)):
        page = memory.resolve(view.start + index * PAGE)
        assert page.via == (Via.VAD, Via.PROTOTYPE)
        assert page.state is (State.VALID if index % 2 else State.TRANSITION)
        assert memory.read(view.start + index * PAGE, PAGE) == pattern(index)
    assert memory.resolve(0x1000_0000).state is State.DEMAND_ZERO
    assert memory.resolve(0x1000_0000 - 1).state is State.UNMAPPED


def test_a_subsection_pte_names_the_file_and_its_offset(views):
    image = views.image
    guest = views.open()
    memory = guest.process(812).memory
    for built, counts, unit in (
        (next(v for v in views.notepad.vads if v.file == NTDLL), (1, 6, 3, 2), 8 * 512),
        (next(v for v in views.notepad.vads if v.file == "\\big.dat"), (3, 4, 2), PAGE),
    ):
        skipped = sum(counts) - len(built.pages)
        owners = [place for place, count in zip(built.subsections, counts, strict=True) for _ in range(count)][skipped:]
        for index, (pte, owner) in enumerate(zip(built.pages, owners, strict=True)):
            image.write(pte, struct.pack("<Q", image.subsection(owner)))
            page = memory.resolve(built.start + index * PAGE)
            assert page.state is State.SUBSECTION
            assert page.subsection.address == owner
            assert (page.subsection.file, page.subsection.file_offset) == (built.file, (index + skipped) * unit)


def test_a_view_of_more_than_4_gb_of_pages_has_high_page_numbers(built):
    types = built.image.types
    if (
        types.size(types.field("_MMVAD_SHORT", "StartingVpn")[1]) == 4
        and "StartingVpnHigh" not in types.record("_MMVAD_SHORT").fields
    ):
        pytest.skip("8.0 has page numbers of 32 bits: 8 TB, and no user address lies higher there")
    start = 0x7FFF_0000_0000
    built.image.add_private_vad(built.notepad, start, 1)
    assert built.open().process(812).vads.find(start).end == start + PAGE


@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=16)), max_size=12))
def test_a_damaged_tree_ends_the_walk_and_nothing_else(one, damage):
    image = one.image
    first = min(vad.address for vad in one.notepad.vads)
    saved = image.read(first, 5100)
    for offset, junk in damage:
        image.write(first + offset, junk)
    try:
        guest = one.guest
        guest.new_pause()
        process = guest.process(812)
        for vad in process.vads:
            assert isinstance(vad.says, str)
        process.memory.resolve(0x5000_0000)
        for handle in process.handles:
            assert handle.value
    finally:
        image.write(first, saved)


@pytest.fixture(scope="module")
def one():
    if not KERNELS:
        pytest.skip("no kernel types: ../shared/symbols is absent")
    built = Built(KERNELS[0])
    for number in range(30):
        built.image.add_private_vad(built.notepad, 0x5000_0000 + number * 0x10_0000, 3)
    built.image.add_view(built.notepad, 0x4000_0000, counts=(2, 3), contiguous=False, file="\\x")
    built.guest = built.open()
    return built


def test_a_tree_that_bites_its_tail_is_walked_once(one):
    image = one.image
    a, b = (vad.address for vad in one.notepad.vads[:2])
    kind = "_RTL_BALANCED_NODE"
    offset = image.types.offset("_MMVAD_SHORT", "VadNode")
    saved = image.read(a, 64), image.read(b, 64)
    image.write_struct(kind, a + offset, {"Left": b + offset, "Right": a + offset})
    image.write_struct(kind, b + offset, {"Left": a + offset, "Right": a + offset})
    one.guest.new_pause()
    vads = one.guest.process(812).vads
    assert len({vad.address for vad in vads}) == len(vads)
    assert vads.find(0x6000_0000_0000) is None
    image.write(a, saved[0])
    image.write(b, saved[1])
