"""Processes that the kernel's list lacks, found beside it."""

from __future__ import annotations

import time

import pytest

EXITED = 0x01D6_1B70_0000_0000


def seen(guest, **how):
    return {s.process.pid: s.found_by for s in guest.sightings(**how)}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_an_unlinked_process_is_found_by_its_identifier(built, level):
    built.image.set_cid_table(level)
    built.image.unlink(built.smss)
    guest = built.open()
    assert 368 not in {process.pid for process in guest.processes}
    assert seen(guest) == {
        4: ("list", "cid table", "threads"),
        812: ("list", "cid table", *(["threads"] if level else [])),  # one page of entries ends before its thread's
        816: ("list", "cid table"),
        368: ("cid table",),
    }
    found = guest.sightings()[-1].process
    assert (found.name, found.eprocess.address, found.dtb) == ("smss.exe", built.smss.address, built.smss.dtb)


def test_an_exited_process_that_left_the_list_is_found_and_says_when_it_ended(built):
    image = built.image
    image.set_cid_table()
    image.unlink(built.other)
    exit_time = built.other.address + image.types.offset("_EPROCESS", "ExitTime")
    image.write(exit_time, EXITED.to_bytes(8, "little"))
    image.write_struct("_EPROCESS", built.other.address, {"Pcb.DirectoryTableBase": 0})
    found = built.open().sightings()[-1]
    assert found.process.pid == 816
    assert found.process.exited is not None
    assert found.found_by == ("cid table",)


def test_a_process_that_left_the_cid_table_is_found_by_the_list(built):
    built.image.set_cid_table()
    built.add_process("late.exe", 900, 4)
    assert seen(built.open())[900] == ("list",)


def test_a_looping_cid_table_ends(built):
    """Three levels, every pointer of the upper ones leading to the same page, or back to the table itself."""
    image = built.image
    table = image.set_cid_table(level=2)
    top = image.read_field("_HANDLE_TABLE", table, "TableCode") & ~3
    middle = int.from_bytes(image.read(top, 8), "little")
    leaf = image.read(middle, 8)
    image.write(middle, leaf * 512)
    image.write(top, middle.to_bytes(8, "little") * 256 + top.to_bytes(8, "little") * 256)
    image.write_struct("_HANDLE_TABLE", table, {"NextHandleNeedingPool": 0xFFFFFFFC})
    image.unlink(built.smss)
    guest = built.open()
    start = time.monotonic()
    assert seen(guest)[368] == ("cid table",)
    assert len(guest.sightings()) == 4
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", [0, 3, 0xFFFFBEEF_00000001, 0x1000])
def test_a_cid_table_that_is_damaged_leaves_the_list(built, code):
    table = built.image.set_cid_table()
    built.image.write_struct("_HANDLE_TABLE", table, {"TableCode": code})
    assert seen(built.open()) == {4: ("list",), 368: ("list",), 812: ("list",), 816: ("list",)}


def test_what_is_no_process_is_left_out(built):
    """A thread, an identifier that is not the process's own, an unlinked one without page tables."""
    image = built.image
    image.unlink(built.smss)
    image.unlink(built.other)
    image.write_struct("_EPROCESS", built.other.address, {"Pcb.DirectoryTableBase": 0xFFFF_FFFF_F000})
    image.set_cid_table()
    image.write_struct("_EPROCESS", built.smss.address, {"UniqueProcessId": 372})
    assert set(seen(built.open())) == {4, 812}


def test_a_process_that_is_in_no_table_is_found_by_a_scan(built):
    """Unlinked, without an identifier; on neither of two pages that say they are the same one."""
    image = built.image
    head = image.types.offset("_EPROCESS", "Pcb.ProfileListHead")
    for process in (image.system, built.smss, built.notepad, built.other):
        at = process.address + head
        image.write_struct("_LIST_ENTRY", at, {"Flink": at, "Blink": at})
        image.write_struct("_EPROCESS", process.address, {"Pcb.Header.Type": 3})
    image.write_struct("_EPROCESS", built.other.address, {"Pcb.Header.Type": 5})
    image.unlink(built.smss)
    image.allocate_page(image.read(built.smss.address & ~0xFFF, 0x1000))
    guest = built.open()
    both = ("scan", "pool") if "_POOL_HEADER" in image.types else ("scan",)
    assert seen(guest, scan=True) == {4: ("list", *both), 812: ("list", *both), 816: ("list",), 368: both}
    assert 368 not in seen(guest)


def test_a_process_that_is_profiled_is_found_by_its_pool_block_alone(built):
    """Its list of profiles is not empty; the list of those who wait for it is."""
    image = built.image
    if "_POOL_HEADER" not in image.types:
        pytest.skip("these types leave out the pool's header")
    at = built.smss.address + image.types.offset("_EPROCESS", "Pcb.Header.WaitListHead")
    image.write_struct("_LIST_ENTRY", at, {"Flink": at, "Blink": at})
    image.write_struct("_EPROCESS", built.smss.address, {"Pcb.Header.Type": 3})
    image.unlink(built.smss)
    exit_time = built.smss.address + image.types.offset("_EPROCESS", "ExitTime")
    image.write(exit_time, EXITED.to_bytes(8, "little"))
    found = built.open().sightings(scan=True)[-1]
    assert (found.process.pid, found.found_by, found.process.alive) == (368, ("pool",), False)


def test_a_process_without_an_identifier_is_found_by_its_threads(built):
    image = built.image
    image.add_thread(built.notepad, 820)
    image.set_cid_table()
    cids = image.read_field(
        "_HANDLE_TABLE", int.from_bytes(image.read(image.variable("PspCidTable"), 8), "little"), "TableCode"
    )
    image.write(
        cids + 812 // 4 * image.types.size("_HANDLE_TABLE_ENTRY"), bytes(image.types.size("_HANDLE_TABLE_ENTRY"))
    )
    image.unlink(built.notepad)
    assert seen(built.open())[812] == ("threads",)


def test_a_process_that_is_in_no_other_list_is_found_by_its_handle_table(built):
    image = built.image
    for process in (built.smss, built.other):
        image.link_handle_table(process)
    image.unlink(built.smss)
    found = seen(built.open())
    assert (found[368], found[816]) == (("handle tables",), ("list", "handle tables"))


def test_a_list_of_handle_tables_that_bites_its_tail_ends(built):
    image = built.image
    for process in (built.smss, built.other):
        image.link_handle_table(process)
    table = image.read_field("_EPROCESS", built.other.address, "ObjectTable")
    at = table + image.types.offset("_HANDLE_TABLE", "HandleTableList")
    image.write_struct("_LIST_ENTRY", at, {"Flink": at})
    assert seen(built.open())[816] == ("list", "handle tables")
