"""PTE structures of kernels whose type information is not at hand: 32-bit ones, and 64-bit ones before 2018.

Each row is a bit-field as that kernel's PDB tells it (WRK's `mi386.h` and `miamd64.h`, and public symbols of
Windows 7). Old kernels have no SwizzleBit, have `PageFileLow` at bits 1 to 4, and
keep a prototype PTE's protection elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from coldframe.symbols.model import Base, BitField, Enum, Field, Record, Types

Rows = dict[str, dict[str, tuple[int, int]]]

_CPU = {"Valid": (0, 1), "Owner": (2, 1), "WriteThrough": (3, 1), "CacheDisable": (4, 1), "Accessed": (5, 1)}
_CPU |= {"Dirty": (6, 1), "LargePage": (7, 1), "Global": (8, 1), "CopyOnWrite": (9, 1)}
_SOFT = {"Valid": (0, 1), "PageFileLow": (1, 4), "Protection": (5, 5), "Prototype": (10, 1), "Transition": (11, 1)}
_TRANS = {"Valid": (0, 1), "Write": (1, 1), "Owner": (2, 1), "WriteThrough": (3, 1), "CacheDisable": (4, 1)}
_TRANS |= {"Protection": (5, 5), "Prototype": (10, 1), "Transition": (11, 1)}
_PROTO = {"Valid": (0, 1), "ReadOnly": (8, 1), "Prototype": (10, 1), "Protection": (11, 5)}
_SUBSECT = {"Valid": (0, 1), "Protection": (5, 5), "Prototype": (10, 1)}

LAYOUTS: dict[str, tuple[int, Rows]] = {
    "x64 2003": (
        8,
        {
            "_MMPTE_HARDWARE": _CPU | {"Write": (11, 1), "PageFrameNumber": (12, 28), "NoExecute": (63, 1)},
            "_MMPTE_TRANSITION": _TRANS | {"PageFrameNumber": (12, 28)},
            "_MMPTE_PROTOTYPE": _PROTO | {"ProtoAddress": (16, 48)},
            "_MMPTE_SUBSECTION": _SUBSECT | {"SubsectionAddress": (16, 48)},
            "_MMPTE_SOFTWARE": _SOFT | {"UsedPageTableEntries": (12, 10), "PageFileHigh": (32, 32)},
        },
    ),
    "x64 7 RTM": (
        8,
        {
            "_MMPTE_HARDWARE": _CPU | {"Write": (11, 1), "PageFrameNumber": (12, 36), "NoExecute": (63, 1)},
            "_MMPTE_TRANSITION": _TRANS | {"PageFrameNumber": (12, 36)},
            "_MMPTE_PROTOTYPE": _PROTO | {"ProtoAddress": (16, 48)},
            "_MMPTE_SUBSECTION": _SUBSECT | {"SubsectionAddress": (16, 48)},
            "_MMPTE_SOFTWARE": _SOFT | {"UsedPageTableEntries": (12, 10), "InStore": (22, 1), "PageFileHigh": (32, 32)},
        },
    ),
    "pae 7": (
        8,
        {
            "_MMPTE_HARDWARE": _CPU | {"Write": (11, 1), "PageFrameNumber": (12, 26), "NoExecute": (63, 1)},
            "_MMPTE_TRANSITION": _TRANS | {"PageFrameNumber": (12, 26)},
            "_MMPTE_PROTOTYPE": _PROTO | {"ProtoAddress": (32, 32)},
            "_MMPTE_SUBSECTION": _SUBSECT | {"SubsectionAddress": (32, 32)},
            "_MMPTE_SOFTWARE": _SOFT | {"InStore": (22, 1), "PageFileHigh": (32, 32)},
        },
    ),
    "pae 10": (
        8,
        {
            "_MMPTE_HARDWARE": _CPU | {"Write": (11, 1), "PageFrameNumber": (12, 26), "NoExecute": (63, 1)},
            "_MMPTE_TRANSITION": {"SwizzleBit": (4, 1), "Protection": (5, 5), "Prototype": (10, 1)}
            | {"Transition": (11, 1), "PageFrameNumber": (12, 26)},
            "_MMPTE_PROTOTYPE": {"SwizzleBit": (4, 1), "Protection": (5, 5), "Prototype": (10, 1), "Combined": (11, 1)}
            | {"ProtoAddress": (32, 32)},
            "_MMPTE_SUBSECTION": {"SwizzleBit": (4, 1), "Protection": (5, 5), "Prototype": (10, 1), "ColdPage": (11, 1)}
            | {"SubsectionAddress": (32, 32)},
            "_MMPTE_SOFTWARE": {"SwizzleBit": (4, 1), "Protection": (5, 5), "Prototype": (10, 1), "Transition": (11, 1)}
            | {"PageFileLow": (12, 4), "PageFileHigh": (32, 32)},
        },
    ),
    "x86 XP": (
        4,
        {
            "_MMPTE_HARDWARE": _CPU | {"Writable": (1, 1), "Write": (11, 1), "PageFrameNumber": (12, 20)},
            "_MMPTE_TRANSITION": _TRANS | {"PageFrameNumber": (12, 20)},
            "_MMPTE_PROTOTYPE": {"Valid": (0, 1), "ProtoAddressLow": (1, 7), "ReadOnly": (8, 1), "WhichPool": (9, 1)}
            | {"Prototype": (10, 1), "ProtoAddressHigh": (11, 21)},
            "_MMPTE_SUBSECTION": {"Valid": (0, 1), "SubsectionAddressLow": (1, 4), "Protection": (5, 5)}
            | {"Prototype": (10, 1), "SubsectionAddressHigh": (11, 20), "WhichPool": (31, 1)},
            "_MMPTE_SOFTWARE": _SOFT | {"PageFileHigh": (12, 20)},
        },
    ),
}


class BitFieldTypes(Types):
    """Types made of rows of bit-fields."""

    def __init__(self, entry_size: int, rows: Rows) -> None:
        self.pointer_size = entry_size
        unit = Base("unsigned", entry_size, "int", False)
        self._records = {
            name: Record(
                name,
                "struct",
                entry_size,
                {field: Field(field, 0, BitField(unit, *bits)) for field, bits in fields.items()},
            )
            for name, fields in rows.items()
        }

    def find(self, name: str) -> Record | Enum | None:
        return self._records.get(name)

    def names(self) -> Iterator[str]:
        return iter(self._records)


def bit_field_types(name: str) -> BitFieldTypes:
    """The types of the row of `LAYOUTS` called `name`."""
    return BitFieldTypes(*LAYOUTS[name])
