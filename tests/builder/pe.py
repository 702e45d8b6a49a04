"""PE32+ headers with a CodeView record, as linkers write them, for images that tests put into a guest."""

from __future__ import annotations

import struct
import uuid

DEBUG_DIRECTORY, RSDS, EXPORTS = 0x400, 0x440, 0x600


def pe_headers(
    size: int,
    *,
    pdb: str | None,
    guid: str = "0" * 32,
    age: int = 1,
    timestamp: int = 1,
    exports: dict[str, int] | None = None,
) -> bytes:
    """The first page of an image of `size` bytes; `guid` is 32 hex digits as in a symbol store's folder name."""
    page = bytearray(0x1000)
    page[0:2] = b"MZ"
    struct.pack_into("<I", page, 0x3C, 0xF8)
    struct.pack_into("<4sHHIIIHH", page, 0xF8, b"PE\0\0", 0x8664, 1, timestamp, 0, 0, 240, 0x22)
    optional = 0xF8 + 24
    struct.pack_into("<H", page, optional, 0x20B)
    struct.pack_into("<I", page, optional + 16, 0x1000)
    struct.pack_into("<Q", page, optional + 24, 0x140000000)
    struct.pack_into("<II", page, optional + 56, size, 0x1000)
    struct.pack_into("<I", page, optional + 64, 0x1234)
    struct.pack_into("<I", page, optional + 108, 16)
    struct.pack_into(
        "<8sIIII12xI", page, optional + 240, b".text", size - 0x1000, 0x1000, size - 0x1000, 0x1000, 0x60000020
    )
    if pdb is not None:
        record = b"RSDS" + uuid.UUID(guid).bytes_le + struct.pack("<I", age) + pdb.encode() + b"\0"
        struct.pack_into("<II", page, optional + 112 + 6 * 8, DEBUG_DIRECTORY, 28)
        struct.pack_into("<IIHHIIII", page, DEBUG_DIRECTORY, 0, timestamp, 0, 0, 2, len(record), RSDS, RSDS)
        page[RSDS : RSDS + len(record)] = record
    if exports:
        _put_exports(page, optional, exports)
    return bytes(page)


def _put_exports(page: bytearray, optional: int, exports: dict[str, int]) -> None:
    names = sorted(exports)
    functions, name_table = EXPORTS + 40, EXPORTS + 40 + 4 * len(names)
    ordinals = name_table + 4 * len(names)
    text = ordinals + 2 * len(names)
    for number, name in enumerate(names):
        struct.pack_into("<I", page, functions + 4 * number, exports[name])
        struct.pack_into("<I", page, name_table + 4 * number, text)
        struct.pack_into("<H", page, ordinals + 2 * number, number)
        page[text : text + len(name) + 1] = name.encode() + b"\0"
        text += len(name) + 1
    struct.pack_into("<5I", page, EXPORTS + 20, len(names), len(names), functions, name_table, ordinals)
    struct.pack_into("<II", page, optional + 112, EXPORTS, text - EXPORTS)
