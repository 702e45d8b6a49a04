"""A whole address space at once says of every page what the single resolver says of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import GB, MB, PAGE, ImageBuilder, pattern
from builder.states import ListedVads
from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.paging import FORMATS, AbsentPages, AddressSpace, BulkResolver, Resolver, State, VadPage, VadRange, Via
from coldframe.paging.arrays import CODE, STATES
from coldframe.paging.intervals import overlaps, remainder
from paging.scenes import bulk_difference, every_scene, row_of, scene
from paging.test_resolver import built, random_memory


def test_every_row_is_what_the_single_resolver_says():
    guest, resolver = scene(*every_scene()[0])
    for dtb, vads, pages in (
        (guest.dtb, guest.vads, BulkResolver(resolver).pages(guest.dtb, guest.vads)),
        (guest.builder.kernel_dtb, None, BulkResolver(resolver).kernel_pages(guest.builder.kernel_dtb)),
    ):
        assert len(pages) > 50
        chosen = random.Random(1).sample(range(len(pages)), min(len(pages), 1500))
        for row in chosen:
            for into in (0, int(pages.size[row]) - PAGE):
                address = int(pages.address[row]) + into
                assert row_of(pages, address) == row
                assert not bulk_difference(resolver.resolve(dtb, address, vads), pages)


def test_rows_are_in_order_and_do_not_overlap():
    guest, resolver = scene(*every_scene()[0])
    pages = BulkResolver(resolver).pages(guest.dtb, guest.vads)
    assert (pages.address[:-1] + pages.size[:-1] <= pages.address[1:]).all()


def test_parts_are_the_whole(monkeypatch):
    monkeypatch.setattr("coldframe.paging.bulk._PART", 2)
    guest, resolver = scene(*every_scene()[0])
    bulk = BulkResolver(resolver)
    for dtb, vads, start, end in (
        (guest.dtb, guest.vads, 0, 1 << 47),
        (guest.builder.kernel_dtb, None, 0xFFFF800000000000, 1 << 64),
    ):
        whole, parts = bulk.pages(dtb, vads, start=start, end=end), list(bulk.parts(dtb, vads, start=start, end=end))
        assert len(parts) > 3
        joined = np.concatenate([part.address for part in parts])
        assert (joined[1:] > joined[:-1]).all()
        assert sum(part.census().pages[State.VALID] for part in parts) == whole.census().pages[State.VALID]
        for part in parts:
            rows = [row_of(whole, int(address)) for address in part.address]
            assert (whole.state[rows] == part.state).all()
            assert (whole.via[rows] == part.via).all()
        assert sum(int(part.size.sum()) for part in parts) == int(whole.size.sum())


def test_a_census_counts_each_page_once():
    builder, resolver = built()
    dtb = builder.kernel_dtb
    for index in range(5):
        builder.map(dtb, 0x10000 + index * PAGE, pattern(index))
    builder.set_entry(dtb, 0x15000, builder.transition(builder.allocate_page()))
    builder.set_entry(dtb, 0x16000, builder.paged(0, 0x1000))
    builder.map(dtb, 0x40000000, size=2 * MB)
    vads = ListedVads([(0x80000000, 0x80000000 + GB, True), (0x10000, 0x20000, True)])
    census = BulkResolver(resolver).pages(dtb, vads).census()
    assert census.pages[State.VALID] == 5 + 512
    assert census.pages[State.TRANSITION] == census.pages[State.PAGEFILE] == 1
    assert census.pages[State.DEMAND_ZERO] == GB // PAGE + 16 - 7
    assert census.readable == sum(census.pages.values()) - 1
    assert census.unreadable == 1


def test_a_table_that_cannot_be_had_counts_for_what_it_may_map():
    builder, resolver = built()
    dtb = builder.kernel_dtb
    builder.set_entry(dtb, 0x40000000, builder.paged(0, 0x1000), "PDE")
    vads = ListedVads([(0x40010000, 0x40018000, True), (0x401F0000, 0x40210000, True), (0x50000000, 0x50004000, True)])
    space = AddressSpace(resolver, dtb, vads)
    assert space.pages().census().pages[State.PAGEFILE] == 512
    mapped = space.mapped_pages()
    assert (mapped.address[:-1] + mapped.size[:-1] <= mapped.address[1:]).all()
    counted = mapped.census()
    assert counted.pages[State.PAGEFILE] == counted.via[Via.PAGED_TABLE] == counted.unreadable == 8 + 16
    assert counted.pages[State.DEMAND_ZERO] == 16 + 4
    for page in range(512):
        address = 0x40000000 + page * PAGE
        row = row_of(mapped, address)
        assert (row is not None) == (vads.vad_page(address) is not None)


class RangedVads:
    """A few VADs between `start` and `end`, at random, told page by page and as ranges."""

    def __init__(self, chance: random.Random, start: int, end: int, builder: ImageBuilder) -> None:
        pool, self.entry = builder.shape.pool, builder.shape.entry
        self.ranges: list[VadRange] = []
        cuts = sorted(chance.randrange(start, end, PAGE) for _ in range(8))
        for low, high in zip(cuts[::2], cuts[1::2], strict=True):
            stop = min(high, low + 64 * PAGE)
            runs, at = [], low
            while at < stop and chance.random() < 0.8:
                count = min(chance.randrange(1, 20), (stop - at) // PAGE)
                runs.append((at, pool + self.entry * chance.randrange(2048) + chance.choice([0, 0, 0, 2]), count))
                at += PAGE * (count + chance.choice([0, 0, 3]))
            self.ranges.append(VadRange(pool, low, stop, chance.random() < 0.4, tuple(runs)))

    def vad_ranges(self) -> list[VadRange]:
        return self.ranges

    def vad_page(self, address: int) -> VadPage | None:
        for vad in self.ranges:
            if vad.start <= address < vad.end:
                pointer = None
                for start, first, count in vad.prototypes:
                    if start <= address < start + count * PAGE:
                        pointer = first + (address - start) // PAGE * self.entry
                return VadPage(vad.vad, vad.start, vad.end, vad.private, pointer, "")
        return None


class SomePages:
    """A page source that has every other page of the paging files and of subsections, with random entries in it."""

    def __init__(self, builder) -> None:
        self.builder = builder

    def read_page(self, page) -> bytes | None:
        if page.state is State.SUBSECTION:
            return None if page.subsection is None else self.page(page.subsection.address >> 3)
        return None if page.pagefile is None else self.page(page.pagefile.offset >> 12)

    def page(self, number: int) -> bytes | None:
        return None if number & 1 else self.builder.read_physical((number >> 1) % 24 * PAGE, PAGE)


class ManyPages(SomePages):
    """The same, for many pages at once."""

    def supplies(self, pages: AbsentPages) -> np.ndarray:
        return np.array([data is not None for data in self.pages(pages)], bool)

    def read_pages(self, pages: AbsentPages, out: np.ndarray) -> np.ndarray:
        for row, data in enumerate(self.pages(pages)):
            if data is not None:
                out[row] = np.frombuffer(data, np.uint8)
        return self.supplies(pages)

    def pages(self, pages: AbsentPages) -> list[bytes | None]:
        assert {STATES[code] for code in pages.state} <= {State.PAGEFILE, State.COMPRESSED, State.SUBSECTION}
        file = pages.state == CODE[State.SUBSECTION]
        unknown = file & (pages.subsection == 0)
        number = np.where(file, np.where(unknown, 1, pages.subsection >> np.uint64(3)), pages.offset >> np.uint64(12))
        return [self.page(int(n)) for n in number]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(list(FORMATS)), st.sampled_from([None, SomePages, ManyPages]))
def test_bulk_and_single_agree_on_random_tables(seed, page_format, source):
    builder, resolver, chance = random_memory(seed, page_format)
    if source is not None:
        resolver.pages = source(builder)
    row = FORMATS[page_format]
    low = row.levels[-2].shift + 1
    start = chance.randrange(row.user_end) >> low << low
    end = min(start + (1 << low), row.user_end)
    vads = RangedVads(chance, start, end, builder)
    pages = BulkResolver(resolver).pages(builder.kernel_dtb, vads, start=start, end=end)
    inside = [address for vad in vads.ranges for address in range(vad.start, vad.end, PAGE)]
    for _ in range(60):
        anywhere = chance.randrange(start, end, PAGE)
        address = chance.choice(inside) if inside and chance.random() < 0.3 else anywhere
        assert not bulk_difference(resolver.resolve(builder.kernel_dtb, address, vads), pages)
    space = AddressSpace(resolver, builder.kernel_dtb, vads)
    at, size = start + chance.randrange(1 << 20), chance.randrange(PAGE, 64 * PAGE)
    holes = []
    expected = space._padded(at, size, holes), holes  # page by page
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coldframe.paging.space.BULK", PAGE)
        assert space.read_padded(at, size) == expected


def test_tables_that_point_to_themselves_end_in_words():
    builder, resolver = built()
    root = builder.allocate_page()
    builder.write_physical(root, (root | 0x67).to_bytes(8, "little") * 512)
    with pytest.raises(FormatError, match="point to themselves"):
        BulkResolver(resolver).pages(root)


def test_without_the_kernels_types_there_is_no_list():
    builder, _ = built()
    with pytest.raises(FormatError, match="types"):
        BulkResolver(Resolver(builder.physical(), FORMATS["4-level"], None, kernel_dtb=0))


def test_long_reads_are_what_short_reads_are_together(monkeypatch):
    guest, resolver = scene(*every_scene()[0])
    space = AddressSpace(resolver, guest.dtb, guest.vads)
    assert [case for case in guest.cases if case.content is not None]
    for case in guest.cases:
        if case.dtb != guest.dtb:
            continue
        start, size = case.address - 3 * PAGE - 0x123, 9 * PAGE
        expected = space.read_padded(start, size)
        monkeypatch.setattr("coldframe.paging.space.BULK", PAGE)
        assert space.read_padded(start, size) == expected, case.name
        try:
            assert space.read(case.address + 5, PAGE - 7) == case.content[5:-2]
            assert space.read(case.address, PAGE) == case.content
        except UnreadableMemoryError as error:
            assert case.content is None
            assert error.reason == resolver.resolve(guest.dtb, case.address, guest.vads).reason
        monkeypatch.undo()


def test_ranges_are_cut_and_left_as_sets_are():
    chance = random.Random(3)
    for _ in range(50):
        lists = []
        for _ in range(2):
            cuts = sorted(chance.sample(range(200), 12))
            lists.append((np.array(cuts[::2], np.uint64), np.array(cuts[1::2], np.uint64)))
        sets = [{n for a, b in zip(*pair, strict=True) for n in range(int(a), int(b))} for pair in lists]
        both, _ = overlaps(*lists[0], *lists[1])
        rest = remainder(*lists[0], both.low, both.high)
        for pieces, wanted in ((both, sets[0] & sets[1]), (rest, sets[0] - sets[1])):
            assert {n for a, b in zip(pieces.low, pieces.high, strict=True) for n in range(int(a), int(b))} == wanted
            for of, low, high in zip(*pieces, strict=True):
                assert lists[0][0][of] <= low < high <= lists[0][1][of]


def test_a_huge_view_is_listed_by_what_there_is_of_its_prototype_ptes():
    builder, resolver = built()
    dtb, pool = builder.kernel_dtb, builder.shape.pool
    start, count = 0x100000000000, 1 << 29  # as the view of the control-flow bitmap
    builder.map(dtb, pool + 0x5000000, b"".join(((7 << 12) | 1).to_bytes(8, "little") for _ in range(512)))
    first = pool
    ranges = [VadRange(pool, start, start + count * PAGE, False, ((start, first, count),))]

    class Huge:
        def vad_ranges(self):
            return ranges

        def vad_page(self, address):
            return VadPage(pool, start, start + count * PAGE, False, first + (address - start) // PAGE * 8, "")

    pages = BulkResolver(resolver).pages(dtb, Huge(), start=start, end=start + count * PAGE)
    assert len(pages) < 2000
    assert int(pages.size.sum()) == count * PAGE
    at = start + 0x5000000 // 8 * PAGE
    for address in (start, at - PAGE, at, at + 511 * PAGE, at + 512 * PAGE, start + (count - 1) * PAGE):
        assert not bulk_difference(resolver.resolve(dtb, address, Huge()), pages)
