"""Laws of the walk: it ends, it says why, and explaining finds what translating finds, for any content of memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import GB, MB, PAGE, ImageBuilder, bit_field_types, pattern
from builder.states import ListedVads
from coldframe.errors import UnreadableMemoryError
from coldframe.memory import PhysicalMemory, Run
from coldframe.paging import FORMATS, AddressSpace, PteLayout, Resolver, State, VadPage, Via
from coldframe.paging.notes import ABSENT, ZERO
from paging.scenes import KERNELS, types_of

TYPES = {
    "4-level": "x64 7 RTM",
    "5-level": "x64 7 RTM",
    "pae": "pae 10",
    "x86": "x86 XP",
}


def built(page_format="4-level", **options):
    types = bit_field_types(TYPES[page_format])
    builder = ImageBuilder(types, page_format, **options)
    resolver = Resolver(
        builder.physical(), FORMATS[page_format], PteLayout.from_types(types), kernel_dtb=builder.kernel_dtb
    )
    return builder, resolver


@pytest.mark.parametrize("page_format", FORMATS)
def test_addresses_that_are_not_canonical_are_no_addresses(page_format):
    _, resolver = built(page_format)
    width = {"4-level": 47, "5-level": 56}.get(page_format)
    outside = [1 << 64, -1]
    if width is None:
        outside += [1 << 32]
    else:
        outside += [1 << width, (1 << 64) - (1 << width) - 1, 1 << 63]
        for inside in ((1 << width) - 1, (1 << 64) - (1 << width), (1 << 64) - 1):
            assert "no address" not in resolver.resolve(resolver.kernel_dtb, inside).reason
    for address in outside:
        page = resolver.resolve(resolver.kernel_dtb, address)
        assert page.state is State.UNMAPPED
        assert "no address" in page.reason
        assert resolver.translate(resolver.kernel_dtb, address) is None


def test_a_hole_between_the_halves_is_skipped_in_one_step():
    _, resolver = built()
    page = resolver.resolve(resolver.kernel_dtb, 1 << 47)
    assert page.address + page.hole == 0xFFFF800000000000


@pytest.mark.parametrize(("level", "span"), [("PTE", PAGE), ("PDE", 2 * MB), ("PDPTE", GB), ("PML4E", 512 * GB)])
def test_a_hole_is_as_large_as_what_the_empty_entry_would_map(level, span):
    builder, resolver = built()
    builder.set_entry(builder.kernel_dtb, 0xFFFFF80000000000, 0, level)
    page = resolver.resolve(builder.kernel_dtb, 0xFFFFF80000000123)
    assert page.hole == span - 0x123


def test_a_step_reads_as_kd_says_it():
    builder, resolver = built()
    at = builder.set_entry(builder.kernel_dtb, 0xFFFFF80000000000, 0x0A00000000234863)
    page = resolver.resolve(builder.kernel_dtb, 0xFFFFF80000000010)
    step = page.steps[-1]
    assert (step.level, step.entry_address, step.value) == ("PTE", at, 0x0A00000000234863)
    assert step.says == f"PTE at {at:#x} contains 0x0A00000000234863: pfn 234 ---DA--KWEV"
    assert [step.level for step in page.steps] == ["PML4E", "PDPTE", "PDE", "PTE"]


def test_what_left_ram_says_where_it_is_and_what_would_unlock_it():
    builder, resolver = built()

    class Names:
        def paging_file_name(self, number: int) -> str | None:
            return r"\??\C:\pagefile.sys" if number == 0 else None

    for number, named in ((0, r" (\??\C:\pagefile.sys)"), (1, "")):
        builder.set_entry(builder.kernel_dtb, 0xFFFFF80000000000, builder.paged(number, 0x1A3000))
        resolver.paging_files = Names()
        page = resolver.resolve(builder.kernel_dtb, 0xFFFFF80000000000)
        assert page.reason == f"page is in paging file {number}{named} at 0x1a3000: give --disk or --pagefile"


def test_a_self_map_finds_the_tables_themselves():
    builder, resolver = built()
    va = 0x7FF700001000
    builder.map(builder.kernel_dtb, va, pattern(1))
    pte_address = 0xFFFFF68000000000 + (va >> 9 & 0x7FFFFFFFF8)
    assert resolver.translate(builder.kernel_dtb, pte_address) == builder.entry_address(builder.kernel_dtb, va)


def test_a_4_mb_page_above_4_gb_has_its_high_bits_in_the_entry():
    builder, resolver = built("x86", ram=((0, 8 * MB), (0x1240000000, MB)))
    builder.map(builder.kernel_dtb, 0xB0000000, size=4 * MB, physical=0x1240000000)
    assert resolver.translate(builder.kernel_dtb, 0xB0012345) == 0x1240012345


def test_cr3s_low_bits_are_no_part_of_the_address():
    builder, resolver = built()
    physical = builder.map(builder.kernel_dtb, 0x10000)
    assert resolver.translate(builder.kernel_dtb | 0x8000000000000002, 0x10000) == physical


def test_without_the_kernels_types_only_what_the_processor_finds_is_found():
    builder, full = built()
    physical = builder.map(builder.kernel_dtb, 0x10000)
    builder.set_entry(builder.kernel_dtb, 0x11000, builder.transition(builder.allocate_page()))
    resolver = Resolver(builder.physical(), FORMATS["4-level"], None, kernel_dtb=builder.kernel_dtb)
    assert resolver.translate(builder.kernel_dtb, 0x10000) == physical
    for address in (0x11000, 0x40000000000):
        page = resolver.resolve(builder.kernel_dtb, address, ListedVads([(0, 1 << 47, True)]))
        assert page.state is State.UNMAPPED
        assert "needs the kernel's types" in page.reason
    assert full.translate(builder.kernel_dtb, 0x11000) is not None


def test_without_vads_a_null_pte_is_unmapped_and_says_that_the_process_would_help():
    builder, resolver = built()
    builder.set_entry(builder.kernel_dtb, 0x10000, 0)
    assert "name the process" in resolver.resolve(builder.kernel_dtb, 0x10000).reason


def test_vads_that_cannot_be_read_are_said():
    class Damaged:
        def vad_page(self, address: int) -> VadPage | None:
            raise UnreadableMemoryError(0xFFFF9A0000000000, 8, "gone")

    builder, resolver = built()
    page = resolver.resolve(builder.kernel_dtb, 0x10000, Damaged())
    assert page.state is State.UNMAPPED
    assert "VADs cannot be read" in page.reason
    assert resolver.translate(builder.kernel_dtb, 0x10000, Damaged()) is None


def test_describers_that_need_the_very_page_they_describe_do_not_recurse_for_ever():
    """The name of a paging file may itself be paged out, and a `_SUBSECTION` lie behind itself."""
    builder, resolver = built()
    memory = AddressSpace(resolver, builder.kernel_dtb)
    kernel = 0xFFFFF80000000000
    builder.set_entry(builder.kernel_dtb, kernel, builder.paged(0, 0x1000))
    prototype = builder.allocate_pool(8)
    builder.write(prototype, builder.subsection(kernel + PAGE).to_bytes(8, "little"))
    builder.set_entry(builder.kernel_dtb, kernel + PAGE, builder.prototype(prototype))

    class Itself:
        def paging_file_name(self, number: int) -> str | None:
            return memory.read(kernel, 8).decode()

        def subsection_page(self, subsection: int, prototype_pte: int) -> None:
            memory.read(subsection, 8)

        def read_page(self, page) -> bytes | None:
            return memory.read(kernel, 8)

        def number(self) -> int:
            return memory.u64(kernel)

    resolver.paging_files = resolver.subsections = resolver.pages = Itself()
    resolver.virtual_store = Itself().number
    assert resolver.resolve(builder.kernel_dtb, kernel).state is State.PAGEFILE
    assert resolver.resolve(builder.kernel_dtb, kernel + PAGE).state is State.SUBSECTION


def test_a_page_source_supplies_tables_prototypes_and_pages():
    builder, resolver = built()
    kernel, user = 0xFFFFF80000000000, 0x7FF600000000
    physical = builder.map(builder.kernel_dtb, user + 5 * PAGE, pattern(5))
    builder.set_entry(builder.kernel_dtb, user + 6 * PAGE, builder.paged(0, 0x5000))
    table = builder.get_entry(builder.kernel_dtb, user, "PDE") & 0xFFFFFFFFFF000
    held = {0x1000: builder.read_physical(table, PAGE), 0x5000: pattern(6)}
    builder.write_physical(table, bytes(PAGE))
    builder.set_entry(builder.kernel_dtb, user, builder.paged(0, 0x1000), "PDE")
    far = builder.allocate_page(pattern(7))
    held[0x2000] = builder.hardware(far).to_bytes(8, "little").ljust(PAGE, b"\0")
    builder.set_entry(builder.kernel_dtb, kernel, builder.paged(0, 0x2000))
    builder.set_entry(builder.kernel_dtb, kernel + PAGE, builder.prototype(kernel))

    class PagingFile:
        def read_page(self, page) -> bytes | None:
            return held.get(page.pagefile.offset) if page.pagefile else None

    resolver.pages = PagingFile()
    page = resolver.resolve(builder.kernel_dtb, user + 5 * PAGE + 8)
    assert (page.state, page.physical, page.via) == (State.VALID, physical + 8, (Via.PAGED_TABLE,))
    assert resolver.translate(builder.kernel_dtb, user + 5 * PAGE + 8) == physical + 8
    page = resolver.resolve(builder.kernel_dtb, user + 6 * PAGE)
    assert (page.state, page.readable, page.supplied, page.reason) == (State.PAGEFILE, True, True, "")
    memory = AddressSpace(resolver, builder.kernel_dtb)
    assert memory.read(user + 5 * PAGE, 2 * PAGE) == pattern(5) + pattern(6)
    assert memory.read(kernel + PAGE, PAGE) == pattern(7)
    assert resolver.resolve(builder.kernel_dtb, kernel + PAGE).via == (Via.PROTOTYPE,)


def test_a_prototype_pte_that_is_not_aligned_is_none():
    builder, resolver = built()
    pool = builder.allocate_pool(PAGE)
    builder.set_entry(builder.kernel_dtb, 0x10000, builder.prototype(pool + 4))
    assert "not a multiple of 8" in resolver.resolve(builder.kernel_dtb, 0x10000).reason


class AnyVads:
    """VADs that say whatever a seed says, prototype PTEs anywhere."""

    def __init__(self, seed: int, builder: ImageBuilder) -> None:
        self.seed = seed
        self.builder = builder

    def vad_page(self, address: int) -> VadPage | None:
        chance = random.Random(self.seed ^ (address >> 12))
        if chance.random() < 0.2:
            return None
        pool = self.builder.shape.pool
        prototype = chance.choice([None, pool + 8 * chance.randrange(4096), chance.getrandbits(64)])
        return VadPage(pool, 0, 1 << 47, chance.random() < 0.3, prototype, "any")


def random_memory(seed: int, page_format: str) -> tuple[ImageBuilder, Resolver, random.Random]:
    """Little RAM full of entries that are valid, in transition, prototypes..., mostly pointing into that RAM."""
    chance = random.Random(seed)
    name = TYPES[page_format]
    if page_format == "4-level" and KERNELS and chance.random() < 0.5:
        types = types_of(chance.choice(list(KERNELS)[:3]))
    else:
        types = bit_field_types(name)
    builder = ImageBuilder(types, page_format, ram=((0, 24 * PAGE),), seed=seed)
    width = builder.shape.entry
    pool = builder.shape.pool
    values = [0]
    for _ in range(255):
        frame = chance.randrange(26) * PAGE
        kind = chance.random()
        if kind < 0.5:
            value = frame | chance.choice([1, 3, 7, 0x63, 0x67, 0x863, 0x867, 0x83])
        elif kind < 0.6:
            value = frame | 0x800 | chance.randrange(32) << 5
        elif kind < 0.7:
            value = builder.prototype(pool + width * chance.randrange(2048))
        elif kind < 0.75:
            value = builder.subsection(pool + 8 * chance.randrange(512))
        elif kind < 0.8:
            value = chance.choice([0, builder.vad_marker()])
        elif kind < 0.9:
            value = builder.paged(chance.randrange(16), PAGE * chance.randrange(1 << 16), chance.randrange(32))
        else:
            value = chance.getrandbits(8 * width)
        values.append(value)
    entries = chance.choices([value.to_bytes(width, "little") for value in values], k=24 * PAGE // width)
    builder.write_physical(0, b"".join(entries))
    resolver = Resolver(
        builder.physical(),
        FORMATS[page_format],
        PteLayout.from_types(types),
        kernel_dtb=builder.kernel_dtb,
        invalid_pte_mask=chance.choice([0, 1 << 45]),
        virtual_store=chance.choice([None, 2]),
    )
    return builder, resolver, chance


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(list(FORMATS)))
def test_explaining_and_translating_agree_on_any_memory(seed, page_format):
    builder, resolver, chance = random_memory(seed, page_format)
    vads = AnyVads(seed, builder)
    for _ in range(40):
        dtb = chance.choice([builder.kernel_dtb, chance.getrandbits(64)])
        bits = FORMATS[page_format].address_bits
        address = FORMATS[page_format].sign_extend(chance.getrandbits(bits))
        asked = chance.choice([None, vads])
        page = resolver.resolve(dtb, address, asked)
        answer = resolver.locate(dtb, address, asked)
        assert answer == (page.physical if page.physical is not None else ZERO if page.readable else ABSENT)
        assert resolver.translate(dtb, address, asked) == page.physical
        assert page.readable == (not page.reason)
        assert page.readable == (page.hole == 0)
        assert (page.state in (State.PAGEFILE, State.COMPRESSED)) <= (page.pagefile is not None)
        assert len(page.steps) <= 8
        if page.hole and page.hole <= 1 << 39:
            last = address + page.hole - 1
            assert resolver.locate(dtb, last, asked) == ABSENT, "a hole is unreadable to its end"


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_any_bytes_as_tables_end_in_an_answer(data, dtb, address):
    memory = PhysicalMemory([Run(0, 4 * PAGE, memoryview((data * 4 * PAGE)[: 4 * PAGE]))])
    for name, row in FORMATS.items():
        resolver = Resolver(memory, row, PteLayout.from_types(bit_field_types(TYPES[name])), kernel_dtb=dtb)
        found = resolver.resolve(dtb, address)
        assert found.physical == resolver.translate(dtb, address)
        assert found.reason or found.readable


def test_a_table_that_names_itself_at_every_level_ends():
    memory = bytearray(2 * PAGE)
    for offset in range(0, PAGE, 8):
        memory[offset : offset + 8] = (1).to_bytes(8, "little")
    resolver = Resolver(
        PhysicalMemory([Run(0, len(memory), memoryview(memory))]),
        FORMATS["4-level"],
        PteLayout.from_types(bit_field_types("x64 7 RTM")),
        kernel_dtb=0,
    )
    assert resolver.translate(0, 0xFFFFFFFFFFFFF123) == 0x123


def test_the_words_of_a_vad_are_only_looked_for_where_they_are_told():
    asked = []

    class Vads:
        def vad_page(self, address: int) -> VadPage | None:
            return VadPage(0xFFFF9A0000000000, 0, PAGE, True, None, lambda: asked.append(address) or "Private")

    builder, resolver = built()
    assert resolver.locate(builder.kernel_dtb, 0x10, Vads()) == ZERO
    assert not asked
    page = resolver.resolve(builder.kernel_dtb, 0x10, Vads())
    assert page.steps[-1].says == "VAD at 0xffff9a0000000000: Private"
    assert asked == [0x10]
