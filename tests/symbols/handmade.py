"""PDBs put together by hand, for what no linker at hand writes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

GUID = bytes(range(16))
GUID_TEXT = "03020100050407060809" + "0A0B0C0D0E0F"
AGE = 3


def msf(streams: Sequence[bytes | None], block_size: int = 512) -> bytes:
    """A file with these streams; blocks are handed out backwards, so that no stream lies in one piece."""
    counts = [-(-len(stream or b"") // block_size) for stream in streams]
    directory_size = 4 + 4 * len(streams) + 4 * sum(counts)
    directory_blocks = -(-directory_size // block_size)
    map_blocks = -(-4 * directory_blocks // block_size)
    total = 3 + map_blocks + directory_blocks + sum(counts)
    blocks = [bytes(block_size)] * total
    free = iter(range(total - 1, 2 + map_blocks + directory_blocks, -1))
    numbers = []
    for stream, count in zip(streams, counts, strict=True):
        for part in range(count):
            number = next(free)
            numbers.append(number)
            assert stream is not None
            blocks[number] = stream[part * block_size : (part + 1) * block_size].ljust(block_size, b"\0")
    sizes = [0xFFFFFFFF if stream is None else len(stream) for stream in streams]
    directory = struct.pack(f"<{1 + len(sizes) + len(numbers)}I", len(streams), *sizes, *numbers)
    for part in range(directory_blocks):
        blocks[3 + map_blocks + part] = directory[part * block_size : (part + 1) * block_size].ljust(block_size, b"\0")
    listed = struct.pack(f"<{directory_blocks}I", *range(3 + map_blocks, 3 + map_blocks + directory_blocks))
    for part in range(map_blocks):
        blocks[3 + part] = listed[part * block_size : (part + 1) * block_size].ljust(block_size, b"\0")
    magic = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
    superblock = struct.pack("<32s6I", magic, block_size, 1, total, directory_size, 0, 3)
    blocks[0] = superblock.ljust(block_size, b"\0")
    return b"".join(blocks)


def record(kind: int, content: bytes) -> bytes:
    content += bytes((0xF0 | left) for left in range(-(len(content) + 4) % 4, 0, -1))
    return struct.pack("<HH", len(content) + 2, kind) + content


def types(*records: bytes) -> bytes:
    """A type stream; the first record has the index 0x1000."""
    body = b"".join(records)
    header = struct.pack("<5I", 20040203, 56, 0x1000, 0x1000 + len(records), len(body))
    return header.ljust(56, b"\0") + body


def member(name: str, kind: int, offset: int) -> bytes:
    return padded(struct.pack("<HHIH", 0x150D, 3, kind, offset) + name.encode() + b"\0")


def padded(entry: bytes) -> bytes:
    return entry + bytes((0xF0 | left) for left in range(-len(entry) % 4, 0, -1))


def field_list(*members: bytes) -> bytes:
    return record(0x1203, b"".join(members))


def structure(name: str, fields: int, size: int, properties: int = 0, unique: str = "") -> bytes:
    names = name.encode() + b"\0" + (unique.encode() + b"\0" if unique else b"")
    if unique:
        properties |= 0x200
    return record(0x1505, struct.pack("<HHIIIH", 0, properties, fields, 0, 0, size) + names)


def public(name: str, section: int, offset: int) -> bytes:
    return record(0x110E, struct.pack("<IIH", 2, offset, section) + name.encode() + b"\0")


def section(name: str, rva: int) -> bytes:
    return struct.pack("<8sIII", name.encode(), 0x1000, rva, 0x1000).ljust(40, b"\0")


def pdb(
    type_stream: bytes = b"",
    symbols: bytes = b"",
    sections: Sequence[bytes] = (),
    original: Sequence[bytes] = (),
    omap: Sequence[tuple[int, int]] = (),
    *,
    machine: int = 0x8664,
    procedures: Sequence[tuple[str, int]] = (),
    filling: int = 0,
) -> bytes:
    """A PDB with those streams; streams 5 to 10 are symbols, sections, original sections, OMAP, a module, `filling`."""
    info = struct.pack("<III16s", 20000404, 0, 1, GUID)
    places = [0xFFFF] * 11
    places[5] = 6 if sections else 0xFFFF
    places[10] = 7 if original else 0xFFFF
    places[4] = 8 if omap else 0xFFFF
    debug_header = struct.pack("<11H", *places)
    body = bytearray(b"\4\0\0\0")
    references = []
    for name, offset in procedures:
        references.append(record(0x1125, struct.pack("<IIH", 0, len(body), 1) + name.encode() + b"\0"))
        content = struct.pack("<7IIHB", 0, 0, 0, 16, 0, 16, 0, offset, 1, 0) + name.encode() + b"\0"
        body += record(0x1110, content)
    module = struct.pack("<34xHI24x", 9, len(body)) + b"a.obj\0a.obj\0" if procedures else b""
    dbi = struct.pack(
        "<iIIHHHHHHiiiiiIiiHHI",
        *(-1, 19990903, AGE, 0xFFFF, 0, 0xFFFF, 0, 5, 0),
        *(len(module), 0, 0, 0, 0, 0, len(debug_header), 0, 0, machine, 0),
    )
    moved = b"".join(struct.pack("<II", *pair) for pair in omap)
    streams = [None, info, type_stream, dbi + module + debug_header, b"", symbols + b"".join(references)]
    streams += [b"".join(sections), b"".join(original), moved, bytes(body), bytes(filling)]
    return msf(streams, 4096 if len(type_stream) > 1 << 20 else 512)
