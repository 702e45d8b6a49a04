"""A 32-bit kernel is found by each anchor alone, its kind of page tables proved; without any, each says why."""

from __future__ import annotations

import struct

import pytest

from builder.compact import NT52, SEVEN_PAE, write_isf
from coldframe.errors import NoKernelError
from coldframe.target import open_image
from coldframe.windows.anchors32 import KPCR
from coldframe.windows.kernel import KUSER_SHARED_DATA32, find_kernel
from x86.conftest import Built

ROOT_SIZE = 32


def wipe_self_map(image):
    for dtb in image.dtbs:
        if image.format == "x86":
            image._put(dtb + 4 * 0x300, 0)
        else:
            top = image._get(dtb + 24) & ~0xFFF
            for index in range(4):
                image._put(top + 8 * index, 0)


def wipe_shared_data(image):
    image.write_physical(image.shared_data + 0x30, bytes(64))


def wipe_kpcr(image):
    if image.kpcrs[0] == KPCR:
        image.write(KPCR + 0x1C, bytes(8))


def find(built, registers=()):
    found = find_kernel(built.image.physical(), built.store, registers)
    assert (found.base, found.format) == (built.image.base, built.image.format)
    assert found.dtb in built.image.dtbs
    return found


@pytest.mark.parametrize(
    "known", [("cr0", "cr3", "cr4", "efer", "idt_base"), ("cr3", "cr4", "idt_base"), ("cr3", "idt_base")]
)
def test_by_a_page_fault_gate_of_eight_bytes(built, known):
    registers = {name: built.registers[name] for name in known}
    assert "page-fault handler" in find(built, [registers]).how


def test_by_an_instruction_pointer_in_the_kernel(one):
    assert "instruction pointer" in find(one, [{"cr3": one.notepad.dtb, "rip": one.image.base + 0x234}]).how


def test_by_the_kpcr_that_fs_leads_to(one):
    registers = {"cr3": one.notepad.dtb, "cr4": one.registers["cr4"], "efer": 0, "fs_base": one.image.kpcrs[0]}
    assert "KdVersionBlock" in find(one, [registers]).how


def test_in_user_mode_nt_5_has_its_kpcr_where_it_always_is(one):
    registers = {"cr3": one.notepad.dtb, "rip": 0x401000, "fs_base": 0x7FFDF000}
    found = find(one, [registers])
    assert ("KdVersionBlock" in found.how) == (one.image.kpcrs[0] == KPCR)


def test_from_memory_alone_by_page_tables_that_map_themselves(built):
    assert "self-referencing" in find(built).how


def test_from_memory_alone_by_kuser_shared_data(built):
    wipe_self_map(built.image)
    assert "KUSER_SHARED_DATA" in find(built).how


def test_from_memory_alone_by_the_first_kpcr_of_nt_5(one):
    if one.image.kpcrs[0] != KPCR:
        pytest.skip("its KPCR is not at the fixed address")
    wipe_self_map(one.image)
    wipe_shared_data(one.image)
    assert "KPCR" in find(one).how


def test_from_memory_alone_by_the_system_process(built):
    wipe_self_map(built.image)
    wipe_shared_data(built.image)
    wipe_kpcr(built.image)
    found = find(built)
    assert "System process" in found.how
    assert found.dtb == built.image.kernel_dtb


def test_without_any_anchor_each_says_why(one):
    for wipe in (wipe_self_map, wipe_shared_data, wipe_kpcr):
        wipe(one.image)
    name = one.image.types.offset("_EPROCESS", "ImageFileName")
    one.image.write(one.image.system.address + name, b"Xystem")
    with pytest.raises(NoKernelError) as caught:
        find(one)
    for anchor in (
        "self-referencing page directory", "self-referencing PAE page directories", "32-bit KUSER_SHARED_DATA",
        "KPCR at 0xffdff000", "System process",
    ):  # fmt: skip
        assert anchor in str(caught.value)


def test_a_kernel_at_3_gb_has_that_boundary(symbol_file):
    built = Built(symbol_file, base=0xE0400000, range_start=0xC0000000)
    guest = built.open()
    assert guest.kernel_start == 0xC0000000
    assert guest.resolver.format.user_end == 0xC0000000
    assert built.open([built.registers]).kernel_start == 0xC0000000
    assert Built(symbol_file).open().resolver.format.user_end == 0x80000000


def crash_dump(path, built, *, pae, modules):
    """A complete dump of a 32-bit system: DUMP_HEADER32 with one run, then its pages."""
    ram = built.image.ram[0]
    header = bytearray(b"PAGE" * 1024)
    header[4:8] = b"DUMP"
    cr3 = built.image.kernel_dtb
    processes = built.image.variable("PsActiveProcessHead")
    struct.pack_into("<7I", header, 8, 15, 2600, cr3, 0x81000000, modules, processes, 0x14C)
    struct.pack_into("<I", header, 0x60, 0)
    header[0x5C] = pae
    struct.pack_into("<4I", header, 0x64, 1, len(ram.data) >> 12, 0, len(ram.data) >> 12)
    header[0x320 : 0x320 + 0x200] = bytes(0x200)
    struct.pack_into("<I", header, 0xF88, 1)
    path.write_bytes(bytes(header) + bytes(ram.data))


@pytest.mark.parametrize("lie", [False, True], ids=["true", "lying"])
def test_a_32_bit_crash_dump_leads_to_its_kernel_even_where_it_lies_about_pae(one, tmp_path, lie):
    pae = one.image.format == "pae"
    crash_dump(tmp_path / "a.dmp", one, pae=pae ^ lie, modules=one.image.variable("PsLoadedModuleList"))
    isf = write_isf(tmp_path / "k.json", SEVEN_PAE if pae else NT52, pdb=one.symbol_file.identity.name)
    with open_image(tmp_path / "a.dmp", symbols=[isf]) as guest:
        assert "image header" in guest.location.how
        assert guest.location.format == one.image.format
        assert [process.name for process in guest.processes] == ["System", "smss.exe", "notepad.exe"]


def test_the_page_of_shared_data_is_read_by_its_fixed_address(one):
    assert one.open().memory.read(KUSER_SHARED_DATA32 + 0x26C, 4) == b"\5\0\0\0"
