"""Sections by every way that leads to them, and whole names of what handles lead to."""

from __future__ import annotations

import pytest

PAGE = 4096
NTDLL, DATA = "\\Windows\\System32\\ntdll.dll", "\\Users\\minint\\a.txt"


@pytest.fixture
def shared(built):
    """A file that two processes map, an image, memory of paging files with a name, and one that is only held open."""
    image = built.image
    built.root = image.add_directory("\\")
    built.named = image.add_directory("BaseNamedObjects", built.root)
    built.dll = image.add_view(
        built.notepad, 0x7FB_1234_0000, file=NTDLL, counts=(1, 6, 3), image=True, contiguous=False, protection=7
    )
    built.memory, _, _ = image.add_section(None, (4,))
    built.object = image.add_section_object(built.memory, "Shared", built.named)
    built.data, built.parts, _ = image.add_section(DATA, (5, 2))
    held = image.add_section_object(built.data)
    image.set_handles(built.other, {0x10: (held, 4), 0x14: (built.object, 6)})
    image.set_handles(built.notepad, {0x20: (held, 4)})
    return built


def by_address(guest, *processes, named=False):
    found = guest.sections.listed(processes or guest.processes, named=named)
    assert [area.address for area in found] == sorted(area.address for area in found)
    return {area.address: area for area in found}


def test_sections_are_found_by_views_by_handles_and_by_name(shared):
    guest = shared.open()
    dll = shared.image.read_field("_SUBSECTION", shared.dll.subsections[0], "ControlArea")
    found = by_address(guest)
    assert set(found) == {dll, shared.data, shared.memory}
    assert {address: area.pids for address, area in found.items()} == {
        dll: [812],
        shared.data: [812, 816],
        shared.memory: [816],
    }
    assert set(by_address(guest, guest.process(812))) == {dll, shared.data}
    assert set(by_address(guest, guest.process(368))) == set()
    assert by_address(guest, guest.process(368), named=True)[shared.memory].pids == []


def test_a_section_says_what_it_is(shared):
    guest = shared.open()
    dll = shared.image.read_field("_SUBSECTION", shared.dll.subsections[0], "ControlArea")
    found = by_address(guest, named=True)
    told = {address: (area.kind, area.file, area.size, area.names, area.views) for address, area in found.items()}
    assert told == {
        dll: ("image", NTDLL, 10 * PAGE, [], 1),
        shared.data: ("data", DATA, 7 * PAGE, [], 1),
        shared.memory: ("paging-file", None, 4 * PAGE, ["\\BaseNamedObjects\\Shared"], 1),
    }
    assert found[dll].flags == ("Image", "File")
    assert found[shared.memory].objects == [shared.object]


def test_subsections_say_where_in_their_file_they_begin(shared):
    guest = shared.open()
    found = by_address(guest)
    told = [(part.address, part.pages, part.file_offset) for part in found[shared.data].subsections]
    assert told == [(shared.parts[0], 5, 0), (shared.parts[1], 2, 5 * PAGE)]
    (dll,) = (area for area in found.values() if area.kind == "image")
    assert [part.address for part in dll.subsections] == shared.dll.subsections
    assert [(part.pages, part.file_offset) for part in dll.subsections] == [(1, 0), (6, PAGE), (3, 7 * PAGE)]
    assert [part.file_offset for part in found[shared.memory].subsections] == [None]


def test_a_subsection_chain_that_bites_its_tail_ends(shared):
    image = shared.image
    image.write_struct("_SUBSECTION", shared.parts[1], {"NextSubsection": shared.parts[0]})
    assert len(by_address(shared.open())[shared.data].subsections) == 2


def test_a_section_that_is_not_in_ram_is_warned_of_and_the_others_are_listed(shared):
    image = shared.image
    if image.types.has_field("_MMVAD", "ControlArea"):
        image.write_struct("_MMVAD", shared.dll.address, {"ControlArea": 0xFFFF_BEEF_0000_0000})
    else:
        image.write_struct("_SUBSECTION", shared.dll.subsections[0], {"ControlArea": 0xFFFF_BEEF_0000_0000})
    guest = shared.open()
    assert set(by_address(guest)) == {shared.data, shared.memory}
    assert any("section of the VAD" in warning for warning in guest.warnings)


# Whole names


def path_of(built, body):
    built.image.set_handles(built.notepad, {8: (body, 1)})
    guest = built.open()
    return guest.handle(guest.process(812), 8).object.path


def test_a_name_begins_at_the_root_of_the_namespace(shared):
    assert path_of(shared, shared.object) == "\\BaseNamedObjects\\Shared"
    assert path_of(shared, shared.named) == "\\BaseNamedObjects"
    assert path_of(shared, shared.root) == "\\"
    assert path_of(shared, shared.notepad.address) is None


def test_a_files_name_begins_with_its_devices(shared):
    image = shared.image
    device = image.add_directory("Device", shared.root)
    volume = image.allocate_object("Device", "_DEVICE_OBJECT", name="HarddiskVolume2")
    image.enter(device, volume)
    folder, file = image.add_file("\\Users\\minint"), image.add_file("a.txt")
    image.write_struct("_FILE_OBJECT", file, {"RelatedFileObject": folder, "DeviceObject": volume})
    assert path_of(shared, file) == "\\Device\\HarddiskVolume2\\Users\\minint\\a.txt"
    whole = image.add_file("")
    image.write_struct("_FILE_OBJECT", whole, {"DeviceObject": volume})
    assert path_of(shared, whole) == "\\Device\\HarddiskVolume2"
    assert path_of(shared, folder) == "\\Users\\minint"


def test_a_keys_name_is_that_of_its_control_blocks(built):
    key = built.image.add_key(["REGISTRY", "MACHINE", "SOFTWARE", "Größe"])
    assert path_of(built, key) == "\\REGISTRY\\MACHINE\\SOFTWARE\\Größe"


def test_names_in_a_circle_end(shared):
    image = shared.image
    image.enter(shared.named, shared.named)
    assert path_of(shared, shared.object).endswith("\\BaseNamedObjects\\Shared")
    key = image.add_key(["A", "B"])
    block = image.read_field("_CM_KEY_BODY", key, "KeyControlBlock")
    image.write_struct("_CM_KEY_CONTROL_BLOCK", block, {"ParentKcb": block})
    assert path_of(shared, key) == "\\B"
