"""Virtual disks in every format: what coldframe reads out of them is what was put in, and what ntfs-3g reads."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from coldframe.disk import FileBlocks, NtfsVolume, open_image, read_pages, volumes
from coldframe.errors import CapabilityError, ColdframeError, FormatError, NotFoundError, UsageError

from . import build

PAGE = 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A raw disk with an MBR, and what its volume's files hold."""
    folder = tmp_path_factory.mktemp("disk")
    held = build.volume(folder / "volume")
    build.partitioned(folder / "disk.raw", folder / "volume")
    return folder / "disk.raw", held


def ntfs(image: Path | str) -> NtfsVolume:
    found = [volume for volume in volumes(open_image(image)) if volume.holds == "NTFS"]
    assert len(found) == 1
    return NtfsVolume(found[0])


def check(image: Path | str, held: dict[str, bytes]) -> None:
    volume = ntfs(image)
    assert volume.label == "coldframe"
    for name, data in held.items():
        file = volume.open(f"\\{name.upper()}")  # names are case apart
        assert file.size == len(data)
        assert file.read(0, len(data)) == data, name
        assert file.read(len(data) - 3, 10) == data[-3:]
        pages(file, data)


def pages(file, data: bytes) -> None:
    """Pages asked for in any order, and some that are not there, come as the file has them."""
    order = np.random.default_rng(1).permutation(len(data) // PAGE + 3)
    offsets = (order * PAGE).astype(np.uint64)
    out = np.full((len(order), PAGE), 0xEE, np.uint8)
    rows = np.arange(len(order))
    done = file.read_pages(offsets, out, rows)
    assert done.tolist() == file.has_pages(offsets).tolist()
    for row in range(len(order)):
        wanted = data[order[row] * PAGE :][:PAGE]
        if len(wanted) == PAGE:
            assert done[row]
        if done[row]:
            assert out[row].tobytes()[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("qcow2", ("-o", "cluster_size=4096")),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
        ("vdi", ()),
        ("vhdx", ()),
        ("vpc", ()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_every_format_gives_the_files_that_were_put_in(made, tmp_path, suffix, words):
    raw, held = made
    image = tmp_path / f"disk.{suffix}"
    build.tool("qemu-img", "convert", "-f", "raw", "-O", suffix, *words, raw, image)
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    check(image, held)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()} == before


def test_backing_files_and_snapshots_are_what_they_were(made, tmp_path):
    """Folder apart, a chain of three, a raw disk at its end; a snapshot shows the disk of its moment."""
    raw, held = made
    (tmp_path / "base").mkdir()
    shutil.copyfile(raw, tmp_path / "base" / "base.raw")
    middle, top = tmp_path / "base" / "middle.qcow2", tmp_path / "top.qcow2"
    build.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", middle)
    build.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base/middle.qcow2", "-F", "qcow2", top)
    build.tool("qemu-img", "snapshot", "-c", "before", top)
    check(top, held)
    where = ntfs(top).open("\\plain.bin").place(0)
    assert where is not None
    build.tool("qemu-io", "-c", f"write -P 0x5a {build.START + where} 4096", top)
    assert ntfs(top).open("\\plain.bin").read(0, PAGE) == b"\x5a" * PAGE
    check(f"{top}@before", held)
    with pytest.raises(NotFoundError, match="did you mean before"):
        open_image(f"{top}@befor")
    (tmp_path / "base" / "base.raw").rename(tmp_path / "gone")
    with pytest.raises(FormatError, match=r"middle\.qcow2 is based on .*base\.raw, which is not there"):
        open_image(top)


def test_a_short_backing_file_reads_as_zeros_behind_its_end(made, tmp_path):
    raw, _ = made
    (tmp_path / "base.raw").write_bytes(raw.read_bytes()[:3000])
    build.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", tmp_path / "a.qcow2", "1M")
    disk = open_image(tmp_path / "a.qcow2")
    assert disk.read(2000, 4000) == raw.read_bytes()[2000:3000] + bytes(3000)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("table", ["mbr", "gpt", "bare"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_volumes_are_found_and_read(tmp_path, table, sector, compressed):
    """MBR, GPT and none; sectors of 512 bytes and of 4 KB; files compressed by NTFS, with holes in them."""
    held = build.volume(tmp_path / "volume", sector=sector, compressed=compressed)
    image = tmp_path / "volume"
    if table != "bare":
        image = build.partitioned(tmp_path / "disk", image, table=table, sector=sector)
    check(image, held)
    (found,) = volumes(open_image(image))
    assert (found.offset, found.size) == ((0, build.SIZE) if table == "bare" else (build.START, build.SIZE))
    assert bool(found.guid) == (table == "gpt")
    if compressed:
        assert ntfs(image).open("\\text.bin").place(0) is None
    for name in held:
        said = build.tool("ntfscat", "-f", tmp_path / "volume", f"/{name}")
        assert said == ntfs(image).open(f"\\{name}").read(0, 1 << 30)


def test_a_sparse_files_holes_are_zeros(made, tmp_path):
    raw, _ = made
    volume = tmp_path / "volume"
    volume.write_bytes(raw.read_bytes()[build.START :])
    number = str(NtfsVolume(volumes(open_image(volume))[0]).find("\\plain.bin"))
    build.tool("ntfstruncate", "-q", "-f", volume, number, "4000000")
    file = ntfs(volume).open("\\plain.bin")
    assert file.size == 4_000_000
    assert file.read(300_000, 3_700_000) == bytes(3_700_000)


def test_a_bitlocker_volume_is_named(made, tmp_path):
    raw, _ = made
    data = bytearray(raw.read_bytes())
    data[build.START + 3 : build.START + 11] = b"-FVE-FS-"
    (tmp_path / "disk").write_bytes(data)
    (found,) = volumes(open_image(tmp_path / "disk"))
    with pytest.raises(FormatError, match="holds BitLocker, not NTFS: its files cannot be read without its key"):
        NtfsVolume(found)


def test_words_that_are_wrong(made, tmp_path):
    raw, _ = made
    with pytest.raises(UsageError, match="expected a virtual disk at nowhere"):
        open_image("nowhere")
    with pytest.raises(UsageError, match="no qcow2 disk"):
        open_image(f"{raw}@snapshot")
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    with pytest.raises(FormatError, match="no partition table and no volume"):
        volumes(open_image(tmp_path / "zeros"))
    volume = ntfs(raw)
    with pytest.raises(NotFoundError, match=r"no file on .* '\\\\nowhere'"):
        volume.open("\\nowhere\\a.txt")


@pytest.mark.parametrize("suffix", ["qcow2", "vmdk", "vdi", "vhdx", "raw"])
def test_damage_costs_one_line_and_no_more_than_it_touches(made, tmp_path, suffix):
    """Any stretch of the image overwritten: an error of ours, or the file as far as it is there; never another."""
    raw, held = made
    image = tmp_path / f"disk.{suffix}"
    build.tool("qemu-img", "convert", "-f", "raw", "-O", suffix, raw, image)
    whole = image.read_bytes()
    known = np.random.default_rng(3)
    seen = set()
    for turn in range(25):
        broken = bytearray(whole)
        for _ in range(3):  # where the structures are, mostly
            at = int(known.integers(0, min(len(whole), 1 << int(known.integers(9, 25)))))
            length = int(known.integers(1, 4096))
            broken[at : at + length] = known.integers(0, 256, len(broken[at : at + length]), np.uint8).tobytes()
        image.write_bytes(broken[: len(whole) // (turn + 2)] if turn < 3 else broken)
        for name in held:
            try:
                ntfs(image).open(f"\\{name}").read(0, 1 << 20)
                seen.add("read")
            except AssertionError:
                seen.add("no volume")
            except ColdframeError as error:
                assert "\n" not in str(error)
                seen.add("said")
    assert seen >= {"said"}


def test_pages_around_a_damaged_place_are_still_read(made):
    class Damaged(FileBlocks):
        def read(self, offset: int, size: int) -> bytes:
            if offset < 10 * PAGE + 7 < offset + size:
                raise FormatError("a bad sector")
            return super().read(offset, size)

    blocks = Damaged(made[0])
    places = np.arange(20, dtype=np.uint64) * PAGE
    out = np.zeros((20, PAGE), np.uint8)
    done = read_pages(blocks, places, out, np.arange(20))
    assert np.flatnonzero(~done).tolist() == [10]
    assert out.tobytes()[: 10 * PAGE] == blocks.read(0, 10 * PAGE)


def test_without_the_extra_one_line_says_what_to_install(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "dissect.volume.disk.disk", None)
    with pytest.raises(CapabilityError, match=r"pip install 'coldframe\[disk\]'"):
        volumes(open_image(made[0]))
