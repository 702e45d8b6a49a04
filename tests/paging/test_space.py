"""Address spaces: bytes across pages, holes said exactly, translations kept for one pause and no longer."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import PAGE, ImageBuilder, bit_field_types, pattern
from builder.states import ListedVads
from coldframe.errors import CapabilityError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory, Run
from coldframe.pagegrid import PageGrid
from coldframe.paging import FORMATS, AddressSpace, PteLayout, Resolver

BASE = 0x7FF600000000
PAGES = 12


class Small:
    """Twelve pages: `layout` says of each whether it is valid (v), in transition (t), zero (z), paged out (p) or
    nothing (-)."""

    def __init__(self, layout: str) -> None:
        types = bit_field_types("x64 7 RTM")
        self.builder = builder = ImageBuilder(types, ram=((0, 1 << 20),))
        self.truth: list[bytes | None] = []
        for index, kind in enumerate(layout):
            va, content = BASE + index * PAGE, pattern(index)
            if kind == "v":
                builder.map(builder.kernel_dtb, va, content)
            elif kind == "t":
                builder.set_entry(builder.kernel_dtb, va, builder.transition(builder.allocate_page(content)))
            elif kind == "z":
                builder.set_entry(builder.kernel_dtb, va, builder.demand_zero())
            elif kind == "p":
                builder.set_entry(builder.kernel_dtb, va, builder.paged(0, 0x1000 * (index + 1)))
            self.truth.append(content if kind in "vt" else bytes(PAGE) if kind == "z" else None)
        self.resolver = Resolver(
            builder.physical(), FORMATS["4-level"], PteLayout.from_types(types), kernel_dtb=builder.kernel_dtb
        )
        self.space = AddressSpace(self.resolver, builder.kernel_dtb, ListedVads())


def flat(truth):
    """Each byte, or None."""
    return [byte for page in truth for byte in (page if page is not None else [None] * PAGE)]


spans = st.tuples(st.integers(0, PAGES * PAGE), st.integers(0, 3 * PAGE))


@settings(max_examples=60, deadline=None)
@given(st.text("vtzp-", min_size=PAGES, max_size=PAGES), spans)
def test_a_read_is_the_bytes_or_the_first_that_is_missing(layout, span):
    small = Small(layout)
    offset, size = span
    size = min(size, PAGES * PAGE - offset)
    wanted = flat(small.truth)[offset : offset + size]
    start = BASE + offset
    padded, holes = small.space.read_padded(start, size)
    assert padded == bytes(byte or 0 for byte in wanted)
    missing = {start + index for index, byte in enumerate(wanted) if byte is None}
    assert missing == {address for hole, extent in holes for address in range(hole, hole + extent)}
    assert all(first + extent < second for (first, extent), (second, _) in itertools.pairwise(holes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coldframe.paging.space.BULK", 1)  # pages gathered together and listed, instead of one by one
        assert small.space.read_padded(start, size) == (padded, holes)
    assert small.space.readable(start, size) == (not missing)
    if not missing:
        assert small.space.read(start, size) == bytes(wanted)
        assert small.space[start : start + size] == bytes(wanted)
        return
    with pytest.raises(UnreadableMemoryError) as caught:
        small.space.read(start, size)
    error = caught.value
    assert error.address == min(missing)
    end = error.address + error.size
    inside = [byte for byte in flat(small.truth)[error.address - BASE : end - BASE] if byte is not None]
    assert not inside, "the hole is a hole to its end"
    assert error.reason == small.space.resolve(error.address).reason


@settings(max_examples=25, deadline=None)
@given(st.text("vtzp-", min_size=PAGES, max_size=PAGES), st.integers(0, PAGES * PAGE - 8))
def test_numbers_are_little_endian_and_may_cross_pages(layout, offset):
    small = Small(layout)
    for size, read in ((1, small.space.u8), (2, small.space.u16), (4, small.space.u32), (8, small.space.u64)):
        try:
            expected = int.from_bytes(small.space.read(BASE + offset, size), "little")
        except UnreadableMemoryError as error:
            with pytest.raises(UnreadableMemoryError) as caught:
                read(BASE + offset)
            assert caught.value.address == error.address
        else:
            assert read(BASE + offset) == expected


@settings(max_examples=25, deadline=None)
@given(st.text("vtzp-", min_size=PAGES, max_size=PAGES), st.integers(0, PAGES * PAGE), st.binary(max_size=2 * PAGE))
def test_a_write_goes_to_ram_or_nowhere(layout, offset, data):
    small = Small(layout)
    data = data[: PAGES * PAGE - offset]
    pages = {(offset + index) // PAGE for index in range(len(data))}
    before = small.space.read_padded(BASE, PAGES * PAGE)[0]
    if all(layout[page] in "vt" for page in pages):
        small.space.write(BASE + offset, data)
        assert small.space.read(BASE + offset, len(data)) == data
        before = before[:offset] + data + before[offset + len(data) :]
    else:
        with pytest.raises(CapabilityError, match="cannot write"):
            small.space.write(BASE + offset, data)
    assert small.space.read_padded(BASE, PAGES * PAGE)[0] == before


def test_a_write_to_a_page_of_zeros_says_that_there_is_no_page():
    with pytest.raises(CapabilityError, match="demand-zero, so it is not in RAM"):
        Small("z").space.write(BASE, b"1")


def test_a_write_that_ends_in_read_only_memory_writes_nothing():
    small = Small("vv")
    first, second = (small.space.translate(BASE + index * PAGE) for index in range(2))
    assert first is not None
    assert second is not None
    data = bytearray(small.builder.ram[0].data)
    fixed = bytes(data)
    runs = [
        Run(start, PAGE, memoryview(fixed if start == second else data), start) for start in range(0, len(data), PAGE)
    ]
    resolver = Resolver(
        PhysicalMemory(runs), small.resolver.format, small.resolver.layout, kernel_dtb=small.builder.kernel_dtb
    )
    with pytest.raises(CapabilityError, match="read-only"):
        AddressSpace(resolver, small.builder.kernel_dtb).write(BASE + PAGE - 2, b"1234")
    assert bytes(data) == fixed


@pytest.mark.parametrize("shift", [0, 1, 1 << 9], ids=["from 0", "off a word", "behind a header"])
@pytest.mark.parametrize("order", ["side by side", "scattered"])
def test_plain_pages_are_gathered_out_of_one_buffer(monkeypatch, shift, order):
    """Wherever RAM begins in the buffer, whatever the order of its frames, from any byte to any other."""
    monkeypatch.setattr("coldframe.paging.space.BULK", 1)
    monkeypatch.setattr("coldframe.paging.longreads.LongReads._odd", None)  # nothing else may be needed
    count = 300
    builder = ImageBuilder(bit_field_types("x64 7 RTM"), ram=((0, 1 << 20), (1 << 32, 2 << 20)))
    contents = [pattern(index) for index in range(count)]
    place = builder.allocate_span(count * PAGE)
    frames = list(range(place, place + count * PAGE, PAGE))
    if order == "scattered":
        frames[1::2] = [builder.allocate_page() for _ in frames[1::2]]
        random.Random(2).shuffle(frames)
    for index, frame in enumerate(frames):
        builder.map(builder.kernel_dtb, BASE + index * PAGE, contents[index], physical=frame)
    held = memoryview(bytes(shift) + b"".join(block.data for block in builder.ram))
    at, runs = shift, []
    for block in builder.ram:
        runs.append(Run(block.start, len(block.data), held, at))
        at += len(block.data)
    resolver = Resolver(PhysicalMemory(runs), FORMATS["4-level"], None, kernel_dtb=builder.kernel_dtb)
    space = AddressSpace(resolver, builder.kernel_dtb)
    truth = b"".join(contents)
    for start, size in ((0, count * PAGE), (5, 4 * PAGE), (PAGE - 1, 2), (3 * PAGE + 7, 5 * PAGE - 8), (9, 1), (8, 8)):
        assert space.read(BASE + start, size) == truth[start : start + size]
        buffer = bytearray(size)
        space.read_into(BASE + start, buffer)
        assert buffer == truth[start : start + size]


def test_tables_are_looked_at_anew_when_the_caches_are_dropped_and_always_while_the_guest_runs(monkeypatch):
    monkeypatch.setattr("coldframe.paging.space.BULK", 1)
    small = Small("vvvv")
    old = small.space.read(BASE, 4 * PAGE)
    small.builder.map(small.builder.kernel_dtb, BASE + PAGE, pattern(99))
    new = small.truth[0] + pattern(99) + small.truth[2] + small.truth[3]
    assert small.space.read(BASE, 4 * PAGE) == old
    small.resolver.drop_caches()
    assert small.space.read(BASE, 4 * PAGE) == new
    small.resolver.runs = True
    small.resolver.drop_caches()
    small.builder.map(small.builder.kernel_dtb, BASE + PAGE, pattern(98))
    assert small.space.read(BASE, 4 * PAGE) == new.replace(pattern(99), pattern(98))


@pytest.mark.parametrize("runs", [False, True], ids=["paused", "runs"])
def test_a_page_of_a_guest_that_runs_is_looked_at_when_its_turn_has_come(monkeypatch, runs):
    """Where entries are looked at together, the guest moves a page before the copies: only one that stands still may
    be read so."""
    monkeypatch.setattr("coldframe.paging.space.BULK", 1)
    small = Small("vvvv")
    small.resolver.runs = runs
    small.resolver.drop_caches()
    old = small.space.translate(BASE + PAGE)
    copy = PageGrid.copy

    def late(grid, rows, into, out):
        small.builder.map(small.builder.kernel_dtb, BASE + PAGE, small.truth[1])
        small.builder.write_physical(old, b"\xee" * PAGE)
        copy(grid, rows, into, out)

    monkeypatch.setattr(PageGrid, "copy", late)
    assert (small.space.read(BASE, 4 * PAGE) == b"".join(small.truth)) is runs


@pytest.mark.parametrize("bulk", [1 << 18, PAGE])
def test_a_buffer_is_filled_up_to_the_first_hole(monkeypatch, bulk):
    monkeypatch.setattr("coldframe.paging.space.BULK", bulk)
    small = Small("vtzvv-vv")
    buffer = bytearray(5 * PAGE - 7)
    small.space.read_into(BASE + 7, buffer)
    assert buffer == bytes(flat(small.truth)[7 : 5 * PAGE])
    buffer = bytearray(3 * PAGE)
    with pytest.raises(UnreadableMemoryError) as caught:
        small.space.read_into(BASE + 4 * PAGE, memoryview(buffer))
    assert caught.value.address == BASE + 5 * PAGE
    assert buffer == small.truth[4] + bytes(2 * PAGE)


def test_a_string_ends_at_its_zero_before_a_hole_and_raises_in_one():
    small = Small("v-")
    end = BASE + PAGE
    small.space.write(end - 6, b"abc\0de")
    assert small.space.read_cstring(end - 6) == b"abc"
    assert small.space.read_cstring(end - 6, limit=2) == b"ab"
    with pytest.raises(UnreadableMemoryError) as caught:
        small.space.read_cstring(end - 2)
    assert caught.value.address == end


def test_a_translation_is_kept_until_the_caches_are_dropped():
    """libvmi#274: a page that moved while the guest ran must not be read where it was."""
    small = Small("v")
    old = small.space.translate(BASE)
    new = small.builder.map(small.builder.kernel_dtb, BASE, pattern(99))
    assert small.space.translate(BASE) == old
    small.resolver.drop_caches()
    assert small.space.translate(BASE) == new != old
    assert small.space.read(BASE, PAGE) == pattern(99)


def test_what_was_learnt_later_counts_after_the_caches_are_dropped():
    small = Small("p")

    class Pages:
        def read_page(self, page) -> bytes | None:
            return pattern(page.pagefile.offset >> 12)

    assert not small.space.readable(BASE)
    small.resolver.pages = Pages()
    small.resolver.drop_caches()
    assert small.space.read(BASE, PAGE) == pattern(1)


def test_two_spaces_do_not_share_what_they_keep():
    small = Small("v")
    other = AddressSpace(small.resolver, small.builder.new_dtb(), None)
    assert small.space.translate(BASE) is not None
    assert other.translate(BASE) is None


def test_large_holes_are_skipped_in_one_step():
    small = Small("v")
    data, holes = small.space.read_padded(0xFFFF800000000000, 1 << 20)
    assert holes == [(0xFFFF800000000000, 1 << 20)]
    assert not any(data)


def test_slices_need_both_ends():
    small = Small("v")
    for wrong in (slice(BASE, None), slice(None, BASE), slice(BASE, BASE + 8, 2)):
        with pytest.raises(ValueError, match="a start and an end"):
            small.space[wrong]
