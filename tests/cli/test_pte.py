"""`pte` names each entry by the address that kd names it by, and says what it contains as kd does."""

from __future__ import annotations

import pytest

from builder import ImageBuilder, bit_field_types
from builder.states import ListedVads
from coldframe.cli.kd import table_lines
from coldframe.cli.pages import page_lines
from coldframe.paging import FORMATS, AddressSpace, Page, PteLayout, Resolver, State, Step, Via
from coldframe.paging.selfmap import entry_addresses, self_map
from paging.scenes import scene

TYPES = {"x86": "x86 XP", "pae": "pae 7", "4-level": "x64 7 RTM", "5-level": "x64 7 RTM"}


def small(name: str) -> tuple[AddressSpace, ImageBuilder]:
    types = bit_field_types(TYPES[name])
    builder = ImageBuilder(types, name, ram=((0, 1 << 22),))
    layout = PteLayout.from_types(types)
    resolver = Resolver(builder.physical(), FORMATS[name], layout, kernel_dtb=builder.kernel_dtb)
    return AddressSpace(resolver, builder.kernel_dtb, ListedVads()), builder


def test_the_addresses_are_those_that_kd_shows():
    """The examples of Microsoft's page on !pte (x86), and the well-known self-map of x64 before Windows 10 1607."""
    x86 = entry_addresses(FORMATS["x86"], 0xC0000000, 0x801544F4)
    assert x86 == {"PDE": 0xC0300800, "PTE": 0xC0200550}
    pae = entry_addresses(FORMATS["pae"], 0xC0000000, 0)
    assert pae == {"PDE": 0xC0600000, "PTE": 0xC0000000}
    x64 = entry_addresses(FORMATS["4-level"], 0xFFFFF68000000000, 0)
    assert x64 == {
        "PML4E": 0xFFFFF6FB7DBED000,
        "PDPTE": 0xFFFFF6FB7DA00000,
        "PDE": 0xFFFFF6FB40000000,
        "PTE": 0xFFFFF68000000000,
    }


@pytest.mark.parametrize(
    ("name", "page_format"), [("x64 7 RTM", "4-level"), ("pae 7", "pae"), ("pae 10", "pae"), ("x86 XP", "x86")]
)
def test_at_an_entrys_address_is_the_entry(name, page_format):
    built, resolver = scene(name, page_format, "unswizzled")
    dtb = built.builder.kernel_dtb if page_format == "pae" else built.dtb  # built PAE processes share all directories
    space = AddressSpace(resolver, dtb, built.vads)
    base = self_map(resolver.physical, resolver.format, dtb)
    assert base is not None
    seen = 0
    for case in built.cases:
        if case.dtb != dtb:
            continue
        page = space.resolve(case.address)
        mapped = entry_addresses(resolver.format, base, case.address)
        for step in page.steps:
            if step.level in mapped and Via.PAGED_TABLE not in page.via:
                assert space.translate(mapped[step.level]) == step.entry_address, (case.name, step)
                seen += 1
        assert table_lines(page, space)
    assert seen >= 3


def test_five_levels_have_five_columns():
    space, builder = small("5-level")
    builder.map(builder.kernel_dtb, 0x12FF6123456000, b"here")
    page = space.resolve(0x12FF6123456000)
    base = self_map(builder.physical(), FORMATS["5-level"], builder.kernel_dtb)
    assert base is not None
    mapped = entry_addresses(FORMATS["5-level"], base, page.address)
    assert [space.translate(mapped[step.level]) for step in page.steps] == [step.entry_address for step in page.steps]
    lines = table_lines(page, space)
    assert [word for word in lines[1].split() if word.isalnum() and len(word) == 3] == [
        "P5E",
        "PXE",
        "PPE",
        "PDE",
        "PTE",
    ]


def test_an_entry_is_shown_as_kd_shows_it():
    space, builder = small("x86")
    at, dtb = 0x80154000, builder.kernel_dtb
    builder.map(dtb, at, b"kernel")
    builder.set_entry(dtb, at, 0x00154121)
    lines = table_lines(space.resolve(at), space)
    assert lines[0].strip() == "VA 80154000"
    assert lines[1].split() == ["PDE", "at", "C0300800", "PTE", "at", "C0200550"]
    assert lines[2].split()[-2:] == ["contains", "00154121"]
    assert lines[3].split()[-3:] == ["pfn", "154", "-G--A--KREV"]


def test_what_is_not_valid_is_said_in_kds_words():
    space, builder = small("4-level")
    at, dtb = 0x7FF600000000, builder.kernel_dtb
    frame = builder.allocate_page(b"there")
    said = {
        builder.transition(frame): ["Transition:", f"{frame >> 12:x}", "Protect:", "4", "-", "ReadWrite"],
        builder.paged(2, 0x1A3000): ["PageFile:", "2", "Offset:", "1a3", "Protect:", "4", "-", "ReadWrite"],
        builder.demand_zero(): ["DemandZero", "Protect:", "4", "-", "ReadWrite"],
        builder.vad_marker(): ["Proto:", "VAD", "Protect:", "4", "-", "ReadWrite"],
        builder.prototype(0xFFFF8A0000123458): ["Proto:", "FFFF8A0000123458"],
        0: [],
    }
    builder.map(dtb, at, b"")
    for value, words in said.items():
        builder.set_entry(dtb, at, value)
        column = [line[81:] for line in table_lines(space.resolve(at), space)[1:]]
        assert " ".join(column[2:]).split() == ["not", "valid", *words]


def test_a_large_page_is_named_in_the_next_column_and_an_entry_beyond_is_left_empty():
    space, builder = small("4-level")
    builder.map(builder.kernel_dtb, 0x201C0000000, b"")
    builder.set_entry(builder.kernel_dtb, 0x201C0000000, 0x2008E7, "PDE")
    lines = table_lines(space.resolve(0x201C0000000), space)
    assert lines[3].endswith("pfn 200       --LDA--UWEV  LARGE PAGE pfn 200")
    lines = table_lines(space.resolve(0x7000_0000_0000), space)
    assert lines[2:] == [f"contains {0:016X}", "not valid"]
    assert "PTE at FFFF" in lines[1]


def test_where_the_room_is_narrow_a_level_is_a_line():
    space, builder = small("4-level")
    builder.map(builder.kernel_dtb, 0x7FF600000000, b"")
    wide = table_lines(space.resolve(0x7FF600000000), space)
    narrow = table_lines(space.resolve(0x7FF600000000), space, 80)
    assert [line[:3] for line in narrow[1:]] == ["PXE", "PPE", "PDE", "PTE"]
    assert sorted(" ".join(narrow).split()) == sorted(" ".join(wide).split())
    assert max(map(len, narrow)) <= 80


def test_a_place_in_the_store_is_told_in_its_own_words_whatever_its_key():
    says = "key 0x10015175: store 1 at 0xffffca8f40080000"
    page = Page(0x20640005000, State.COMPRESSED, None, steps=(Step("store key", 0xFFFFCA8F400AA000, 0x10015175, says),))
    assert f"  {says}" in page_lines(page)
