"""What a PDB may hold beyond what the linkers at hand write, and what a hostile one may claim."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coldframe.errors import FormatError
from coldframe.symbols import PdbIdentity, SymbolFile, load_pdb, read_identity
from coldframe.symbols.model import Array, Base, Pointer, Record, Reference
from coldframe.symbols.pdb import compile_pdb_data
from coldframe.symbols.tables import open_table
from symbols import handmade as make

LONG = 0x12


def read(data: bytes) -> SymbolFile:
    return open_table(compile_pdb_data(memoryview(data), "x.pdb", "x.pdb"), "x.pdb")


def record(found: SymbolFile, name: str) -> Record:
    return found.types.record(name)


def test_the_identity_is_the_guid_and_the_age_of_the_debug_information(tmp_path: Path) -> None:
    path = tmp_path / "x.pdb"
    path.write_bytes(make.pdb())
    assert read_identity(path) == load_pdb(path).identity == PdbIdentity("x.pdb", make.GUID_TEXT, make.AGE)


def test_a_stream_may_lie_in_any_blocks() -> None:
    members = [make.member(f"member{i}", LONG, 4 * i) for i in range(400)]
    found = read(make.pdb(make.types(make.field_list(*members), make.structure("_S", 0x1000, 1600))))
    assert [(f.name, f.offset) for f in record(found, "_S").fields.values()] == [
        (f"member{i}", 4 * i) for i in range(400)
    ]


def test_the_new_leaf_of_structures_is_read() -> None:
    new = make.record(0x1609, struct.pack("<IIIIHH", 0, 0x1000, 0, 0, 1, 8) + b"_NEW\0")
    union = make.record(0x160A, struct.pack("<IIHH", 0, 0x1000, 1, 8) + b"_NEWU\0")
    found = read(make.pdb(make.types(make.field_list(make.member("a", LONG, 4)), new, union)))
    assert record(found, "_NEW") == Record("_NEW", "struct", 8, record(found, "_NEW").fields)
    assert record(found, "_NEW").fields["a"].offset == 4
    assert record(found, "_NEWU").kind == "union"


def test_a_field_list_may_go_on_in_another() -> None:
    first = make.field_list(make.member("a", LONG, 0), struct.pack("<HHI", 0x1404, 0, 0x1000))
    last = make.field_list(make.member("b", LONG, 4))
    found = read(make.pdb(make.types(last, first, make.structure("_S", 0x1001, 8))))
    assert list(record(found, "_S").fields) == ["a", "b"]


def test_a_forward_reference_means_the_definition() -> None:
    forward = make.structure("_S", 0, 0, properties=0x80)
    array = make.record(0x1503, struct.pack("<IIH", 0x1000, 0x23, 24) + b"\0")
    fields = make.field_list(make.member("s", 0x1001, 0))
    whole = make.structure("_S", 0x1002, 8)
    found = read(make.pdb(make.types(forward, array, fields, make.structure("_T", 0x1002, 24), whole)))
    assert record(found, "_T").fields["s"].type == Array(Reference("_S", "struct"), 3)


def test_unnamed_types_are_told_apart_by_their_type_index() -> None:
    one, two = (make.structure("<unnamed-tag>", 0x1000, size) for size in (4, 8))
    user = make.field_list(make.member("x", 0x1001, 0), make.member("y", 0x1002, 4))
    found = read(
        make.pdb(
            make.types(make.field_list(make.member("a", LONG, 0)), one, two, user, make.structure("_S", 0x1003, 12))
        )
    )
    assert list(found.types.names()) == ["_S", "__unnamed_1001", "__unnamed_1002"]
    assert found.types.offset("_S", "y.a") == 4
    assert found.types.size("__unnamed_1002") == 8


def test_an_unnamed_forward_reference_is_resolved_by_its_unique_name() -> None:
    forward = make.structure("<unnamed-tag>", 0, 0, properties=0x80, unique=".?AU<unnamed-type-u>@@")
    whole = make.structure("<unnamed-tag>", 0x1001, 4, unique=".?AU<unnamed-type-u>@@")
    fields = make.field_list(make.member("u", 0x1000, 0))
    found = read(make.pdb(make.types(forward, fields, whole, make.structure("_S", 0x1001, 4))))
    assert record(found, "_S").fields["u"].type == Reference("__unnamed_1002", "struct")


def test_of_two_definitions_with_one_name_the_last_counts() -> None:
    found = read(
        make.pdb(make.types(make.field_list(), make.structure("_S", 0x1000, 4), make.structure("_S", 0x1000, 8)))
    )
    assert found.types.size("_S") == 8


def test_types_that_c_has_no_name_for_are_no_obstacle() -> None:
    fields = make.field_list(
        make.member("odd", 0x1000, 0), make.member("simple", 0x00FE, 8), make.member("a", LONG, 16)
    )
    stream = make.types(make.record(0x1234, b"????"), fields, make.structure("_S", 0x1001, 20))
    found = read(make.pdb(stream))
    assert [(f.name, f.offset) for f in record(found, "_S").fields.values()] == [("odd", 0), ("simple", 8), ("a", 16)]


def test_pointers_are_as_wide_as_the_machines() -> None:
    stream = make.types(
        make.field_list(make.member("p", 0x0403, 0), make.member("q", 0x0603, 4)), make.structure("_S", 0x1000, 12)
    )
    found = read(make.pdb(stream, machine=0x14C))
    assert found.types.pointer_size == 4
    void = Base("void", 0, "void", True)
    assert record(found, "_S").fields["p"].type == Pointer(void, 4)
    assert record(found, "_S").fields["q"].type == Pointer(void, 8)


def test_publics_get_the_rva_of_their_section() -> None:
    symbols = make.public("NtClose", 1, 0x10) + make.public("Data", 2, 4) + make.public("Absolute", 3, 5)
    found = read(make.pdb(b"", symbols, [make.section(".text", 0x1000), make.section(".data", 0x5000)]))
    assert list(found.symbols.items()) == [("NtClose", 0x1010), ("Data", 0x5004)]


def test_omap_moves_symbols_and_drops_what_was_removed() -> None:
    symbols = make.public("Moved", 1, 0x10) + make.public("Gone", 1, 0x110) + make.public("Far", 1, 0x208)
    original, now = [make.section(".text", 0x1000)], [make.section("INIT", 0x9000)]
    omap = [(0x1000, 0x9100), (0x1100, 0), (0x1200, 0x9000)]
    found = read(make.pdb(b"", symbols, now, original, omap))
    assert list(found.symbols.items()) == [("Far", 0x9008), ("Moved", 0x9110)]


def test_x86_names_are_the_c_names() -> None:
    names = ["_NtClose@4", "@KefReleaseSpinLock@8", "_Data", "?f@@YAXXZ", "_a@b@4"]
    symbols = b"".join(make.public(name, 1, 16 * number) for number, name in enumerate(names))
    found = read(make.pdb(b"", symbols, [make.section(".text", 0)], machine=0x14C))
    assert [name for name, _ in found.symbols.items()] == [
        "NtClose",
        "KefReleaseSpinLock",
        "Data",
        "?f@@YAXXZ",
        "a@b@4",
    ]
    assert all(found.symbols.get(name) == 16 * number for number, name in enumerate(names))


def test_a_pdb_without_debug_information_has_types_alone() -> None:
    info = struct.pack("<III16s", 20000404, 0, 7, make.GUID)
    found = read(make.msf([None, info, make.types(make.structure("_S", 0, 4)), None]))
    assert found.identity.age == 7
    assert found.types.size("_S") == 4
    assert list(found.symbols.items()) == []
    assert found.symbols.nearest(5) is None


POINTER_TO = [make.record(0x1002, struct.pack("<II", index, 0x1000C)) for index in range(0x1000, 0x1200)]


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (
            make.types(POINTER_TO[0], make.field_list(make.member("p", 0x1000, 0)), make.structure("_S", 0x1001, 8)),
            "deep",
        ),
        (
            make.types(*POINTER_TO[1:], make.field_list(make.member("p", 0x1000, 0)), make.structure("_S", 0x11FF, 8)),
            "deep",
        ),
        (
            make.types(
                make.record(0x1001, struct.pack("<IH", 0x1000, 0)),
                make.record(0x1503, struct.pack("<IIH", 0x1000, 0x23, 8) + b"\0"),
                make.field_list(make.member("a", 0x1001, 0)),
                make.structure("_S", 0x1002, 8),
            ),
            "deep",
        ),
        (
            make.types(make.field_list(struct.pack("<HHI", 0x1404, 0, 0x1000)), make.structure("_S", 0x1000, 8)),
            "continues itself",
        ),
        (make.types(make.structure("_S", 0x1000, 8)), "no field list"),
        (make.types(make.structure("_S", 0x7FFFFFFF, 8)), "type index 0x7fffffff"),
        (
            make.types(make.field_list(make.member("a", 0x2000, 0)), make.structure("_S", 0x1000, 8)),
            "type index 0x2000",
        ),
        (
            make.types(make.field_list(struct.pack("<HH", 0x1777, 0) + bytes(8)), make.structure("_S", 0x1000, 8)),
            "unknown kind",
        ),
        (make.types(make.record(0x1507, struct.pack("<HHII", 0, 0, 0x1000, 0) + b"E\0")), "no number|nested"),
        (make.types(make.record(0x1505, b"\0\0")), "cut off"),
        (make.types(make.record(0x1505, struct.pack("<HHIIIH", 0, 0, 0, 0, 0, 0x8005))), "integer"),
        (make.types(make.record(0x1505, struct.pack("<HHIIIHQ", 0, 0, 0, 0, 0, 0x800A, 1 << 40) + b"_S\0")), "32 bits"),
        (struct.pack("<5I", 20040203, 56, 0x1000, 0x2000, 0xFFFFFFF0).ljust(56, b"\0"), "header"),
        (b"\0" * 10, "header"),
        (make.types(b"\xff\xff\x05\x15"), "record of 65535"),
    ],
)
def test_a_lying_type_stream_is_a_format_error(stream: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        read(make.pdb(stream))


def test_many_structures_over_one_long_field_list_cost_no_more_than_it() -> None:
    many = make.field_list(*(make.member(f"m{i}", LONG, i) for i in range(3000)))
    stream = make.types(many, *(make.structure(f"_S{i}", 0x1000, 8) for i in range(5000)))
    start = time.process_time()
    assert len(record(read(make.pdb(stream)), "_S7").fields) == 3000
    assert time.process_time() - start < 5


def test_lists_that_continue_each_other_cannot_multiply() -> None:
    lists = [make.field_list(*(make.member(f"m{i}", LONG, i) for i in range(50)))]
    for index in range(0x1000, 0x1000 + 800):
        lists.append(make.field_list(make.member("a", LONG, 0), struct.pack("<HHI", 0x1404, 0, index)))
    structures = [make.structure(f"_S{i}", 0x1000 + i, 8) for i in range(800)]
    with pytest.raises(FormatError, match="more members"):
        read(make.pdb(make.types(*lists, *structures)))


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (32, 511, "block size"),
        (32, 1 << 20, "block size"),
        (44, 0, "directory"),
        (44, 1 << 30, "directory"),
        (52, 1 << 30, "block"),
    ],
)
def test_a_lying_superblock_is_a_format_error(at: int, value: int, why: str) -> None:
    data = bytearray(make.pdb())
    struct.pack_into("<I", data, at, value)
    with pytest.raises(FormatError, match=why):
        read(bytes(data))


def test_a_stream_larger_than_the_file_is_refused_before_it_is_read() -> None:
    data = bytearray(make.pdb())
    at = data.index(struct.pack("<II", 11, 0xFFFFFFFF)) + 12
    struct.pack_into("<I", data, at, 0x7FFFFFFF)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="stream 2 of 2147483647"):
            read(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too few"),
        (b"MZ" + bytes(100), "not a PDB"),
        (b"Microsoft C/C++ program database 2.00\r\n\x1aJG\0\0" + bytes(100), "2.00"),
        (b"BSJB" + bytes(100), "portable"),
    ],
)
def test_what_is_no_pdb_is_told_by_what_it_is(data: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        read(data)


def use_everything(found: SymbolFile) -> None:
    for name in list(found.types.names()):
        kind = found.types.find(name)
        if isinstance(kind, Record):
            for field in kind.fields.values():
                assert field.offset >= 0
    for name, rva in found.symbols.items():
        assert found.symbols.get(name) is not None
        nearest = found.symbols.nearest(rva)
        assert nearest is not None
        assert nearest[1] == 0


SMALL = make.pdb(
    make.types(
        make.field_list(make.member("a", LONG, 0), make.member("b", 0x1001, 4)),
        make.record(0x1205, struct.pack("<IBB", 0x22, 3, 5)),
        make.structure("_S", 0x1000, 8),
        make.record(0x1503, struct.pack("<IIH", 0x1002, 0x23, 24) + b"\0"),
        make.field_list(make.member("list", 0x1003, 0), make.member("next", 0x0623, 24)),
        make.structure("_T", 0x1004, 32),
        make.record(0x1203, make.padded(struct.pack("<HHH", 0x1502, 3, 7) + b"Seven\0")),
        make.record(0x1507, struct.pack("<HHII", 1, 0, 0x74, 0x1006) + b"_E\0"),
    ),
    make.public("NtClose", 1, 0x10) + make.public("NtOpen", 1, 0x20),
    [make.section(".text", 0x1000)],
    [make.section(".text", 0x1000)],
    [(0x1000, 0x2000)],
)


@settings(max_examples=600, deadline=10_000)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, len(SMALL)),
)
@example([], len(SMALL))
def test_flipped_bytes_and_cut_off_ends_raise_nothing_but_format_errors(flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(SMALL)
    for at, value in flips:
        data[at] = value
    try:
        use_everything(read(bytes(data)))
        use_everything(read(bytes(data[:cut])))
    except FormatError as error:
        assert "x.pdb" in str(error)


@settings(max_examples=600, deadline=10_000)
@given(st.data())
def test_lying_numbers_raise_nothing_but_format_errors(data: st.DataObject) -> None:
    """Where lengths and type indexes stand: numbers at the edges, and such as are right elsewhere in the file."""
    told = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = 2 * data.draw(st.integers(0, len(told) // 2 - 2))
        if data.draw(st.booleans()):
            struct.pack_into(
                "<H", told, at, data.draw(st.sampled_from([0, 1, 2, 0x7FFF, 0x8000, 0x8004, 0x800A, 0xFFFF]))
            )
        else:
            edges = [0, 1, 0x1000, 0x1002, 0x1003, 0x1006, 0x1008, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, len(told)]
            struct.pack_into("<I", told, at, data.draw(st.sampled_from(edges)))
    try:
        use_everything(read(bytes(told)))
    except FormatError as error:
        assert "x.pdb" in str(error)


@settings(max_examples=40, deadline=10_000)
@given(data=st.data())
def test_a_real_pdb_that_was_damaged_raises_nothing_but_format_errors(
    pdbs: dict[str, Path], data: st.DataObject
) -> None:
    told = bytearray(pdbs["classes-x86_64"].read_bytes())
    for _ in range(data.draw(st.integers(1, 30))):
        told[data.draw(st.integers(0, len(told) - 1))] = data.draw(st.integers(0, 255))
    del told[data.draw(st.integers(len(told) // 2, len(told))) :]
    try:
        use_everything(read(bytes(told)))
    except FormatError as error:
        assert "x.pdb" in str(error)
