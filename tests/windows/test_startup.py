"""The mask of invalid PTEs: wherever this build keeps it, early in boot, and on processors that need none."""

from __future__ import annotations

import struct

import pytest

from builder import kernel
from windows.conftest import Built

STATE, MASK = "_MI_SYSTEM_INFORMATION", "Hardware.InvalidPteMask"


@pytest.fixture
def swizzling(kernel_path):
    """A guest of a kernel that can swizzle, nothing of it filled in yet."""
    if "SwizzleBit" not in kernel(kernel_path).types.record("_MMPTE_SOFTWARE").fields:
        pytest.skip("a kernel of before 2018 swizzles nothing")
    return Built(kernel_path)


def keeps_it_in_state(built):
    return built.image.types.has_field(STATE, MASK)


def set_state(built, **fields):
    state = built.image.base + built.symbol_file.symbols["MiState"]
    built.image._map_span(state, built.image.types.size(STATE))
    built.image.write_struct(STATE, state, {name.replace("__", "."): value for name, value in fields.items()})


@pytest.mark.parametrize("bit", [35, 38, 45, 51])
def test_the_mask_is_found_wherever_this_build_keeps_it(swizzling, kernel_path, bit):
    assert Built(kernel_path, invalid_pte_mask=1 << bit).open().invalid_pte_mask == 1 << bit


@pytest.mark.parametrize("bits", [36, 39, 46, 52])
def test_early_in_boot_the_mask_comes_from_one_byte_of_the_physical_address_bits(swizzling, bits):
    """The bytes behind it are other variables': IceBox reads eight."""
    swizzling.image.set_physical_bits(bits)
    guest = swizzling.open()
    assert (guest.invalid_pte_mask, guest.warnings) == (1 << bits - 1, [])
    if keeps_it_in_state(swizzling):
        set_state(swizzling, FullyInitialized=0)
        assert swizzling.open().invalid_pte_mask == 1 << bits - 1


@pytest.mark.parametrize("bits", [0, 0xFF])
def test_a_processor_without_the_flaw_has_no_mask(swizzling, bits):
    swizzling.image.set_physical_bits(bits)
    guest = swizzling.open()
    assert (guest.invalid_pte_mask, guest.warnings) == (0, [])


def test_an_initialised_memory_manager_without_a_mask_is_believed(swizzling):
    if not keeps_it_in_state(swizzling):
        pytest.skip("7 to 8.1 do not say when the mask is filled in")
    set_state(swizzling, FullyInitialized=1)
    swizzling.image.set_physical_bits(46)
    assert swizzling.open().invalid_pte_mask == 0


def test_a_number_that_is_no_width_of_an_address_is_warned_of(swizzling):
    swizzling.image.set_physical_bits(12)
    guest = swizzling.open()
    assert guest.invalid_pte_mask == 0
    assert any("KiImplementedPhysicalBits is 0xc" in warning for warning in guest.warnings)


def test_a_swizzled_page_of_the_guest_is_read(swizzling, kernel_path):
    """From the variable to the byte: frame and paging-file offset with the mask's own bit in them."""
    built = Built(kernel_path, swizzle="windows", invalid_pte_mask=1 << 39, ram=((0, 16 << 20), (1 << 39, 1 << 20)))
    image, dtb = built.image, built.notepad.dtb
    for number, at in enumerate((1 << 39, None)):
        frame = image.allocate_page(struct.pack("<Q", 0xC0FFEE + number), at=at)
        image.set_entry(dtb, 0x10000 + number * 0x1000, image.transition(frame))
    image.set_entry(dtb, 0x12000, image.paged(1, 0x80 << 12))
    memory = built.open().process(812).memory
    assert [memory.u64(0x10000), memory.u64(0x11000)] == [0xC0FFEE, 0xC0FFEF]
    assert memory.resolve(0x12000).pagefile.offset == 0x80 << 12
