"""The object manager's namespace: directories, links, and what a damaged one must not do."""

from __future__ import annotations

import pytest

from coldframe.errors import NotFoundError


@pytest.fixture
def tree(built):
    image = built.image
    built.root = image.add_directory("\\")
    built.device = image.add_directory("Device", built.root)
    built.deeper = image.add_directory("Harddisk0", built.device)
    image.enter(built.deeper, image.allocate_object("Section", "_SEGMENT", name="DR0"), bucket=36)
    image.enter(built.device, image.allocate_object("Section", "_SEGMENT", name="Null"), bucket=0)
    image.add_symbolic_link("GLOBAL??", "\\Sessions\\0", built.root)
    return built


def paths(guest, *under):
    return [found.path for found in guest.objects.directory(*under)]


def test_the_tree_is_listed_depth_first_each_directory_by_name(tree):
    guest = tree.open()
    listed = list(guest.objects.directory())
    assert [(found.path, found.type) for found in listed] == [
        ("\\Device", "Directory"),
        ("\\Device\\Harddisk0", "Directory"),
        ("\\Device\\Harddisk0\\DR0", "Section"),
        ("\\Device\\Null", "Section"),
        ("\\GLOBAL??", "SymbolicLink"),
    ]
    assert listed[0].address == tree.device
    assert [found.target for found in listed] == [None, None, None, None, "\\Sessions\\0"]


def test_a_path_chooses_what_lies_below_it_case_apart(tree):
    guest = tree.open()
    assert paths(guest, "\\device") == ["\\Device\\Harddisk0", "\\Device\\Harddisk0\\DR0", "\\Device\\Null"]
    assert paths(guest, "\\Device\\Harddisk0\\") == ["\\Device\\Harddisk0\\DR0"]
    assert paths(guest, "\\Device\\Null") == ["\\Device\\Null"]


def test_a_path_that_is_not_there_offers_near_names(tree):
    guest = tree.open()
    with pytest.raises(NotFoundError, match="did you mean Device"):
        paths(guest, "\\Devices")
    with pytest.raises(NotFoundError, match=r"no directory; it leads to \\Sessions\\0"):
        paths(guest, "\\GLOBAL??\\C:")


def test_a_directory_within_itself_and_a_chain_that_bites_its_tail_end(tree):
    image = tree.image
    image.enter(tree.deeper, tree.device)
    image.enter(tree.deeper, tree.root)
    entry = image.enter(tree.device, tree.smss.address, bucket=7)
    image.write_struct("_OBJECT_DIRECTORY_ENTRY", entry, {"ChainLink": entry})
    assert len(paths(tree.open())) == 8


def test_an_entry_that_is_not_in_ram_loses_its_bucket_alone(tree):
    image = tree.image
    image.write_struct("_OBJECT_DIRECTORY", tree.device, {"HashBuckets[9]": 0xFFFFBEEF_00000000})
    guest = tree.open()
    assert "\\Device\\Null" in paths(guest)
    assert any("object directory \\Device" in warning for warning in guest.warnings)


def test_without_a_root_directory_the_error_says_so(built):
    built.image.set_variable("ObpRootDirectoryObject", 0)
    with pytest.raises(NotFoundError, match="ObpRootDirectoryObject"):
        paths(built.open())
