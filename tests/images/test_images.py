"""Memory images: told by content, read as they say, and refused in one line where they are damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import pattern
from coldframe.errors import ColdframeError, FormatError, UnreadableMemoryError
from coldframe.images import open_image

PAGE = 4096
LAYOUT = ((0, 3), (16, 2), (1 << 20, 1))  # (first page, pages) of RAM: below 1 MB, a hole, above 4 GB


def content() -> dict[int, bytes]:
    return {page: pattern(page) for first, count in LAYOUT for page in range(first, first + count)}


def elf_core(*, segments=None, notes=b"", kind=4, machine=62) -> bytes:
    chosen = [(first * PAGE, b"".join(pattern(p) for p in range(first, first + n))) for first, n in LAYOUT]
    chosen = chosen if segments is None else segments
    count = len(chosen) + 1
    data = bytearray(
        struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    )
    offset = 64 + 56 * count
    data += struct.pack("<II6Q", 4, 0, offset, 0, 0, len(notes), len(notes), 0)
    offset += len(notes)
    for start, part in chosen:
        data += struct.pack("<II6Q", 1, 7, offset, 0, start, len(part), len(part), 0)
        offset += len(part)
    return bytes(data + notes + b"".join(part for _, part in chosen))


def qemu_note(**registers: int) -> bytes:
    general = [registers.get(name, 0) for name in ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"]] + [0] * 8
    general += [registers.get("rip", 0), registers.get("eflags", 2)]
    segments = b"".join(
        struct.pack("<IIIIQ", number, 0xFFFF, 0, 0, registers.get(f"{name}_base", 0))
        for number, name in enumerate(["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt"])
    )
    control = struct.pack("<5Q", *(registers.get(f"cr{number}", 0) for number in range(5)))
    body = struct.pack("<II18Q", 1, 440, *general) + segments + control
    body += struct.pack("<Q", registers.get("k_gs_base", 0))
    return struct.pack("<III8s", 5, len(body), 0, b"QEMU\0") + body


def crash_dump(kind: int, *, bitmap_signature=b"FDMPDUMP", machine=0x8664) -> bytes:
    header = bytearray(0x2000)
    header[:8] = b"PAGEDU64"
    struct.pack_into("<QQQQI", header, 0x10, 0x1AD000, 0, 0xFFFFF80312600000, 0xFFFFF80312600100, machine)
    struct.pack_into("<Q", header, 0x348 + 0xF8, 0xFFFFF80312612345)
    struct.pack_into("<I", header, 0xF98, kind)
    pages = content()
    if kind == 1:
        struct.pack_into("<IIQ", header, 0x88, len(LAYOUT), 0, len(pages))
        for number, run in enumerate(LAYOUT):
            struct.pack_into("<QQ", header, 0x98 + 16 * number, *run)
        return bytes(header) + b"".join(pages.values())
    bits = np.zeros(max(pages) + 1, dtype=np.uint8)
    bits[list(pages)] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    first = 0x2000 + 0x38 + len(bitmap) + 0x123
    second = bytearray(0x38)
    second[:8] = bitmap_signature
    struct.pack_into("<QQQ", second, 0x20, first, len(pages), len(bits))
    return (bytes(header) + bytes(second) + bitmap).ljust(first, b"\0") + b"".join(pages.values())


def opened(tmp_path, data: bytes):
    path = tmp_path / "image"
    path.write_bytes(data)
    return open_image(path)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (elf_core(), "ELF core"),
        (crash_dump(1), "crash dump (complete)"),
        (crash_dump(5), "crash dump (bitmap)"),
        (crash_dump(6, bitmap_signature=b"SDMPDUMP"), "crash dump (live kernel)"),
    ],
    ids=["elf", "full", "bitmap", "live"],
)
def test_each_format_gives_the_same_memory(tmp_path, data, name):
    image = opened(tmp_path, data)
    assert image.format == name
    for page, expected in content().items():
        assert image.physical.read(page * PAGE, PAGE) == expected
    assert image.physical.size == len(content()) * PAGE
    with pytest.raises(UnreadableMemoryError):
        image.physical.read(5 * PAGE, 1)
    assert image.warnings == []


def test_anything_else_is_raw_memory_from_address_0(tmp_path):
    image = opened(tmp_path, pattern(1) + pattern(2) + b"rest")
    assert image.format == "raw"
    assert image.physical.read(PAGE, PAGE) == pattern(2)
    assert image.physical.end == 2 * PAGE
    assert list(image.registers) == []


def test_the_file_is_mapped_and_not_writable(tmp_path):
    image = opened(tmp_path, elf_core())
    assert all(isinstance(run.backing, memoryview) and run.backing.readonly for run in image.physical.runs)
    with pytest.raises(ColdframeError, match="read-only"):
        image.physical.write(0, b"x")


def test_qemus_notes_carry_the_registers_of_each_vcpu(tmp_path):
    first = {
        "rip": 0xFFFFF80312612345,
        "cr0": 0x80050033,
        "cr3": 0x1AD002,
        "cr4": 0x506F8,
        "gs_base": 5,
        "idt_base": 0xFFFFF80311111000,
    }
    image = opened(tmp_path, elf_core(notes=qemu_note(**first) + qemu_note(rip=0x7FF7, k_gs_base=9)))
    one, two = image.registers
    assert {name: one[name] for name in first} == first
    assert (two["rip"], two["k_gs_base"]) == (0x7FF7, 9)


def test_a_crash_dumps_header_tells_the_way_to_the_kernel(tmp_path):
    (registers,) = opened(tmp_path, crash_dump(1)).registers
    assert registers["cr3"] == 0x1AD000
    assert registers["nt_address"] == 0xFFFFF80312600000
    assert registers["rip"] == 0xFFFFF80312612345


def test_a_truncated_file_keeps_what_is_there_and_says_so(tmp_path):
    for data in (elf_core(), crash_dump(1), crash_dump(5)):
        image = opened(tmp_path, data[:-PAGE])
        assert image.physical.size == (len(content()) - 1) * PAGE
        assert "cut off" in image.warnings[0]


def test_memory_told_twice_keeps_its_first_telling(tmp_path):
    pages = [(0, pattern(1) + pattern(2)), (PAGE, pattern(3) + pattern(4))]
    image = opened(tmp_path, elf_core(segments=pages))
    assert [image.physical.read(n * PAGE, PAGE) for n in range(3)] == [pattern(1), pattern(2), pattern(4)]
    assert "more than once" in image.warnings[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"short", "less than a page"),
        (elf_core(kind=2), "no x86 core"),
        (elf_core(machine=183), "no x86 core"),
        (elf_core(segments=[]), "without memory"),
        (b"\x7fELF\x02\x01", "ELF header"),
        (b"PAGEDUMP" + bytes(PAGE), "32-bit"),
        (b"PAGEDU64", "header"),
        (crash_dump(4)[:0x2000], "triage"),
        (crash_dump(1, machine=0xAA64), "0xaa64"),
        (crash_dump(5, bitmap_signature=b"garbage!"), "garbage"),
    ],
)
def test_what_is_damaged_or_not_read_gets_one_line(tmp_path, data, says):
    with pytest.raises(FormatError, match=says) as caught:
        opened(tmp_path, data)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    which=st.sampled_from([elf_core(notes=qemu_note(rip=1)), crash_dump(1)[:0x5000], crash_dump(5)[:0x2400]]),
    damage=st.lists(st.tuples(st.integers(8, 0x2400), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    cut=st.integers(0, 0x5000) | st.none(),
)
def test_any_damage_ends_in_memory_or_in_a_format_error(tmp_path_factory, which, damage, cut):
    data = bytearray(which)
    for offset, junk in damage:
        data[offset : offset + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(data[:cut]))
    try:
        image = open_image(path)
    except FormatError as error:
        assert "\n" not in str(error)
        return
    for run in image.physical.runs:
        assert len(image.physical.read(run.start, min(run.size, PAGE))) == min(run.size, PAGE)
