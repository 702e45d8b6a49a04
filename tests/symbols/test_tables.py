"""The compiled table answers as a plain list of symbols would, and refuses bytes that are no whole table."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.errors import FormatError, SymbolNotFoundError, TypeNotFoundError
from coldframe.symbols import PdbIdentity, SymbolFile
from coldframe.symbols.build import TableBuilder, customary_rank, undecorated
from coldframe.symbols.model import Base
from coldframe.symbols.tables import TableSymbols, encoded, open_table

IDENTITY = PdbIdentity("x.pdb", "0" * 32, 1)


def table(symbols: list[tuple[str, int]]) -> SymbolFile:
    told = [(encoded(name), rva, b"") for name, rva in symbols]
    return open_table(TableBuilder().build(IDENTITY, 8, told), "x.pdb")


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
symbol_lists = st.lists(st.tuples(names, st.integers(0, 50) | st.integers(0, 0xFFFFFFFF)), max_size=30)


@settings(deadline=None)
@given(symbol_lists, st.lists(st.integers(0, 60) | st.integers(0, 0xFFFFFFFF), max_size=5))
def test_symbols_answer_as_a_plain_list_would(symbols: list[tuple[str, int]], addresses: list[int]) -> None:
    found = table(symbols).symbols
    assert set(found.items()) == set(symbols)
    assert [rva for _, rva in found.items()] == sorted(rva for _, rva in set(symbols))
    for name, _ in symbols:
        assert found.get(name) == next(rva for other, rva in symbols if other == name)
    for address in (*addresses, *(rva for _, rva in symbols)):
        below = [rva for _, rva in symbols if rva <= address]
        nearest = found.nearest(address)
        if not below:
            assert nearest is None
            continue
        assert nearest is not None
        sharing = [name for name, rva in symbols if rva == max(below)]
        assert nearest == (min(sharing, key=customary_rank), address - max(below))


@settings(deadline=None)
@given(symbol_lists, st.randoms())
def test_the_order_in_the_file_decides_nothing_about_the_nearest_name(
    symbols: list[tuple[str, int]], random: object
) -> None:
    shuffled = list(symbols)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert list(table(symbols).symbols.items()) == list(table(shuffled).symbols.items())


@pytest.mark.parametrize(
    ("customary", "others"),
    [
        ("NtWriteFile", ["ZwWriteFile"]),
        ("RtlFreeHeap", ["_RtlFreeHeap", "__RtlFreeHeap", "?RtlFreeHeap@@YAXXZ", "$$0"]),
        ("memcpy", ["memmove", "_memcpy"]),
        ("KiInterruptThunk", ["$$10", "__imp_KiInterruptThunk", "\x7fKi_NULL_THUNK_DATA"]),
        ("ns::Left::f", ["?f@Left@ns@@UEAAHXZ"]),
        ("SmFree", ["?SmFreeWrapper@@YAXPEAX0@Z", "??_C@_00CNPNBAHC@?$AA@", ".data"]),
    ],
)
def test_of_names_that_share_an_address_the_customary_one_is_given(customary: str, others: list[str]) -> None:
    symbols = table([(name, 16) for name in (*others, customary)]).symbols
    assert symbols.nearest(20) == (customary, 4)
    assert isinstance(symbols, TableSymbols)
    assert symbols.at(16)[0] == customary
    assert set(symbols.at(16)) == {customary, *others}


def test_a_leading_underscore_may_be_left_out() -> None:
    symbols = table([("_guard_dispatch", 1), ("__both", 2), ("_both", 3)]).symbols
    assert symbols.get("guard_dispatch") == 1
    assert symbols.get("_both") == 3
    assert symbols.get("both") == 3


def test_a_missing_name_is_offered_near_ones() -> None:
    with pytest.raises(SymbolNotFoundError, match="did you mean NtWriteFile"):
        table([("NtWriteFile", 1), ("NtClose", 2)]).symbols["NtWriteFil"]
    with pytest.raises(TypeNotFoundError, match="_EPROCES"):
        table([]).types.record("_EPROCES")


def test_a_path_leads_through_records_or_is_not_there() -> None:
    builder = TableBuilder()
    long = builder.base("long", 4, "int", True)
    builder.define("_IN", "struct", 8, builder.fields([("x", 4, long)]))
    builder.define(
        "_OUT", "struct", 16, builder.fields([("in", 8, builder.reference("_IN", "struct")), ("l", 0, long)])
    )
    types = open_table(builder.build(IDENTITY, 8, []), "x").types
    assert types.field("_OUT", "in.x") == (12, Base("long", 4, "int", True))
    assert types.has_field("_OUT", "in.x")
    for name, path, missing in (
        ("_OUT", "in.y", "'y'"),
        ("_OUT", "l.x", "'x'"),
        ("_NO", "x", "'_NO'"),
        ("_OUT", "", "''"),
    ):
        assert not types.has_field(name, path)
        with pytest.raises(TypeNotFoundError, match=missing):
            types.field(name, path)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_f", "f"),
        ("_f@8", "f"),
        ("@f@8", "f"),
        ("?f@@YAXXZ", "?f@@YAXXZ"),
        ("f", "f"),
        ("_", "_"),
        ("@", "@"),
        ("", ""),
    ],
)
def test_names_of_x86_lose_their_calling_convention(name: str, plain: str) -> None:
    assert undecorated(name.encode()) == plain.encode()


WHOLE = TableBuilder().build(IDENTITY, 8, [(b"NtClose", 16, b""), (b"NtOpen", 32, b"")])


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_table_with_any_byte_changed_is_refused(at: int, change: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[at] ^= change
    with pytest.raises(FormatError):
        open_table(bytes(damaged), "x")


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_table_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        open_table(WHOLE[:size], "x")
