"""ISF files say the same after reading as in their JSON, and again after being written."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe.errors import FormatError
from coldframe.symbols import PdbIdentity, load_isf, load_pdb, write_isf
from coldframe.symbols.model import Array, Base, BitField, Enum, Function, Pointer, Record, Reference, Type

MINIMAL: dict[str, Any] = {
    "metadata": {
        "format": "6.1.0",
        "windows": {"pdb": {"GUID": "0" * 31 + "A", "age": 2, "database": "x.pdb", "machine_type": 332}},
    },
    "base_types": {
        "pointer": {"kind": "int", "size": 4, "signed": False, "endian": "little"},
        "pointer64": {"kind": "int", "size": 8, "signed": False, "endian": "little"},
        "long": {"kind": "int", "size": 4, "signed": True, "endian": "little"},
    },
    "user_types": {
        "_S": {
            "kind": "struct",
            "size": 12,
            "fields": {
                "next": {"offset": 0, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "_S"}}},
                "far": {
                    "offset": 4,
                    "type": {"kind": "pointer", "base": "pointer64", "subtype": {"kind": "base", "name": "long"}},
                },
            },
        }
    },
    "enums": {"E": {"base": "long", "size": 4, "constants": {"A": -1, "B": 7}}},
    "symbols": {
        "NtClose": {"address": 4096, "linkage_name": "_NtClose@4"},
        "Where": {"address": 8192},
        "Constant": {"address": 0x1_0000_0000},
    },
}


def as_json(kind: Type, pointer_size: int) -> dict[str, object]:
    """A second, independent way back to the JSON of a type."""
    match kind:
        case Base():
            return {"kind": "base", "name": kind.name}
        case Pointer():
            base = {} if kind.size == pointer_size else {"base": f"pointer{kind.size * 8}"}
            return {"kind": "pointer", "subtype": as_json(kind.target, pointer_size)} | base
        case Array():
            return {"kind": "array", "count": kind.count, "subtype": as_json(kind.element, pointer_size)}
        case BitField():
            unit = as_json(kind.base, pointer_size)
            return {"kind": "bitfield", "bit_position": kind.position, "bit_length": kind.length, "type": unit}
        case Function():
            return {"kind": "function"}
        case Reference():
            return {"kind": kind.kind, "name": kind.name}


def test_every_definition_and_symbol_of_real_kernels_is_read(kernels: list[Path]) -> None:
    for path in kernels[-1:]:
        document = json.loads(lzma.decompress(path.read_bytes()))
        loaded = load_isf(path)
        guid, age = path.name.split(".")[0].split("-")
        assert loaded.identity == PdbIdentity("ntkrnlmp.pdb", guid, int(age))
        assert set(loaded.types.names()) == set(document["user_types"]) | set(document["enums"])
        for name, told in document["user_types"].items():
            record = loaded.types.find(name)
            assert isinstance(record, Record)
            assert (record.kind, record.size) == (told["kind"], told["size"])
            fields = {f.name: {"offset": f.offset, "type": as_json(f.type, 8)} for f in record.fields.values()}
            assert fields == told["fields"]
        for name, told in document["enums"].items():
            enum = loaded.types.find(name)
            assert isinstance(enum, Enum)
            assert (enum.base.name, dict(enum.constants)) == (told["base"], told["constants"])
        for name, told in document["symbols"].items():
            assert loaded.symbols.get(name) == told["address"]
            assert loaded.symbols.get(told.get("linkage_name", name)) == told["address"]
        assert len(list(loaded.symbols.items())) == len(document["symbols"])


def test_the_kernels_paths_lead_where_windows_keeps_things(kernels: list[Path]) -> None:
    for path in kernels[::3]:
        types = load_isf(path).types
        assert types.offset("_EPROCESS", "Pcb.DirectoryTableBase") == 0x28
        offset, valid = types.field("_MMPTE", "u.Hard.Valid")
        assert offset == 0
        assert isinstance(valid, BitField)
        assert (valid.position, valid.length) == (0, 1)
        assert types.size("_LIST_ENTRY") == 16


@pytest.mark.parametrize("suffix", [".json", ".json.xz", ".json.gz"])
def test_what_is_written_reads_the_same(
    tmp_path: Path, kernels: list[Path], pdbs: dict[str, Path], suffix: str
) -> None:
    for first in (load_isf(kernels[0]), load_pdb(pdbs["kernel-x86_64"]), load_pdb(pdbs["classes-i686"])):
        write_isf(first, tmp_path / f"x{suffix}")
        second = load_isf(tmp_path / f"x{suffix}")
        assert second.identity == first.identity
        assert second.types.pointer_size == first.types.pointer_size
        names = list(first.types.names())
        assert list(second.types.names()) == names
        assert all(first.types.find(name) == second.types.find(name) for name in names)
        assert {name: first.symbols[name] for name, _ in first.symbols.items()} == dict(second.symbols.items())
    assert list(tmp_path.iterdir()) == [tmp_path / f"x{suffix}"]


def test_32_bit_symbols_have_their_c_name_and_are_found_by_the_linkers_too(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(MINIMAL))
    loaded = load_isf(path)
    assert loaded.types.pointer_size == 4
    assert list(loaded.symbols.items()) == [("NtClose", 4096), ("Where", 8192)]
    assert loaded.symbols.get("NtClose") == loaded.symbols.get("_NtClose@4") == 4096
    assert loaded.types.field("_S", "far") == (4, Pointer(Base("long", 4, "int", True), 8))
    assert loaded.types.enum("E").constants == {"A": -1, "B": 7}


def test_the_kind_of_packing_is_told_by_content(tmp_path: Path) -> None:
    text = json.dumps(MINIMAL).encode()
    for packed in (text, gzip.compress(text), lzma.compress(text)):
        (tmp_path / "x.json").write_bytes(packed)
        assert load_isf(tmp_path / "x.json").identity == PdbIdentity("x.pdb", "0" * 31 + "A", 2)


def test_without_metadata_the_files_place_tells_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "nt.pdb" / f"{'1' * 32}-3.json"
    path.parent.mkdir()
    path.write_text(json.dumps(MINIMAL | {"metadata": {"format": "6.1.0"}}))
    assert load_isf(path).identity == PdbIdentity("nt.pdb", "1" * 32, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"metadata": {}, "user_types": {"a": 3}}',
        b'{"metadata": {}, "symbols": []}',
        b'{"metadata": {}, "enums": {"e": {"base": "long", "size": 4, "constants": {}}}}',
        b'{"metadata": {"windows": {"pdb": {"GUID": "../../etc", "age": 1, "database": "x"}}}}',
        b"\xfd7zXZ\x00 and then nothing",
        lzma.compress(b"{}")[:-9],
        gzip.compress(b"{}")[:-9],
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_file_is_a_format_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"damaged\.json"):
        load_isf(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("struct") | st.just("_S"),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["kind", "name", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_json_of_any_other_shape_is_a_format_error(tmp_path: Path, data: st.DataObject) -> None:
    document = json.loads(json.dumps(MINIMAL))
    at = document
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if isinstance(at[key], dict) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = data.draw(json_values)
        break
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    try:
        loaded = load_isf(path)
    except FormatError:
        return
    for name in loaded.types.names():
        loaded.types.find(name)


def test_volatility3_loads_what_is_written(tmp_path: Path, pdbs: dict[str, Path], kernels: list[Path]) -> None:
    pytest.importorskip("volatility3", reason="needs the extra `volatility`")
    from volatility3.framework import contexts, interfaces
    from volatility3.framework.symbols import intermed

    for number, source in enumerate(
        (load_pdb(pdbs["kernel-x86_64"]), load_pdb(pdbs["classes-i686"]), load_isf(kernels[0]))
    ):
        path = tmp_path / f"{number}.json.xz"
        write_isf(source, path)
        context = contexts.Context()
        table = intermed.IntermediateSymbolTable(
            context, interfaces.configuration.path_join("test", str(number)), f"t{number}", path.as_uri(), validate=True
        )
        for name in source.types.names():
            found = source.types.find(name)
            if isinstance(found, Enum):
                assert table.get_enumeration(name).choices == dict(found.constants)
                continue
            assert found is not None
            template = table.get_type(name)
            assert template.size == found.size
            assert set(template.members) == set(found.fields)
            for field in found.fields.values():
                assert template.relative_child_offset(field.name) == field.offset
        for name, _ in source.symbols.items():
            assert table.get_symbol(name).address == source.symbols[name]
