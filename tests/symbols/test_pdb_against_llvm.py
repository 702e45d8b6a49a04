"""Every symbol, every structure, every field's offset and bit position of a PDB is as llvm-pdbutil tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coldframe.symbols import SymbolFile, load_pdb
from coldframe.symbols.model import Array, Base, BitField, Enum, Function, Pointer, Record, Reference, Type
from symbols import llvm_pdbutil
from symbols.llvm_pdbutil import Leaf

pytestmark = pytest.mark.skipif(shutil.which("llvm-pdbutil") is None, reason="llvm-pdbutil not installed")

PROGRAMS = ["kernel-x86_64", "kernel-i686", "classes-x86_64", "classes-i686"]
RECORDS = ("LF_STRUCTURE", "LF_CLASS", "LF_UNION")
UNNAMED = {"<unnamed-tag>": "__unnamed", "<anonymous-tag>": "__anonymous"}  # as Volatility 3 calls them


MININT = Path(__file__).parents[2] / "build" / "minint" / "19041" / "symbols"


@pytest.fixture(params=[*PROGRAMS, "minint-ntkrnlmp", "minint-notepad", "ntdll"])
def pdb(request: pytest.FixtureRequest) -> Path:
    if request.param.startswith("minint-"):
        path = MININT / f"{request.param.removeprefix('minint-')}.pdb"
        if not path.is_file():
            pytest.skip("minint is not built here: guest/build.py makes its PDBs")
        return path
    if request.param == "ntdll":
        return request.getfixturevalue("ntdll")  # type: ignore[no-any-return]
    return request.getfixturevalue("pdbs")[request.param]  # type: ignore[no-any-return]


def unique(name: str, index: int) -> str:
    scope, colons, last = name.rpartition("::")
    return f"{scope}{colons}{UNNAMED[last]}_{index:x}" if last in UNNAMED else name


def definitions(leaves: dict[int, Leaf], *kinds: str) -> dict[str, Leaf]:
    return {unique(leaf.name, index): leaf for index, leaf in leaves.items() if leaf.kind in kinds and not leaf.forward}


def check_type(leaves: dict[int, Leaf], index: int, found: Type, pointer_size: int) -> None:
    """`found` is what the type with that index is, all the way down to what has a name."""
    if index < 0x1000:
        if index & 0xF00:
            assert isinstance(found, Pointer)
            assert found.size == {0x400: 4, 0x600: 8}[index & 0xF00]
            found = found.target
        assert isinstance(found, Base)
        return
    leaf = leaves[index]
    match leaf.kind:
        case "LF_MODIFIER":
            check_type(leaves, leaf.hexadecimal("referent"), found, pointer_size)
        case "LF_POINTER":
            assert isinstance(found, Pointer)
            if "pointer to member" not in leaf.detail and "ptr" in leaf.detail:
                assert found.size == (8 if "ptr64" in leaf.detail else 4) or "member" in leaf.detail
            check_type(leaves, leaf.hexadecimal("referent"), found.target, pointer_size)
        case "LF_ARRAY":
            assert isinstance(found, Array)
            check_type(leaves, leaf.hexadecimal("element type"), found.element, pointer_size)
        case "LF_BITFIELD":
            assert isinstance(found, BitField)
            assert (found.position, found.length) == (leaf.decimal("bit offset"), leaf.decimal("# bits"))
            check_type(leaves, leaf.hexadecimal("type"), found.base, pointer_size)
        case "LF_STRUCTURE" | "LF_CLASS" | "LF_UNION" | "LF_ENUM":
            assert isinstance(found, Reference)
            assert found.name == unique(leaf.name, index)
            kinds = {"LF_STRUCTURE": "struct", "LF_CLASS": "class", "LF_UNION": "union", "LF_ENUM": "enum"}
            assert found.kind == kinds[leaf.kind] or leaf.forward
        case "LF_PROCEDURE" | "LF_MFUNCTION" | "LF_VTSHAPE":
            assert isinstance(found, Function)
        case _:
            raise AssertionError(leaf)


def test_every_structure_has_the_same_size_and_every_field_the_same_place(pdb: Path) -> None:
    types, leaves = load_pdb(pdb).types, llvm_pdbutil.types(pdb)
    wanted = definitions(leaves, *RECORDS)
    assert wanted
    assert {name for name in types.names() if isinstance(types.find(name), Record)} == set(wanted)
    for name, leaf in wanted.items():
        record = types.record(name)
        assert record.size == leaf.decimal("sizeof"), name
        told = llvm_pdbutil.members(leaves, leaf.hexadecimal("field list"))
        assert {(field.name, field.offset) for field in record.fields.values()} == {(n, o) for n, o, _ in told}, name
        for label, _, index in told:
            check_type(leaves, index, record.fields[label].type, types.pointer_size)


def test_the_elements_of_an_array_fill_it(pdb: Path) -> None:
    types, leaves = load_pdb(pdb).types, llvm_pdbutil.types(pdb)
    checked = 0
    for leaf in definitions(leaves, *RECORDS).values():
        for label, _, index in llvm_pdbutil.members(leaves, leaf.hexadecimal("field list")):
            if index >= 0x1000 and leaves[index].kind == "LF_ARRAY":
                record = types.find(leaf.name)
                if isinstance(record, Record):
                    assert types.size(record.fields[label].type) == leaves[index].decimal("size"), (leaf.name, label)
                    checked += 1
    assert checked or "classes" in pdb.name


def test_every_enum_has_the_same_constants(pdb: Path) -> None:
    types, leaves = load_pdb(pdb).types, llvm_pdbutil.types(pdb)
    wanted = definitions(leaves, "LF_ENUM")
    assert {name for name in types.names() if isinstance(types.find(name), Enum)} == set(wanted)
    for name, leaf in wanted.items():
        enum, bits = types.enum(name), 8 * types.enum(name).base.size
        told = llvm_pdbutil.enumerators(leaves, leaf.hexadecimal("field list"))
        assert {(label, value % (1 << bits)) for label, value in enum.constants.items()} == {
            (label, value % (1 << bits)) for label, value in told
        }
        low = -(1 << bits - 1) if enum.base.signed else 0
        assert all(low <= value < low + (1 << bits) for value in enum.constants.values())


def test_every_symbol_is_found_by_its_name_and_at_its_address(pdb: Path) -> None:
    loaded = load_pdb(pdb)
    told = llvm_pdbutil.symbols(pdb)
    assert told
    by_rva: dict[int, set[str]] = {}
    for name, rva in loaded.symbols.items():
        by_rva.setdefault(rva, set()).add(name)
    addresses: dict[str, set[int]] = {}
    for _, name, rva in told:
        addresses.setdefault(name, set()).add(rva)
    for kind, name, rva in told:
        assert loaded.symbols.get(name) in addresses[name], (kind, name)
        assert rva in by_rva, (kind, name)
        if kind != "S_PUB32" or loaded.types.pointer_size == 8:
            assert name in by_rva[rva], (kind, name)
    assert set(by_rva) == {rva for _, _, rva in told}


def test_the_nearest_symbol_of_every_address_is_the_last_one_that_does_not_lie_above(pdb: Path) -> None:
    symbols: SymbolFile = load_pdb(pdb)
    rvas = sorted({rva for _, _, rva in llvm_pdbutil.symbols(pdb)})
    assert symbols.symbols.nearest(rvas[0] - 1) is None
    for rva, following in zip(rvas, [*rvas[1:], rvas[-1] + 100], strict=True):
        first = symbols.symbols.nearest(rva)
        assert first is not None
        assert first[1] == 0
        assert symbols.symbols.nearest(following - 1) == (first[0], following - 1 - rva)
