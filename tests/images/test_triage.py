"""Triage dumps: blocks by virtual address, drivers and registers, and no physical memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import pattern
from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.images import open_image, open_triage
from coldframe.images.crashheader import FORM64, CrashHeader

STACK, PAGE_AT, BLOCK, DEBUGGER = 0xFFFFF8031A000A10, 0xFFFFF80312345000, 0xFFFFA88488000120, 0xFFFFF80312C00B20
DRIVERS = [("ntoskrnl.exe", 0xFFFFF80312600000, 0x1046000), ("hal.dll", 0xFFFFF80312500000, 0xA000)]


def triage_dump(*, entry=0x90, blocks=((BLOCK, 0x300), (BLOCK + 0x1000, 0x10))) -> bytes:
    known = {"rip": 0xFFFFF80312612345, "rsp": STACK}
    header = CrashHeader(0x1AD000, debugger_block=DEBUGGER, bugcheck=(0xD1, 1, 2, 3, 4), registers=known).pack()
    parts, offset = [], 0x2080

    def put(data: bytes) -> int:
        nonlocal offset
        parts.append(data)
        offset += len(data)
        return offset - len(data)

    stack, page, debugger = put(pattern(1)[:0x500]), put(pattern(2)), put(pattern(3)[:0x360])
    places = [(address, put(pattern(4 + number)[:size]), size) for number, (address, size) in enumerate(blocks)]
    table = put(b"".join(struct.pack("<QII", *place) for place in places))
    names, at = [], offset + entry * len(DRIVERS)
    for name, _, _ in DRIVERS:
        names.append((at, struct.pack("<I", len(name)) + name.encode("utf-16-le") + b"\0\0"))
        at += len(names[-1][1])
    entries = b"".join(
        struct.pack("<I52xQ8xI", place, base, size).ljust(entry, b"\0")
        for (place, _), (_, base, size) in zip(names, DRIVERS, strict=True)
    )
    drivers = put(entries)
    strings = put(b"".join(text for _, text in names))
    triage = struct.pack(
        "<18IQ16xQIIIIII",
        *(0, at, 0, 0x348, 0xF00, 0, 0, 0, 0, 0, stack, 0x500, drivers, len(DRIVERS), strings, 0, 0, 0, STACK),
        *(PAGE_AT, page, 0x1000, debugger, 0x360, table, len(blocks)),
    )
    return FORM64.with_memory(header, 4, (), 0, at) + triage + b"".join(parts)


def opened(tmp_path, data):
    (tmp_path / "mini.dmp").write_bytes(data)
    return open_triage(tmp_path / "mini.dmp")


@pytest.mark.parametrize("entry", [0x88, 0x90, 0xA8])
def test_its_blocks_are_read_by_virtual_address(tmp_path, entry):
    dump = opened(tmp_path, triage_dump(entry=entry))
    assert dump.warnings == []
    assert dump.stack == (STACK, 0x500)
    for address, expected in (
        (STACK, pattern(1)[:0x500]),
        (PAGE_AT, pattern(2)),
        (DEBUGGER, pattern(3)[:0x360]),
        (BLOCK, pattern(4)[:0x300]),
        (BLOCK + 0x1000, pattern(5)[:0x10]),
    ):
        assert dump.blocks.read(address, len(expected)) == expected
        with pytest.raises(UnreadableMemoryError):
            dump.blocks.read(address, len(expected) + 1)
    assert [(driver.name, driver.base, driver.size) for driver in dump.drivers] == DRIVERS
    assert dump.registers["rip"] == 0xFFFFF80312612345
    assert tuple(dump.bugcheck) == (0xD1, 1, 2, 3, 4)


def test_as_an_image_it_is_refused(tmp_path):
    (tmp_path / "mini.dmp").write_bytes(triage_dump())
    with pytest.raises(FormatError, match="triage"):
        open_image(tmp_path / "mini.dmp")


def test_another_file_is_no_triage_dump(tmp_path):
    with pytest.raises(FormatError, match="type 1"):
        opened(tmp_path, FORM64.with_memory(CrashHeader(1).pack(), 1, [(0, 1)], 1, 0x3000) + bytes(4096))
    with pytest.raises(FormatError, match="header"):
        opened(tmp_path, b"PAGEDU64")


def test_blocks_that_overlap_keep_their_first_telling(tmp_path):
    dump = opened(tmp_path, triage_dump(blocks=((BLOCK, 0x300), (BLOCK + 0x200, 0x300))))
    assert dump.blocks.read(BLOCK, 0x500) == pattern(4)[:0x300] + pattern(5)[0x100:0x300]
    assert "more than once" in dump.warnings[0]


@settings(max_examples=150, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 0xC0), st.sampled_from([0, 1, 0xFF, 0x7F, 0x20])), max_size=8),
    tail=st.lists(st.tuples(st.integers(0x2080, 0x4200), st.binary(min_size=1, max_size=8)), max_size=6),
    cut=st.integers(0, 0x4200) | st.none(),
)
def test_any_damage_ends_in_blocks_or_in_one_line(tmp_path_factory, damage, tail, cut):
    data = bytearray(triage_dump())
    for offset, byte in damage:
        data[0x2000 + offset : 0x2002 + offset] = bytes([byte]) * 2
    for offset, junk in tail:
        data[offset : offset + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged.dmp"
    path.write_bytes(bytes(data[:cut]))
    try:
        dump = open_triage(path)
    except FormatError as error:
        assert "\n" not in str(error)
        return
    for run in dump.blocks.runs:
        assert len(dump.blocks.read(run.start, run.size)) == run.size
