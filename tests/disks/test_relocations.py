"""Base relocations against images that lld links, and against arithmetic on every kind of them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.errors import FormatError
from coldframe.windows.sources_relocations import PAGE, ImageHeader, Relocations

PREFERRED = {True: 0x180000000, False: 0x10000000}
SIZE = {3: 4, 10: 8, 1: 2, 2: 2}


def image(blocks: list[tuple[int, list[int]]], data: bytes, *, wide: bool = True) -> bytes:
    """A PE file: headers, `.data` at RVA 0x1000 and file offset 0x400, `.reloc` behind it."""
    table = b""
    for page, words in blocks:
        body = struct.pack(f"<{len(words)}H", *words)
        body += bytes(-len(body) % 4)
        table += struct.pack("<II", page, 8 + len(body)) + body
    data = data.ljust(-(-len(data) // 512) * 512, b"\0")
    reloc_rva = 0x1000 + -(-len(data) // PAGE) * PAGE
    optional_size = 240 if wide else 224
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, 0x20B if wide else 0x10B)
    if wide:
        struct.pack_into("<Q", optional, 24, PREFERRED[wide])
    else:
        struct.pack_into("<I", optional, 28, PREFERRED[wide])
    struct.pack_into("<II", optional, 32, PAGE, 512)
    struct.pack_into("<II", optional, 56, reloc_rva + PAGE, 0x400)
    directories = 112 if wide else 96
    struct.pack_into("<I", optional, directories - 4, 16)
    struct.pack_into("<II", optional, directories + 5 * 8, reloc_rva, len(table))
    sections = b"".join(
        struct.pack("<8sIIIIIIHHI", name, size, rva, raw, place, 0, 0, 0, 0, 0xC0000040)
        for name, size, rva, raw, place in (
            (b".data", len(data), 0x1000, len(data), 0x400),
            (b".reloc", len(table), reloc_rva, -(-len(table) // 512) * 512, 0x400 + len(data)),
        )
    )
    nt = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664 if wide else 0x14C, 2, 77, 0, 0, optional_size, 0x22)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    head = head.ljust(0x80, b"\0") + nt + bytes(optional) + sections
    return head.ljust(0x400, b"\0") + data + table.ljust(-(-len(table) // 512) * 512, b"\0")


def relocations(file: bytes, base: int) -> Relocations:
    return Relocations(ImageHeader.parse(file), base, lambda offset, size: file[offset : offset + size])


def relocated(file: bytes, base: int, length: int) -> bytes:
    """The pages from RVA 0x1000 on, each by itself."""
    found = relocations(file, base)
    out = b""
    for rva in range(0x1000, 0x1000 + length, PAGE):
        page = np.frombuffer(found.at_rva(rva, PAGE), np.uint8).copy()
        found.apply(rva, page)
        out += page.tobytes()
    return out


@settings(max_examples=60, deadline=None)
@given(
    wide=st.booleans(),
    delta=st.integers(-0x1000, 0x7FF).map(lambda step: step << 16),
    places=st.lists(st.integers(0, 2 * PAGE // 8 - 2), unique=True, max_size=40),
    shift=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_pages_apart_are_the_whole_relocated_at_once(wide, delta, places, shift, seed):
    """Values that cross from one page into the next among them."""
    kind = 10 if wide else 3
    data = bytearray(np.random.default_rng(seed).integers(0, 256, 2 * PAGE, np.uint8).tobytes())
    offsets = sorted(8 * place + shift for place in places)
    words = {page: [] for page in (0x1000, 0x2000)}
    for offset in offsets:
        words[0x1000 + (offset & ~0xFFF)].append(kind << 12 | offset & 0xFFF)
    file = image([(page, each) for page, each in words.items() if each], bytes(data), wide=wide)
    size, base = SIZE[kind], PREFERRED[wide] + delta
    for offset in offsets:
        value = int.from_bytes(data[offset : offset + size], "little") + delta
        data[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    assert relocated(file, base, 2 * PAGE) == bytes(data)


def test_halves_of_16_bits_are_moved_apart():
    data = struct.pack("<HH", 0x1000, 0x2345).ljust(16, b"\0")
    file = image([(0x1000, [1 << 12 | 0, 2 << 12 | 2, 0, 0])], data, wide=False)
    assert relocated(file, PREFERRED[False] + 0x560000, PAGE)[:4] == struct.pack("<HH", 0x1056, 0x2345)


@pytest.mark.parametrize("wide", [True, False])
def test_the_header_has_the_base_that_the_image_has(wide):
    file = image([], b"x", wide=wide)
    found = relocations(file, PREFERRED[wide] + 0x10000)
    page = np.frombuffer(found.at_rva(0, PAGE), np.uint8).copy()
    found.apply(0, page)
    assert ImageHeader.parse(page.tobytes()).base == PREFERRED[wide] + 0x10000
    assert not ImageHeader.parse(file).difference(ImageHeader.parse(page.tobytes()))


def test_another_image_is_told_from_this_one():
    one, other = image([], b"x"), bytearray(image([], b"x"))
    struct.pack_into("<I", other, 0x88, 78)
    said = ImageHeader.parse(one).difference(ImageHeader.parse(bytes(other)))
    assert said == "its timestamp is 0x4d, that of the image in RAM 0x4e"
    struct.pack_into("<I", other, 0x88, 77)
    other[0x80 + 24 + 240 + 20] ^= 1  # in the section table
    assert ImageHeader.parse(one).difference(ImageHeader.parse(bytes(other))) == "its headers differ from those in RAM"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_images_say_so_or_are_relocated_within_their_page(data):
    file = bytearray(image([(0x1000, [10 << 12 | 8, 10 << 12 | 0xFFC])], bytes(2 * PAGE)))
    for _ in range(4):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at] = data.draw(st.integers(0, 255))
    try:
        found = relocations(bytes(file), PREFERRED[True] + 0x10000)
        page = np.zeros(PAGE, np.uint8)
        found.apply(0x1000, page)
    except FormatError:
        return
    assert page.shape == (PAGE,)
