"""PTE layouts are the kernel's own, of whatever age; what cannot be a kernel's is refused in words."""

from __future__ import annotations

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import LAYOUTS, bit_field_types
from builder.layouts import BitFieldTypes
from coldframe.errors import FormatError, TypeNotFoundError
from coldframe.paging import FORMATS, Bits, PoolAddresses, PteLayout, mask_from_physical_bits, unswizzle
from coldframe.paging.resolver import Resolver
from paging.scenes import KERNELS, types_of

needs_kernels = pytest.mark.skipif(not KERNELS, reason="no kernel types: ../shared/symbols is absent")


@needs_kernels
@pytest.mark.parametrize("name", KERNELS)
def test_every_position_is_the_isf_files_own(name):
    path = KERNELS[name]
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt") as file:
        types = json.load(file)["user_types"]

    def bits(structure: str, field: str) -> Bits:
        kind = types[structure]["fields"][field]["type"]
        return Bits(kind["bit_position"], kind["bit_length"])

    layout = PteLayout.from_types(types_of(name))
    assert layout.entry_size == types["_MMPTE_HARDWARE"]["size"]
    assert layout.hardware_frame == bits("_MMPTE_HARDWARE", "PageFrameNumber").mask
    assert layout.transition_frame == bits("_MMPTE_TRANSITION", "PageFrameNumber").mask
    assert layout.page_file_low == bits("_MMPTE_SOFTWARE", "PageFileLow")
    assert layout.page_file_high == bits("_MMPTE_SOFTWARE", "PageFileHigh")
    assert layout.prototype == bits("_MMPTE_SOFTWARE", "Prototype").mask
    assert layout.transition == bits("_MMPTE_TRANSITION", "Transition").mask
    assert layout.prototype_address_bits.high == bits("_MMPTE_PROTOTYPE", "ProtoAddress")
    assert layout.subsection_address_bits.high == bits("_MMPTE_SUBSECTION", "SubsectionAddress")
    has_swizzle = "SwizzleBit" in types["_MMPTE_SOFTWARE"]["fields"]
    assert layout.swizzle_bit == (bits("_MMPTE_SOFTWARE", "SwizzleBit").mask if has_swizzle else 0)


def test_old_kernels_have_page_file_low_at_bits_1_to_4_and_no_swizzle_bit():
    layout = PteLayout.from_types(bit_field_types("x64 7 RTM"))
    assert layout.page_file_low == Bits(1, 4)
    assert layout.swizzle_bit == 0
    assert PteLayout.from_types(bit_field_types("x64 2003")).transition_frame == 0x000000FFFFFFF000


@needs_kernels
@pytest.mark.parametrize("name", KERNELS)
def test_frame_numbers_are_as_wide_as_the_processors_physical_addresses_then_were(name):
    """28 bits up to Vista, 36 up to 10, 40 in Server 2022 and 11; in transition as many as in a valid PTE."""
    layout = PteLayout.from_types(types_of(name))
    assert layout.transition_frame == layout.hardware_frame
    assert layout.transition_frame.bit_count() in {28, 36, 40}


def test_addresses_of_wide_kernels_are_sign_extended():
    layout = PteLayout.from_types(bit_field_types("x64 7 RTM"))
    assert layout.prototype_address(0x8A0123456780_0420) == 0xFFFF8A0123456780
    assert layout.subsection_address(0x7A0123456780_0420) == 0x00007A0123456780


@given(st.integers(0, (1 << 30) - 4))
def test_32_bit_addresses_are_relative_to_the_pools(offset):
    """`MiPteToProto` of the i386 kernel: ((pte >> 11) << 9) + ((pte << 24) >> 23) + MmProtopte_Base."""
    offset &= ~3
    layout = PteLayout.from_types(bit_field_types("x86 XP"))
    pte = (offset >> 9) << 11 | (offset & 0x1FC) >> 1 | 1 << 10
    assert layout.prototype_address(pte) is None
    known = layout.with_pools(PoolAddresses(0x90000000, 0x81000000, 0xFFBE0000))
    assert known.prototype_address(pte) == ((pte >> 11 << 9) + ((pte << 24 & 0xFFFFFFFF) >> 23 & ~3) + 0x90000000) & (
        0xFFFFFFFF
    )


@given(st.integers(0, (1 << 27) - 8), st.booleans())
def test_32_bit_subsections_count_from_either_end_of_the_nonpaged_pool(offset, from_start):
    """`MiGetSubsectionAddress` of the i386 kernel: the WhichPool bit tells which end."""
    offset &= ~7
    pte = (offset >> 7) << 11 | (offset & 0x78) >> 2 | 1 << 10 | (1 << 31 if from_start else 0)
    layout = PteLayout.from_types(bit_field_types("x86 XP"))
    assert layout.subsection_address(pte) is None
    known = layout.with_pools(PoolAddresses(0x90000000, 0x81000000, 0xFFBE0000))
    expected = 0x81000000 + offset if from_start else 0xFFBE0000 - offset
    assert known.subsection_address(pte) == expected


@pytest.mark.parametrize("structure", LAYOUTS["x64 7 RTM"][1])
def test_a_missing_structure_is_named(structure):
    size, rows = LAYOUTS["x64 7 RTM"]
    types = BitFieldTypes(size, {name: fields for name, fields in rows.items() if name != structure})
    with pytest.raises(TypeNotFoundError, match=f"{structure}.*kernel itself"):
        PteLayout.from_types(types)


@pytest.mark.parametrize(
    ("structure", "field"),
    [
        ("_MMPTE_SOFTWARE", "PageFileLow"),
        ("_MMPTE_TRANSITION", "PageFrameNumber"),
        ("_MMPTE_PROTOTYPE", "ProtoAddress"),
        ("_MMPTE_SUBSECTION", "Prototype"),
    ],
)
def test_a_missing_field_is_named(structure, field):
    size, rows = LAYOUTS["x64 7 RTM"]
    types = BitFieldTypes(size, rows | {structure: {k: v for k, v in rows[structure].items() if k != field}})
    with pytest.raises(TypeNotFoundError, match=f"{structure} '{field}'"):
        PteLayout.from_types(types)


@pytest.mark.parametrize(
    ("structure", "field", "bits", "words"),
    [
        ("_MMPTE_TRANSITION", "PageFrameNumber", (13, 36), "bit 13"),
        ("_MMPTE_TRANSITION", "Prototype", (9, 1), "other bits"),
        ("_MMPTE_SOFTWARE", "PageFileHigh", (40, 32), "32 bits from bit 40"),
    ],
)
def test_what_no_kernel_has_is_refused(structure, field, bits, words):
    size, rows = LAYOUTS["x64 7 RTM"]
    types = BitFieldTypes(size, rows | {structure: rows[structure] | {field: bits}})
    with pytest.raises(FormatError, match=words):
        PteLayout.from_types(types)


def test_a_32_bit_kernels_layout_does_not_go_with_64_bit_tables(empty_memory):
    layout = PteLayout.from_types(bit_field_types("x86 XP"))
    with pytest.raises(FormatError, match="another kernel"):
        Resolver(empty_memory, FORMATS["4-level"], layout, kernel_dtb=0)


@given(st.integers(0, 255))
def test_the_mask_of_the_physical_address_bits_is_of_one_byte_from_36_to_52(bits):
    if bits in (0, 255):
        assert mask_from_physical_bits(bits) == 0
    elif 36 <= bits <= 52:
        assert mask_from_physical_bits(bits) == 1 << (bits - 1)
    else:
        with pytest.raises(FormatError, match="36 to 52"):
            mask_from_physical_bits(bits)


def test_eight_bytes_of_the_physical_address_bits_are_refused():
    with pytest.raises(FormatError, match="one byte"):
        mask_from_physical_bits(0x0000000100000027)


@given(st.integers(0, (1 << 64) - 1), st.integers(35, 51))
def test_what_is_swizzled_comes_back_but_for_bit_4(value, bit):
    """`MiSwizzleInvalidPte`: the mask is set; where it was set already, SwizzleBit is set too."""
    value &= ~0x10
    mask = 1 << bit
    stored = value | 0x10 if value & mask else value | mask
    assert stored & mask
    assert unswizzle(stored, mask, 0x10) & ~0x10 == value


@given(st.integers(0, (1 << 64) - 1))
def test_a_kernel_without_mask_or_without_the_bit_swizzles_nothing(value):
    assert unswizzle(value, 0, 0x10) == value
    assert unswizzle(value, 1 << 45, 0) == value
