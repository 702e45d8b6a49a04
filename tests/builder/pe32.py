"""PE32 headers of 32-bit images, with a CodeView record and an export directory where they are asked for."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping

DEBUG_DIRECTORY, RSDS, EXPORTS = 0x400, 0x440, 0x500
I386 = 0x14C


def pe32_headers(
    size: int,
    *,
    pdb: str | None,
    guid: str = "0" * 32,
    age: int = 1,
    name: str | None = None,
    exports: Mapping[str, int] | None = None,
) -> bytes:
    """The first page of a 32-bit image of `size` bytes that was mapped; `name` is its export directory's."""
    page = bytearray(0x1000)
    page[0:2] = b"MZ"
    struct.pack_into("<I", page, 0x3C, 0xF8)
    struct.pack_into("<4sHHIIIHH", page, 0xF8, b"PE\0\0", I386, 1, 1, 0, 0, 224, 0x10E)
    optional = 0xF8 + 24
    struct.pack_into("<H", page, optional, 0x10B)
    struct.pack_into("<I", page, optional + 16, 0x1000)
    struct.pack_into("<II", page, optional + 56, size, 0x1000)
    struct.pack_into("<I", page, optional + 64, 0x4321)
    struct.pack_into("<I", page, optional + 92, 16)
    struct.pack_into("<8sIIII12xI", page, optional + 224, b".text", size - 0x1000, 0x1000, 0, 0, 0x60000020)
    if pdb is not None:
        record = b"RSDS" + uuid.UUID(guid).bytes_le + struct.pack("<I", age) + pdb.encode() + b"\0"
        struct.pack_into("<II", page, optional + 96 + 6 * 8, DEBUG_DIRECTORY, 28)
        struct.pack_into("<IIHHIIII", page, DEBUG_DIRECTORY, 0, 1, 0, 0, 2, len(record), RSDS, RSDS)
        page[RSDS : RSDS + len(record)] = record
    if name is not None:
        _put_exports(page, optional + 96, name, dict(exports or {}))
    return bytes(page)


def _put_exports(page: bytearray, directories: int, name: str, exports: dict[str, int]) -> None:
    names = sorted(exports)
    functions = EXPORTS + 40
    name_table = functions + 4 * len(names)
    ordinals = name_table + 4 * len(names)
    text = ordinals + 2 * len(names)
    struct.pack_into("<6I", page, EXPORTS + 12, text, 1, len(names), len(names), functions, name_table)
    struct.pack_into("<I", page, EXPORTS + 36, ordinals)
    page[text : text + len(name) + 1] = name.encode() + b"\0"
    text += len(name) + 1
    for number, export in enumerate(names):
        struct.pack_into("<I", page, functions + 4 * number, exports[export])
        struct.pack_into("<I", page, name_table + 4 * number, text)
        struct.pack_into("<H", page, ordinals + 2 * number, number)
        page[text : text + len(export) + 1] = export.encode() + b"\0"
        text += len(export) + 1
    struct.pack_into("<II", page, directories, EXPORTS, text - EXPORTS)
