"""CodeView's numbers: leaves, symbol kinds, simple types and how it writes integers.

The source: https://github.com/microsoft/microsoft-pdb/blob/master/include/cvinfo.h. The names of simple types are those
of Volatility 3's ISF files, so that a type has one name wherever it was read from.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from coldframe.errors import FormatError


class Leaf(IntEnum):
    """Kinds of records in the type stream that the reader knows."""

    MODIFIER = 0x1001
    POINTER = 0x1002
    PROCEDURE = 0x1008
    MEMBER_FUNCTION = 0x1009
    VTABLE_SHAPE = 0x000A
    FIELD_LIST = 0x1203
    BIT_FIELD = 0x1205
    ARRAY = 0x1503
    CLASS = 0x1504
    STRUCTURE = 0x1505
    UNION = 0x1506
    ENUM = 0x1507
    INTERFACE = 0x1519
    # Since Visual Studio 2019: the properties widened to 32 bits, the member count a variable-length number.
    CLASS2 = 0x1608
    STRUCTURE2 = 0x1609
    UNION2 = 0x160A
    INTERFACE2 = 0x160B


class Member(IntEnum):
    """Kinds of entries in a field list."""

    BASE_CLASS = 0x1400
    VIRTUAL_BASE = 0x1401
    INDIRECT_VIRTUAL_BASE = 0x1402
    CONTINUED = 0x1404
    VTABLE_POINTER = 0x1409
    FRIEND_CLASS = 0x140A
    VTABLE_OFFSET = 0x140C
    ENUMERATE = 0x1502
    FRIEND_FUNCTION = 0x150C
    MEMBER = 0x150D
    STATIC = 0x150E
    METHODS = 0x150F
    NESTED_TYPE = 0x1510
    METHOD = 0x1511
    NESTED_TYPE_EX = 0x1512
    MEMBER_MODIFY = 0x1513
    BASE_INTERFACE = 0x151A


class Symbol(IntEnum):
    """Kinds of symbol records that the reader knows."""

    PUBLIC_ST = 0x1009
    LOCAL_DATA = 0x110C
    GLOBAL_DATA = 0x110D
    PUBLIC = 0x110E
    LOCAL_PROCEDURE = 0x110F
    GLOBAL_PROCEDURE = 0x1110
    LOCAL_PROCEDURE_ID = 0x1146
    GLOBAL_PROCEDURE_ID = 0x1147


# Low byte of a type index below 0x1000: name, size, kind, signed.
SIMPLE_TYPES: dict[int, tuple[str, int, str, bool]] = {
    0x00: ("void", 0, "void", True),
    0x03: ("void", 0, "void", True),
    0x08: ("HRESULT", 4, "int", False),
    0x10: ("char", 1, "char", True),
    0x70: ("char", 1, "char", True),
    0x20: ("unsigned char", 1, "char", False),
    0x7C: ("char8", 1, "char", False),
    0x68: ("int8", 1, "int", True),
    0x69: ("uint8", 1, "int", False),
    0x71: ("wchar", 2, "int", True),
    0x7A: ("char16", 2, "int", False),
    0x7B: ("char32", 4, "int", False),
    0x11: ("short", 2, "int", True),
    0x72: ("short", 2, "int", True),
    0x21: ("unsigned short", 2, "int", False),
    0x73: ("unsigned short", 2, "int", False),
    0x12: ("long", 4, "int", True),
    0x22: ("unsigned long", 4, "int", False),
    0x74: ("int", 4, "int", True),
    0x75: ("unsigned int", 4, "int", False),
    0x13: ("long long", 8, "int", True),
    0x76: ("long long", 8, "int", True),
    0x23: ("unsigned long long", 8, "int", False),
    0x77: ("unsigned long long", 8, "int", False),
    0x14: ("int128", 16, "int", True),
    0x78: ("int128", 16, "int", True),
    0x24: ("uint128", 16, "int", False),
    0x79: ("uint128", 16, "int", False),
    0x46: ("f16", 2, "float", True),
    0x40: ("f32", 4, "float", True),
    0x45: ("f32pp", 4, "float", True),
    0x44: ("f48", 6, "float", True),
    0x41: ("double", 8, "float", True),
    0x42: ("f80", 10, "float", True),
    0x43: ("f128", 16, "float", True),
    0x30: ("bool", 1, "bool", False),
    0x31: ("bool16", 2, "bool", False),
    0x32: ("bool32", 4, "bool", False),
    0x33: ("bool64", 8, "bool", False),
}

# Bits 8..11 of a type index below 0x1000: the width of a pointer to the simple type.
SIMPLE_POINTERS = {1: 2, 2: 4, 3: 4, 4: 4, 5: 6, 6: 8, 7: 16}

_NUMBERS: dict[int, tuple[Callable[[bytes, int], tuple[int]], int]] = {
    leaf: (struct.Struct(form).unpack_from, struct.calcsize(form))
    for leaf, form in {
        0x8000: "<b",
        0x8001: "<h",
        0x8002: "<H",
        0x8003: "<i",
        0x8004: "<I",
        0x8009: "<q",
        0x800A: "<Q",
    }.items()
}
_INT128, _UINT128 = 0x8017, 0x8018


def number(data: bytes, at: int) -> tuple[int, int]:
    """The integer that CodeView writes at `at`, and where it ends. Raises `FormatError` for what is no integer."""
    value = data[at] | data[at + 1] << 8
    if value < 0x8000:
        return value, at + 2
    known = _NUMBERS.get(value)
    if known is not None:
        return known[0](data, at + 2)[0], at + 2 + known[1]
    if value in (_INT128, _UINT128) and at + 18 <= len(data):
        return int.from_bytes(data[at + 2 : at + 18], "little", signed=value == _INT128), at + 18
    raise FormatError(f"leaf {value:#x} at {at:#x} where an integer has to be")


def name(data: bytes, at: int, end: int) -> tuple[str, int]:
    """The NUL-terminated name at `at`, and where it ends; it has to end before `end`."""
    stop = data.find(b"\0", at, end)
    if stop < 0:
        raise FormatError(f"the name at {at:#x} does not end before {end:#x}")
    return data[at:stop].decode("utf-8", "surrogateescape"), stop + 1
