"""The compressed store, at the offsets of every build: what was stored comes back, and damage is told step by step."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder import kernel, kernel_files
from builder.image import MB, PAGE, pattern
from builder.windows import BuiltProcess, WindowsBuilder
from coldframe.errors import FormatError, SymbolFileNotFoundError, UnreadableMemoryError
from coldframe.paging import AbsentPages, PagefileSlot, State
from coldframe.paging.arrays import CODE
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.windows import Guest
from coldframe.windows.store import CompressedStore
from store.test_xpress import words
from store.writer import BUILDS, DATA_MGR, GLOBALS, KEY_TO_STORE_TREE, PAGES_TREE, Kind, Numbers, Shape, StoreWriter

STORE = 2
AT = 0x1_4000_0000
NEWEST_10 = next(numbers for numbers in BUILDS if numbers.build == 19041)


class Symbols:
    """A symbol store with one kernel's symbols."""

    def __init__(self, symbol_file: SymbolFile) -> None:
        self.symbol_file = symbol_file

    def find(self, identity: PdbIdentity) -> SymbolFile:
        if identity.guid != self.symbol_file.identity.guid:
            raise SymbolFileNotFoundError(f"no symbols for {identity}")
        return self.symbol_file


def types_of_windows_10() -> SymbolFile:
    for path in kernel_files():
        found = kernel(path)
        if found.types.pointer_size == 8 and found.types.has_field("_MMPAGING_FILE", "VirtualStorePagefile"):
            return found
    pytest.skip("no types of a Windows 10 kernel: ../shared/symbols is absent")


class Scene:
    """A guest with a store, and a process whose pages from `AT` on are in it."""

    def __init__(self, numbers: Numbers = NEWEST_10, shape: Shape | None = None, **options) -> None:
        self.symbol_file = types_of_windows_10()
        self.image = WindowsBuilder(self.symbol_file, ram=((0, 16 * MB),), **options)
        self.image.add_idt()
        self.image.set_paging_files([(0, r"\??\C:\pagefile.sys", False), (STORE, "", True)])
        self.owner: BuiltProcess = self.image.add_process("MemCompression", 1480, 4)
        self.notepad: BuiltProcess = self.image.add_process("notepad.exe", 812, 368)
        self.image.add_thread(self.notepad, 1204)
        self.writer = StoreWriter(self.image, numbers, self.owner, STORE, shape or Shape())

    def add(self, page: int, data: bytes, kind: Kind = "compressed") -> int:
        """Store a page and point notepad's next PTE to it; returns its address."""
        address = AT + PAGE * len(self.writer.truth)
        self.writer.add(page, data, kind)
        self.image.set_entry(self.notepad.dtb, address, self.image.paged(STORE, page * PAGE))
        return address

    def open(self, map_page: Callable[[int, bytes], object] | None = None) -> Guest:
        self.writer.finish(map_page)
        self.image.finish()
        return Guest.open(self.image.physical(), Symbols(self.symbol_file), [self.image.registers(self.notepad)])


def filled(numbers: Numbers, shape: Shape | None = None, **options) -> tuple[Scene, dict[int, bytes]]:
    """A store with every kind of record; returns the pages by address."""
    scene = Scene(numbers, shape, **options)
    pages: dict[int, bytes] = {}
    for index in range(24):
        data = (words(PAGE, index), pattern(index), bytes(PAGE), random.Random(index).randbytes(PAGE))[index % 4]
        kinds: list[Kind] = ["compressed", "combined", "raw"]
        pages[scene.add(7 + 977 * index, data, kinds[index % 3])] = data
    return scene, pages


@pytest.mark.parametrize("numbers", BUILDS, ids=lambda numbers: str(numbers.build))
def test_every_build_gives_back_what_was_stored(numbers: Numbers) -> None:
    header = 0 if numbers.header is None else 4
    scene, pages = filled(numbers, Shape(data_header=header))
    memory = scene.open().process(812).memory
    for address, data in pages.items():
        page = memory.resolve(address)
        assert (page.state, page.supplied, page.source) == (State.COMPRESSED, True, "store:3")
        assert memory.read(address, PAGE) == data
    assert memory.read(AT + 100, 2 * PAGE) == b"".join(pages.values())[100 : 100 + 2 * PAGE]


@pytest.mark.parametrize("swizzle", ["none", "windows", "forced"])
def test_however_the_ptes_are_swizzled(swizzle: str) -> None:
    scene, pages = filled(NEWEST_10, swizzle=swizzle)
    memory = scene.open().process(812).memory
    assert [memory.read(address, PAGE) for address in pages] == list(pages.values())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(1, (1 << 28) - 1), min_size=1, max_size=60, unique=True),
    st.builds(
        Shape,
        region_shift=st.integers(10, 14),
        chunk_shift=st.integers(1, 8),
        record_size=st.sampled_from([8, 12, 16, 24]),
        chunk_header=st.sampled_from([0, 0x18, 0x40]),
        leaf=st.integers(2, 12),
        inner=st.integers(2, 6),
        index=st.integers(0, 1023),
        data_header=st.sampled_from([0, 4, 16]),
        gaps=st.booleans(),
    ),
    st.integers(0, 1 << 30),
)
def test_any_store_gives_back_what_was_stored(keys: list[int], shape: Shape, seed: int) -> None:
    scene = Scene(shape=shape, seed=seed)
    kinds: list[Kind] = ["compressed", "raw", "combined"]
    pages = {scene.add(key, pattern(key) if key % 3 else words(PAGE, key), kinds[key % 3]): key for key in keys}
    memory = scene.open().process(812).memory
    for address, key in pages.items():
        assert memory.read(address, PAGE) == scene.writer.truth[key]
        assert memory.resolve(address).source == f"store:{shape.index}"


def test_the_way_is_told_step_by_step() -> None:
    scene = Scene()
    address = scene.add(0x1A3, words(PAGE), "combined")
    page = scene.open().process(812).memory.resolve(address)
    levels = [step.level for step in page.steps]
    assert levels[-4:] == ["PTE", "store key", "store record", "store region"]
    key, record, region = page.steps[-3:]
    assert (key.entry_address, key.value) == (scene.writer.key_root, 0x2000_01A3)
    assert f"key 0x200001a3: store 3 at {scene.writer.store:#x}" == key.says
    assert record.value != 0xFFFF_FFFF
    assert region.entry_address == scene.writer.address_of[0x1A3]
    assert region.says.endswith(f"{region.entry_address:#x} in MemCompression (1480)")


def test_regions_are_read_in_whatever_state_their_pages_are() -> None:
    scene, pages = filled(NEWEST_10)
    image, owner = scene.image, scene.owner
    states = []

    def put(address: int, data: bytes) -> None:
        if not data.strip(b"\0"):
            image.set_entry(owner.dtb, address, image.demand_zero())
        elif len(states) % 2:
            image.set_entry(owner.dtb, address, image.transition(image.allocate_page(data)))
        else:
            image.map(owner.dtb, address, data)
        states.append(data)

    memory = scene.open(put).process(812).memory
    assert [memory.read(address, PAGE) for address in pages] == list(pages.values())


def test_a_region_that_left_ram_is_named() -> None:
    scene = Scene()
    address = scene.add(9, words(PAGE))
    image = scene.image
    guest = scene.open(lambda at, _: image.set_entry(scene.owner.dtb, at, image.paged(0, 0x5000)))
    page = guest.process(812).memory.resolve(address)
    assert (page.readable, page.source) == (False, "")
    assert page.reason.startswith("store: region 0 of store 3, in MemCompression (1480): cannot read 0x1")
    assert "paging file 0" in page.reason
    with pytest.raises(UnreadableMemoryError, match="MemCompression"):
        guest.process(812).memory.read(address, 1)


def test_thousands_of_pages_are_told_and_read_as_each_alone() -> None:
    scene, _ = filled(NEWEST_10)
    guest = scene.open()
    store = CompressedStore(guest)
    keys = [*scene.writer.truth, 5, 0xFFFFFFF]
    random.Random(1).shuffle(keys)
    count = len(keys) + 2
    state = np.full(count, CODE[State.COMPRESSED], np.uint8)
    state[-2:] = CODE[State.PAGEFILE], CODE[State.SUBSECTION]
    offset = np.zeros(count, np.uint64)
    offset[: len(keys)] = np.array(keys, np.uint64) * np.uint64(PAGE)
    nothing = np.zeros(count, np.uint64)
    asked = AbsentPages(state, np.full(count, STORE, np.uint8), offset, nothing, nothing)
    out = np.full((count, PAGE), 0xEE, np.uint8)
    held = [scene.writer.truth.get(key) for key in keys] + [None, None]
    assert store.supplies(asked).tolist() == [data is not None for data in held]
    assert store.read_pages(asked, out).tolist() == [data is not None for data in held]
    assert [bytes(row) for row in out] == [data or b"\xee" * PAGE for data in held]


def test_tables_in_the_store_are_followed() -> None:
    scene = Scene()
    image, notepad = scene.image, scene.notepad
    far = 0x7FF6_0000_0000
    frame = image.map(notepad.dtb, far, b"behind a compressed page table")
    table_at = image.entry_address(notepad.dtb, far, "PDE")
    table = image._get(table_at) & ((1 << 52) - PAGE)
    scene.writer.add(0x77, image.read_physical(table, PAGE))
    image._put(table_at, image.paged(STORE, 0x77 * PAGE))
    image.write_physical(table, b"\xcc" * PAGE)
    memory = scene.open().process(812).memory
    assert memory.resolve(far).physical == frame
    assert memory.read(far, 30) == b"behind a compressed page table"


# Damage


def reason(scene: Scene, damage: Callable[[StoreWriter], None]) -> str:
    """Why the page is not to be had after `damage`."""
    address = scene.add(0x1A3, words(PAGE))
    scene.add(0x1A4, pattern(4))
    guest = scene.open()
    damage(scene.writer)
    page = guest.process(812).memory.resolve(address)
    assert not page.readable
    assert "\n" not in page.reason
    assert page.reason.startswith("store: ")
    return page.reason


def u32(at: int, value: int) -> Callable[[StoreWriter], None]:
    return lambda writer: writer.image.write(writer.store + at, struct.pack("<I", value))


def pointer(at: int, value: int) -> Callable[[StoreWriter], None]:
    return lambda writer: writer.image.write(writer.store + at, struct.pack("<Q", value))


def first_record(writer: StoreWriter, *words: int) -> None:
    """Overwrite the record of the first page."""
    number = writer.records[0].number
    chunk, index = divmod(number, 1 << writer.shape.chunk_shift)
    which = chunk.bit_length() - 1
    arrays = writer.image.read(writer.store + DATA_MGR + 0xC0 + 8 * which, 8)
    page = int.from_bytes(
        writer.image.read(int.from_bytes(arrays, "little") + 16 * (chunk - (1 << which)), 8), "little"
    )
    at = page + writer.shape.chunk_header + index * writer.shape.record_size
    writer.image.write(at, struct.pack(f"<{len(words)}I", *words))


DAMAGE: dict[str, tuple[Callable[[StoreWriter], None], str]] = {
    "another layout": (pointer(0x370, 0x1234), "names 0x1234 at +0x370 where it names itself"),
    "no such owner": (pointer(0x19B8, 0xFFFF_9A00_0000_0000), "is no process"),
    "another format": (u32(0x430, 4), "is compressed by format 4, not Xpress"),
    "regions of no size": (u32(0x37C, 0), "has regions of 0x1fff units under 0 bits"),
    "regions too large": (u32(0x378, ALL := 0xFFFF_FFFF), f"has regions of {ALL:#x} units"),
    "a long header": (u32(0x388, 0x1000), "claims 0x1000 bytes before each page's data"),
    "records too small": (u32(DATA_MGR + 0xC0 + 0x110, 4), "has records of 4 bytes"),
    "records too large": (u32(DATA_MGR + 0xC0 + 0x110, ALL), "has records of 4294967295 bytes"),
    "no chunk arrays": (
        lambda writer: writer.image.write(writer.store + DATA_MGR + 0xC0, bytes(8 * 32)),
        "chunk 0x1 of store 3: cannot read 0x0",
    ),
    "no pages tree": (pointer(PAGES_TREE, 0), "store 3's pages tree leads to 0x0, which is no kernel address"),
    "regions nowhere": (pointer(0x1848, 0x10), "region 0 of store 3: cannot read 0x10"),
    "a key that is not there": (
        lambda writer: writer.image.write(writer.pages_root + 16, struct.pack("<I", 3)),
        "store 3 has no record for key 0x200001a3",
    ),
    "a page that is gone": (
        lambda writer: writer.image.write(writer.key_root + 20, struct.pack("<I", 0x0100_0003)),
        "the page of key 0x200001a3 was thrown out of its store",
    ),
    "no such store": (
        lambda writer: writer.image.write(writer.key_root + 20, struct.pack("<I", 4)),
        "there is no store 4",
    ),
    "a leaf without end": (
        lambda writer: writer.image.write(writer.key_root, struct.pack("<HBB", 0xFFFF, 1, 1)),
        "has a node of 65535 entries",
    ),
    "a tree that leads to itself": (
        lambda writer: writer.image.write(writer.key_root, struct.pack("<HBBIQ", 0, 2, 0, 0, writer.key_root)),
        "the key tree is deeper than 8 nodes: a circle",
    ),
    "a tree in user memory": (
        lambda writer: writer.image.write(writer.manager + KEY_TO_STORE_TREE, struct.pack("<Q", 0x7FFE_0000_1000)),
        "the key tree leads to 0x7ffe00001000, which is no kernel address",
    ),
    "a record of itself": (
        lambda writer: first_record(writer, 0xFFFF_FFFF, writer.records[0].number),
        "leads through 64 others: a circle",
    ),
    "a record in no chunk": (lambda writer: first_record(writer, 0xFFFF_FFFF, 5), "record 0x5 lies in no chunk"),
    "a region that is not there": (
        lambda writer: first_record(writer, 40 << 13, 0x100),
        "region 40",
    ),
    "a record past its region": (
        lambda writer: first_record(writer, 0x1FFF, 0x100),
        "claims 0x100 bytes at 0x1fff0, past its region",
    ),
    "too few bytes": (lambda writer: first_record(writer, writer.records[0].first, 7), "Xpress: 7 bytes end after"),
    "data overwritten": (
        lambda writer: writer.image.write(writer.address_of[0x1A3], bytes.fromhex("ffffffff ffff"), writer.owner.dtb),
        "Xpress: a match reaches back 8192 bytes where there are 0",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_told_in_one_line(name: str) -> None:
    damage, told = DAMAGE[name]
    assert told in reason(Scene(shape=Shape(gaps=False)), damage)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 0x1FFF), st.binary(min_size=1, max_size=8)), max_size=12))
def test_any_damage_gives_a_page_or_one_line(damage: list[tuple[int, int, bytes]]) -> None:
    scene = Scene(shape=Shape(leaf=4, inner=3))
    pages = [scene.add(3 + index, words(PAGE, index), "combined") for index in range(12)]
    guest = scene.open()
    writer = scene.writer
    places = [writer.store, writer.key_root, writer.pages_root, writer.manager]
    for place, offset, data in damage:
        at = places[place] if place < len(places) else writer.pages_root - PAGE * (place - 3)
        at += offset % (0x2000 if at == writer.store else 0x200)
        writer.image.write(at, data[: PAGE - (at & 0xFFF)])
    memory = guest.process(812).memory
    for address in pages:
        page = memory.resolve(address)
        assert page.readable or page.reason.startswith("store: ")
        assert not page.readable or len(memory.read(address, PAGE)) == PAGE


@pytest.mark.parametrize("build", [10240, 10586, 22640, 25398, 27000])
def test_a_build_of_which_nothing_is_known_is_named(build: int) -> None:
    scene = Scene(Numbers(build, None, 0x430, 0x1848, 0x19B8, None))
    address = scene.add(1, words(PAGE))
    assert f"this kernel is build {build}; where the store manager keeps things is known of 64-bit builds" in (
        scene.open().process(812).memory.resolve(address).reason
    )


def test_a_kernel_that_compressed_nothing_yet_says_so() -> None:
    scene = Scene()
    address = AT
    scene.image.set_entry(scene.notepad.dtb, address, scene.image.paged(STORE, 5 * PAGE))
    scene.image.code(GLOBALS)
    scene.image.finish()
    guest = Guest.open(scene.image.physical(), Symbols(scene.symbol_file), [scene.image.registers(scene.notepad)])
    assert "nothing was compressed yet" in guest.process(812).memory.resolve(address).reason
    with pytest.raises(FormatError, match="has no key: those have 28 bits"):
        _filled_store().read(PagefileSlot(STORE, 1 << 40))


def _filled_store() -> CompressedStore:
    return CompressedStore(filled(NEWEST_10)[0].open())
