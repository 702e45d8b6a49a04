"""Which volume a guest's device is, what the cache has of a file, and pages that move while they are read."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from coldframe.disk import NtfsVolume, open_image, volumes
from coldframe.errors import CapabilityError, FormatError, NotFoundError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory, Run
from coldframe.paging import FORMATS, AddressSpace, Page, PteLayout, Resolver, State
from coldframe.windows.fileobject import VolumeIdentity
from coldframe.windows.sources_files import SectionFile
from coldframe.windows.sources_volumes import GuestVolumes

from . import build

sys.path.insert(0, str(Path(__file__).parents[1] / "paging"))

PAGE = 4096
C = "\\Device\\HarddiskVolume2"


class Namespace:
    """What `GuestVolumes` asks of a guest: the links in its global namespace."""

    def __init__(self, links: dict[str, str]) -> None:
        self._links = links
        self.objects = self
        self.warnings: list[str] = []

    def directory(self, path: str) -> Iterator[SimpleNamespace]:
        assert path == "\\GLOBAL??"
        yield from (SimpleNamespace(name=name, target=target) for name, target in self._links.items())

    def once(self, key, compute):
        return compute()

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[list[Path], list[int]]:
    """Two disks, a volume on each, and the serial numbers."""
    folder = tmp_path_factory.mktemp("two")
    images, serials = [], []
    for number, table in enumerate(("mbr", "gpt")):
        build.volume(folder / "volume")
        with (folder / "volume").open("r+b") as file:  # mkntfs's own number is of the second
            file.seek(0x48)
            file.write(struct.pack("<Q", 0x1122334455667700 + number))
        images.append(build.partitioned(folder / f"{number}.raw", folder / "volume", table=table))
        serials.append(NtfsVolume(volumes(open_image(images[-1]))[0]).serial & 0xFFFFFFFF)
    return images, serials


def found(links: dict[str, str], images: list[Path], serial: int = 0, label: str = ""):
    guest = Namespace(links)
    return GuestVolumes(guest, lambda: [open_image(image) for image in images]).of(VolumeIdentity(1, C, serial, label))


def test_the_volume_is_told_by_its_serial_number_and_label(two):
    images, serials = two
    for image, serial in zip(images, serials, strict=True):
        mounted = found({"C:": C, "D:": "\\Device\\HarddiskVolume3"}, images, serial, "coldframe")
        assert mounted.ntfs.name == f"{image}, partition 1"
        assert mounted.letter == "C:"
        assert f"serial number {serial:08x}, label coldframe" in mounted.evidence
    with pytest.raises(FormatError, match=r"is called .coldframe., the guest.s .* .System.: the disk is another.s"):
        found({}, images, serials[0], "System")
    with pytest.raises(NotFoundError, match="0 volumes of the disks fit"):
        found({}, images, serials[0] ^ 0x10000)


def test_the_volume_is_told_by_its_offset_and_its_guid(two):
    images, _ = two
    storage = "STORAGE#Volume#{5f5e5f5e-0000-0000-0000-000000000000}#%016X#{53f5630d-b6bf-11d0-94f2-00a0c91efb8b}"
    guid = next(volume.guid for volume in volumes(open_image(images[1])))
    assert found({storage % build.START: C}, images[:1]).ntfs.name.startswith(str(images[0]))
    mounted = found({storage % build.START: C, f"Volume{{{guid.upper()}}}": C}, images)
    assert mounted.ntfs.name.startswith(str(images[1]))
    assert f"offset 0x100000, partition GUID {guid}" in mounted.evidence
    with pytest.raises(NotFoundError, match=r"0 volumes of the disks fit .*offset 0x200000"):
        found({storage % (2 * build.START): C}, images)
    with pytest.raises(NotFoundError, match="2 volumes of the disks fit"):
        found({storage % build.START: C}, images)


def test_without_evidence_only_a_single_volume_will_do(two):
    images, _ = two
    assert "the only NTFS volume" in found({}, images[:1]).evidence
    with pytest.raises(NotFoundError, match=r"2 volumes of the disks fit .* \(the only NTFS volume\)"):
        found({}, images)


def test_an_encrypted_volume_is_named(two, tmp_path):
    data = bytearray(two[0][0].read_bytes())
    data[build.START + 3 : build.START + 11] = b"-FVE-FS-"
    (tmp_path / "encrypted.raw").write_bytes(data)
    with pytest.raises(NotFoundError, match="is encrypted by BitLocker"):
        found({}, [tmp_path / "encrypted.raw"], two[1][0])


def test_disks_that_cannot_be_had_are_said_for_each_page(two):
    """Not once the reason, and "no volume" ever after."""

    def refuse():
        raise CapabilityError("QEMU's NBD server is in use")

    guest_volumes = GuestVolumes(Namespace({}), refuse)
    for _ in range(2):
        with pytest.raises(CapabilityError, match="NBD server is in use"):
            guest_volumes.of(VolumeIdentity(1, C, 0, ""))


def test_pages_of_a_file_that_ram_has_go_before_the_disk(two):
    """Offsets that are no multiple of a page, and the end of the file."""
    file = NtfsVolume(volumes(open_image(two[0][0]))[0]).open("\\plain.bin")
    held = bytearray(build.contents()["plain.bin"])
    held[2 * PAGE : 3 * PAGE] = b"\xaa" * PAGE
    section = SectionFile(file, "\\plain.bin", None, 0, SimpleNamespace(page={2: b"\xaa" * PAGE}.get))
    assert section.read_from(PAGE + 512, 2 * PAGE) == (bytes(held[PAGE + 512 : 3 * PAGE + 512]), True)
    assert section.read_from(5 * PAGE, PAGE) == (bytes(held[5 * PAGE : 6 * PAGE]), False)
    assert section.read(len(held) - 5, 50) == bytes(held[-5:]) + bytes(45)


class Moving:
    """A source whose page is brought in, or goes to another slot, while it is read."""

    def __init__(self, moves: list[int]) -> None:
        self.moves = moves
        self.memory = bytearray(8 * PAGE)
        self.asked = 0

    def read_page(self, page: Page) -> bytes:
        assert page.pagefile is not None
        slot = page.pagefile.offset // PAGE
        self.asked += 1
        if self.moves:
            struct.pack_into("<Q", self.memory, 4 * PAGE, self.moves.pop(0))
        return bytes([slot if self.moves or self.asked > 2 else 0xEE]) * PAGE


def guest_with(moves: list[int]) -> tuple[Resolver, AddressSpace, Moving]:
    """One page table: address 0's PTE says paging file 0, slot 1."""
    from scenes import KERNELS, types_of

    layout = PteLayout.from_types(types_of(next(iter(KERNELS))))
    source = Moving(moves)
    for level in range(1, 4):
        struct.pack_into("<Q", source.memory, level * PAGE, (level + 1) * PAGE | 7)
    struct.pack_into("<Q", source.memory, 4 * PAGE, slot(1))
    source.memory[5 * PAGE : 6 * PAGE] = b"\x77" * PAGE
    memory = PhysicalMemory([Run(0, 8 * PAGE, memoryview(source.memory), 0)])
    resolver = Resolver(memory, FORMATS["4-level"], layout, kernel_dtb=PAGE, pages=source)
    return resolver, AddressSpace(resolver, PAGE), source


def slot(number: int) -> int:
    return number << 32 | 4 << 5


def test_a_page_of_a_running_guest_that_moved_is_read_again():
    resolver, space, _ = guest_with([slot(1), slot(2)])
    resolver.runs = True
    resolver.drop_caches()
    assert space.read(0, 16) == b"\2" * 16
    assert space.resolve(0).pagefile.offset == 2 * PAGE


def test_a_page_that_came_in_meanwhile_is_read_from_ram():
    resolver, space, _ = guest_with([slot(1), 5 * PAGE | 7])
    resolver.runs = True
    resolver.drop_caches()
    assert space.read(0, 16) == b"\x77" * 16


def test_a_page_that_moves_for_ever_is_given_up():
    resolver, space, _ = guest_with([slot(2 + turn % 3) for turn in range(1000)])
    resolver.runs = True
    resolver.drop_caches()
    with pytest.raises(UnreadableMemoryError, match="moved 16 times while it was read: pause the guest"):
        space.read(0, 16)


def test_nothing_is_kept_of_a_guest_that_runs():
    resolver, space, source = guest_with([])
    resolver.runs = True
    resolver.drop_caches()
    struct.pack_into("<Q", source.memory, 4 * PAGE, 5 * PAGE | 7)
    assert space.read(0, 1) == b"\x77"
    struct.pack_into("<Q", source.memory, 4 * PAGE, 6 * PAGE | 7)
    assert space.read(0, 1) == b"\0"
    assert space.resolve(0).state is State.VALID
