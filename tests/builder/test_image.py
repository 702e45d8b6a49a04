"""The builder's own laws: what is put in is read back, by paths that do not go through `coldframe.paging`."""

from __future__ import annotations

import pytest

from builder import MB, PAGE, ImageBuilder, kernel, kernel_files, pattern

KERNELS = kernel_files()
pytestmark = pytest.mark.skipif(not KERNELS, reason="no kernel types: ../shared/symbols is absent")


@pytest.fixture(scope="module")
def types():
    return kernel(KERNELS[0]).types


def test_what_is_mapped_reads_back(types):
    builder = ImageBuilder(types)
    dtb = builder.new_dtb()
    content = pattern(1) + pattern(2) + b"end"
    first = builder.map(dtb, 0x7FF700000000, content)
    assert builder.read(0x7FF700000000, len(content), dtb) == content
    assert builder.physical().read(first, PAGE) == pattern(1)


def test_the_kernel_half_is_shared_and_the_self_map_is_not(types):
    builder = ImageBuilder(types)
    dtb = builder.new_dtb()
    va = builder.allocate_pool(3 * PAGE)
    builder.write(va, b"shared")
    assert builder.read(va, 6, dtb) == b"shared"
    assert builder.physical_of(0xFFFFF6FB7DBED000, dtb) == dtb
    assert builder.physical_of(0xFFFFF6FB7DBED000) == builder.kernel_dtb


def test_structures_are_written_by_path_and_bit_fields_keep_their_neighbours(types):
    builder = ImageBuilder(types)
    process = builder.allocate_struct(
        "_EPROCESS", {"Pcb.DirectoryTableBase": 0x1AB000, "ImageFileName": b"notepad.exe"}
    )
    assert builder.read_field("_EPROCESS", process, "Pcb.DirectoryTableBase") == 0x1AB000
    pte = builder.allocate_struct("_MMPTE_HARDWARE", {"PageFrameNumber": 0x1234, "Valid": 1})
    assert int.from_bytes(builder.read(pte, 8), "little") == 0x1234001


def test_large_pages_need_aligned_memory(types):
    builder = ImageBuilder(types, ram=((0, 8 * MB),))
    physical = builder.map(builder.kernel_dtb, 0xFFFFF80000000000, pattern(7), size=2 * MB)
    assert physical % (2 * MB) == 0
    assert builder.read(0xFFFFF80000000000, PAGE) == pattern(7)
