"""Layouts of kernels whose types are not at hand: NT 5.2 (XP x64, 2003) and 8.0, made out of 7's by their differences.

Sources: the public structures of those kernels (`_MMVAD` with ControlArea, `VadRoot` as a pointer or `_MM_AVL_TABLE` of
`_MM_AVL_NODE`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from builder import kernel
from coldframe.symbols.model import Base, BitField, Field, Pointer, Record, Reference, SymbolFile, Types
from windows.conftest import KERNELS, Built

PAGE = 4096
VOID = Pointer(Base("void", 0, "void", False), 8)
QUAD = Base("unsigned long long", 8, "int", False)


def pointer(name):
    return Pointer(Reference(name, "struct"), 8)


def in_order(name, *members):
    fields, offset = {}, 0
    for member, kind in members:
        fields[member] = Field(member, offset, kind)
        offset += 8
    return Record(name, "struct", offset, fields)


class Patched(Types):
    """Types with some definitions replaced, and some members of others."""

    def __init__(self, base, records, members=()):
        self.base, self.pointer_size = base, base.pointer_size
        self.records = {record.name: record for record in records}
        for owner, member, kind in members:
            record = base.record(owner)
            fields = {**record.fields, member: replace(record.fields[member], type=kind)}
            self.records[owner] = replace(record, fields=fields)

    def find(self, name):
        return self.records.get(name) or self.base.find(name)

    def names(self):
        return self.base.names()


@pytest.fixture
def seven():
    for path in KERNELS:
        if kernel(path).types.has_field("_EPROCESS", "VadRoot.BalancedRoot.RightChild"):
            return kernel(path)
    pytest.skip("no kernel of Windows 7 among the symbols")


def flags():
    bits = {"CommitCharge": (0, 51), "PhysicalMapping": (51, 1), "ImageMap": (52, 1), "NoChange": (54, 1)}
    bits |= {"Protection": (56, 5), "MemCommit": (62, 1), "PrivateMemory": (63, 1)}
    fields = {name: Field(name, 0, BitField(QUAD, *place)) for name, place in bits.items()}
    return (
        Record("_MMVAD_FLAGS", "struct", 8, fields),
        Record("_VAD_U", "union", 8, {"VadFlags": Field("VadFlags", 0, Reference("_MMVAD_FLAGS", "struct"))}),
    )


def nt52(symbol_file):
    common = [("Parent", VOID), ("LeftChild", pointer("_MMVAD")), ("RightChild", pointer("_MMVAD"))]
    common += [("StartingVpn", QUAD), ("EndingVpn", QUAD), ("u", Reference("_VAD_U", "union"))]
    mapped = [("ControlArea", pointer("_CONTROL_AREA")), ("FirstPrototypePte", VOID), ("LastContiguousPte", VOID)]
    records = [*flags(), in_order("_MMVAD_SHORT", *common), in_order("_MMVAD", *common, *mapped)]
    types = Patched(
        symbol_file.types,
        records,
        [("_EPROCESS", "VadRoot", VOID), ("_CONTROL_AREA", "FilePointer", pointer("_FILE_OBJECT"))],
    )
    return SymbolFile(symbol_file.identity, types, symbol_file.symbols, symbol_file.path)


def test_nt_5_2_vads_have_children_of_their_own_and_a_control_area(seven, monkeypatch):
    symbol_file = nt52(seven)
    monkeypatch.setattr("windows.conftest.kernel", lambda path: symbol_file)
    built = Built(KERNELS[0])
    image, types = built.image, symbol_file.types
    file = image.add_file("\\WINDOWS\\system32\\ntdll.dll")
    size = types.size("_CONTROL_AREA")
    area = image.allocate_pool(size + types.size("_SUBSECTION"))
    array, more = image.allocate_pool(8 * 3), image.allocate_pool(8 * 2)
    last = image.allocate_struct("_SUBSECTION", {"ControlArea": area, "SubsectionBase": more, "PtesInSubsection": 2})
    image.write_struct("_CONTROL_AREA", area, {"FilePointer": file, "u.Flags.Image": 1, "u.Flags.File": 1})
    fields = {"ControlArea": area, "SubsectionBase": array, "PtesInSubsection": 3, "NextSubsection": last}
    image.write_struct("_SUBSECTION", area + size, fields)
    short = image.allocate_struct(
        "_MMVAD_SHORT",
        {"StartingVpn": 0x10, "EndingVpn": 0x1F, "u.VadFlags.PrivateMemory": 1, "u.VadFlags.Protection": 4},
    )
    fields = {"StartingVpn": 0x7FF00, "EndingVpn": 0x7FF04, "u.VadFlags.ImageMap": 1, "u.VadFlags.Protection": 7}
    fields |= {"ControlArea": area, "FirstPrototypePte": array, "LastContiguousPte": array + 16, "LeftChild": short}
    root = image.allocate_struct("_MMVAD", fields)
    image.finish()
    image.write_struct("_EPROCESS", built.notepad.address, {"VadRoot": root})
    image.finish = lambda: None
    process = built.open().process(812)
    assert [(v.start, v.end, v.kind, v.protection, v.file) for v in process.vads] == [
        (0x10000, 0x20000, "Private", "PAGE_READWRITE", None),
        (0x7FF0_0000, 0x7FF0_5000, "Image", "PAGE_EXECUTE_WRITECOPY", "\\WINDOWS\\system32\\ntdll.dll"),
    ]
    ptes = [process.vads.find(0x7FF0_0000 + n * PAGE).prototype_pte(0x7FF0_0000 + n * PAGE) for n in range(5)]
    assert ptes == [array, array + 8, array + 16, more, more + 8]


def test_before_vista_a_sessions_control_area_is_larger(seven, monkeypatch):
    """`_LARGE_CONTROL_AREA`: its subsections begin further behind (2003's has 0x68 bytes)."""
    types = Patched(seven.types, [Record("_LARGE_CONTROL_AREA", "struct", 0x68, {})])
    symbol_file = SymbolFile(seven.identity, types, seven.symbols, seven.path)
    monkeypatch.setattr("windows.conftest.kernel", lambda path: symbol_file)
    built = Built(KERNELS[0])
    area = built.image.allocate_pool(0x68 + types.size("_SUBSECTION"))
    for flag, size in (("File", types.size("_CONTROL_AREA")), ("GlobalOnlyPerSession", 0x68), ("Rom", 0x68)):
        if not types.has_field("_CONTROL_AREA", f"u.Flags.{flag}"):  # 8.0 has no Rom
            continue
        built.image.write_struct("_CONTROL_AREA", area, {f"u.Flags.{flag}": 1})
        assert built.open().sections.first_subsection(area) == area + size
        built.image.write_struct("_CONTROL_AREA", area, {f"u.Flags.{flag}": 0})


def eight(symbol_file):
    link = pointer("_MM_AVL_NODE")
    node = in_order("_MM_AVL_NODE", ("u1", QUAD), ("LeftChild", link), ("RightChild", link))
    root = Field("BalancedRoot", 0, Reference("_MM_AVL_NODE", "struct"))
    table = Record("_MM_AVL_TABLE", "struct", 48, {"BalancedRoot": root})
    fields = {
        "VadNode": Field("VadNode", 0, Reference("_MM_AVL_NODE", "struct")),
        "StartingVpn": Field("StartingVpn", 24, Base("unsigned long", 4, "int", False)),
        "EndingVpn": Field("EndingVpn", 28, Base("unsigned long", 4, "int", False)),
        "u": Field("u", 32, Reference("_VAD_U", "union")),
    }
    records = [*flags(), node, table, Record("_MMVAD_SHORT", "struct", 48, fields)]
    return SymbolFile(symbol_file.identity, Patched(symbol_file.types, records), symbol_file.symbols, symbol_file.path)


def test_8_0_vads_hang_by_their_node_in_an_avl_table(seven, monkeypatch):
    symbol_file = eight(seven)
    monkeypatch.setattr("windows.conftest.kernel", lambda path: symbol_file)
    built = Built(KERNELS[0])
    image = built.image
    made = [
        image.allocate_struct(
            "_MMVAD_SHORT", {"StartingVpn": page, "EndingVpn": page + 1, "u.VadFlags.PrivateMemory": 1}
        )
        for page in (0x100, 0x200, 0x300)
    ]
    image.write_struct("_MM_AVL_NODE", made[1], {"LeftChild": made[0], "RightChild": made[2]})
    image.finish()
    root = built.notepad.address + symbol_file.types.offset("_EPROCESS", "VadRoot")
    image.write_struct("_MM_AVL_TABLE", root, {"BalancedRoot.RightChild": made[1]})
    image.finish = lambda: None
    vads = built.open().process(812).vads
    assert [vad.start >> 12 for vad in vads] == [0x100, 0x200, 0x300]
    assert vads.find(0x301_000).address == made[2]


def test_a_kernel_of_before_2018_swizzles_nothing(seven, monkeypatch):
    """A paging-file offset with bit 45 in it, and no variable that tells of a mask."""
    software = seven.types.record("_MMPTE_SOFTWARE")
    fields = {name: field for name, field in software.fields.items() if name != "SwizzleBit"}
    types = Patched(seven.types, [replace(software, fields=fields)])
    symbol_file = SymbolFile(seven.identity, types, seven.symbols, seven.path)
    monkeypatch.setattr("windows.conftest.kernel", lambda path: symbol_file)
    built = Built(KERNELS[0])
    built.image.set_entry(built.notepad.dtb, 0x10000, built.image.paged(3, 0x2000 * PAGE))
    guest = built.open()
    slot = guest.process(812).memory.resolve(0x10000).pagefile
    assert (guest.invalid_pte_mask, slot.number, slot.offset) == (0, 3, 0x2000 * PAGE)
