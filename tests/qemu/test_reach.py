"""An instruction is carried out from outside only where the processor would set no flag and take no fault."""

from __future__ import annotations

import struct

import pytest

from coldframe.memory import PhysicalMemory, Run
from coldframe.qemu.emulation import NotOursError
from coldframe.qemu.reach import Reach

VALID, WRITE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
ALL = VALID | WRITE | ACCESSED | DIRTY
PAGE, ADDRESS = 0x5000, 0xFFFF_F800_1234_5000
KERNEL = {"cr0": 1 << 16, "cr3": 0x1000, "cr4": 0, "cs": 0x10}


def reach(flags: int = ALL, *, tables: int = ALL, frame: int = PAGE, **registers: int) -> Reach:
    """Memory with one page at ADDRESS, through tables at 0x1000, 0x2000, 0x3000 and 0x4000."""
    memory = bytearray(0x8000)
    entries = (0x2000 | tables, 0x3000 | tables, 0x4000 | tables, frame | flags)
    for table, shift, entry in zip(range(0x1000, 0x5000, 0x1000), (39, 30, 21, 12), entries, strict=True):
        struct.pack_into("<Q", memory, table + 8 * (ADDRESS >> shift & 511), entry)
    memory[PAGE + 0x10 : PAGE + 0x18] = b"coldfram"
    return Reach(PhysicalMemory([Run(0, len(memory), memoryview(memory))]), KERNEL | registers)


def test_what_is_there_is_read_and_may_be_written() -> None:
    assert reach().read(ADDRESS + 0x10, 8) == int.from_bytes(b"coldfram", "little")
    assert reach().code(ADDRESS + 0xFF8, 15) == bytes(8)  # as far as the page goes
    reach().check_write(ADDRESS + 0x10, 8)


def test_the_user_half_is_reached_from_user_mode() -> None:
    reach(ALL | USER, tables=ALL | USER, cs=0x33).check_write(ADDRESS, 8)


@pytest.mark.parametrize(
    ("flags", "tables", "registers"),
    [
        pytest.param(ALL & ~VALID, ALL, {}, id="a page fault"),
        pytest.param(ALL, ALL & ~VALID, {}, id="no table"),
        pytest.param(ALL & ~WRITE, ALL, {}, id="copy on write"),
        pytest.param(ALL, ALL & ~WRITE, {}, id="a read-only table"),
        pytest.param(ALL & ~DIRTY, ALL, {}, id="the dirty flag to set"),
        pytest.param(ALL & ~ACCESSED, ALL, {}, id="the accessed flag to set"),
        pytest.param(ALL, ALL & ~ACCESSED, {}, id="a table's accessed flag to set"),
        pytest.param(ALL, ALL, {"cs": 0x33}, id="a kernel page from user mode"),
        pytest.param(ALL | USER, ALL | USER, {}, id="a user page from kernel mode (SMAP)"),
    ],
)
def test_what_the_processor_would_do_more_for_is_its_own(flags: int, tables: int, registers: dict[str, int]) -> None:
    with pytest.raises(NotOursError):
        reach(flags, tables=tables, **registers).check_write(ADDRESS, 8)


def test_without_write_protection_the_kernel_writes_read_only_pages() -> None:
    reach(ALL & ~WRITE, cr0=0).check_write(ADDRESS, 8)


def test_what_is_no_ram_or_lies_on_two_pages_is_left_to_the_processor() -> None:
    with pytest.raises(NotOursError):
        reach(frame=0xFEE0_0000).check_write(ADDRESS, 8)
    with pytest.raises(NotOursError):
        reach(frame=0xFEE0_0000).read(ADDRESS, 8)
    with pytest.raises(NotOursError):
        reach().read(ADDRESS + 0xFFC, 8)
    with pytest.raises(NotOursError):
        reach().read(0x8000_0000_0000_0000, 8)
