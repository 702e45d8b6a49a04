"""Handles, objects and names."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("level", [0, 1, 2])
def test_handles_lead_to_their_objects_at_every_depth(built, level):
    image = built.image
    name = "\\Users\\minint\\a.txt"
    file = image.add_file(name)
    section = image.allocate_object("Section", "_SECTION" if "_SECTION" in image.types else "_SEGMENT", name="Shared")
    far = 4 * (256 * 3 + 17) if level else 4 * 200
    handles = {
        4: (file, 0x12019F),
        0x6C: (built.smss.address, 0x1FFFFF),
        0x70: (section, 0xF),
        far: (file, 0x100001),
    }
    image.set_handles(built.notepad, handles, level)
    guest = built.open()
    process = guest.process(812)
    assert {h.value: (h.object.address, h.access) for h in process.handles} == handles
    assert [h.object.type for h in process.handles] == ["File", "Process", "Section", "File"]
    assert [h.object.name for h in process.handles] == [name, None, "Shared", name]
    assert guest.file_of_handle(process, 4) == name
    assert guest.file_of_handle(process, far | 3) == name
    for other in (0, 8, 0x6C, 0x7FFF_FFF0, (1 << 64) - 1):
        assert guest.file_of_handle(process, other) is None


def test_a_kernel_handle_is_looked_up_in_the_kernels_table(built):
    image = built.image
    file = image.add_file("\\pagefile.sys")
    image.set_handles(built.image.system, {0x1A4: (file, 1)})
    table = image.read_field("_EPROCESS", image.system.address, "ObjectTable")
    image.set_variable("ObpKernelHandleTable", table)
    guest = built.open()
    assert guest.file_of_handle(guest.process(812), 0xFFFF_FFFF_8000_01A4) == "\\pagefile.sys"


def test_a_file_that_is_open_relative_to_another_has_both_names(built):
    image = built.image
    folder, file = image.add_file("\\Users\\minint"), image.add_file("a.txt")
    image.write_struct("_FILE_OBJECT", file, {"RelatedFileObject": folder})
    image.set_handles(built.notepad, {8: (file, 1)})
    guest = built.open()
    assert guest.file_of_handle(guest.process(812), 8) == "\\Users\\minint\\a.txt"


def test_a_process_without_handles_has_none(built):
    assert list(built.open().process(812).handles) == []
