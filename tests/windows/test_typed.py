"""Structures in memory, read and written by their types."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import ImageBuilder, kernel
from coldframe.errors import TypeNotFoundError, UnreadableMemoryError, UsageError
from coldframe.symbols.model import Array, Base, BitField, Enum, Field, Pointer, Record, Reference, Types
from coldframe.windows import TypedMemory
from coldframe.windows.typed import filetime, first_field
from windows.conftest import Built, OneKernel

ULONG = Base("unsigned long", 4, "int", False)
LONG = Base("long", 4, "int", True)
CHAR = Base("char", 1, "char", True)
FLOAT = Base("float", 4, "float", True)


def record(name, size, *fields, kind="struct"):
    return Record(name, kind, size, {field.name: field for field in fields})


class FewTypes(Types):
    """Types made for these tests."""

    pointer_size = 8

    def __init__(self):
        known = [
            record(
                "_LIST_ENTRY",
                16,
                Field("Flink", 0, Pointer(Reference("_LIST_ENTRY", "struct"), 8)),
                Field("Blink", 8, Pointer(Reference("_LIST_ENTRY", "struct"), 8)),
            ),
            record("<unnamed-tag>", 4, Field("Deep", 0, ULONG), kind="union"),
            record(
                "_THING",
                0x60,
                Field("Number", 0, LONG),
                Field("Low", 4, BitField(ULONG, 0, 3)),
                Field("High", 4, BitField(ULONG, 3, 29)),
                Field("Colour", 8, Reference("_COLOUR", "enum")),
                Field("Next", 0x10, Pointer(Reference("_THING", "struct"), 8)),
                Field("Void", 0x18, Pointer(Base("void", 0, "void", False), 8)),
                Field("Name", 0x20, Array(CHAR, 8)),
                Field("Links", 0x28, Reference("_LIST_ENTRY", "struct")),
                Field("address", 0x38, ULONG),
                Field("__unnamed_1", 0x3C, Reference("<unnamed-tag>", "union")),
                Field("Ratio", 0x40, FLOAT),
                Field("Table", 0x48, Array(Array(ULONG, 2), 3)),
            ),
            Enum("_COLOUR", ULONG, {"Red": 1, "Green": 2}),
        ]
        self.known = {one.name: one for one in known}

    def find(self, name):
        return self.known.get(name)

    def names(self):
        return iter(self.known)


class Bytes:
    """Memory at address 0x1000, writable; anything else cannot be read."""

    def __init__(self, size=0x1000):
        self.data = bytearray(size)

    def read(self, address, size):
        if not 0x1000 <= address <= address + size <= 0x1000 + len(self.data):
            raise UnreadableMemoryError(address, size, "outside")
        return bytes(self.data[address - 0x1000 :][:size])

    def write(self, address, data):
        self.read(address, len(data))
        self.data[address - 0x1000 : address - 0x1000 + len(data)] = data


@pytest.fixture
def thing():
    return TypedMemory(Bytes(), FewTypes()).struct("_THING", 0x1000)


@given(number=st.integers(-(2**31), 2**31 - 1), low=st.integers(0, 7), high=st.integers(0, 2**29 - 1))
def test_what_is_set_is_read_back_and_neighbours_stay(number, low, high):
    thing = TypedMemory(Bytes(), FewTypes()).struct("_THING", 0x1000)
    thing.Number, thing.Low, thing.High = number, low, high
    assert (thing.Number, thing.Low, thing.High) == (number, low, high)


def test_each_kind_of_field_comes_as_what_it_is(thing):
    thing.Colour = 2
    thing.Next = 0x1100
    thing.Name = b"abc"
    thing.Ratio = 0.5
    thing.Table[2][1] = 77
    assert (thing.Colour, thing.Colour.name, str(thing.Colour)) == (2, "Green", "Green")
    assert thing.Next == 0x1100
    assert thing.Next.dereference().type_name == "_THING"
    assert thing.Next.dereference().address == 0x1100
    assert thing.Name.text == "abc"
    assert bytes(thing.Name.read()) == b"abc\0\0\0\0\0"
    assert thing.Ratio == 0.5
    assert [list(row) for row in thing.Table] == [[0, 0], [0, 0], [0, 77]]
    assert thing.Deep == 0
    thing.Deep = 9
    assert thing.integer("Deep") == 9


def test_a_field_whose_name_is_taken_is_reached_by_brackets(thing):
    thing["address"] = 5
    assert thing.address == 0x1000
    assert thing["address"] == 5
    assert thing.address_of("Links.Blink") == 0x1030


def test_wrong_names_offer_near_ones_and_wrong_uses_say_why(thing):
    with pytest.raises(TypeNotFoundError, match="Number"):
        _ = thing.Numbr
    assert not hasattr(thing, "Numbr")
    with pytest.raises(UsageError, match="void"):
        thing.Void.dereference()
    with pytest.raises(UsageError, match="3 bits"):
        thing.Low = 8
    with pytest.raises(UsageError, match="does not fit"):
        thing.Number = 1 << 40
    with pytest.raises(UsageError, match="bytes"):
        thing.Name = 3
    for wrong in ("5", 1.5, None):
        with pytest.raises(UsageError, match="integer"):
            thing.Number = wrong
        with pytest.raises(UsageError, match="integer"):
            thing.Low = wrong
    with pytest.raises(IndexError):
        _ = thing.Name[8]
    with pytest.raises(UnreadableMemoryError):
        _ = TypedMemory(Bytes(), FewTypes()).struct("_THING", 0x10).Number


def test_lists_are_walked_and_a_broken_link_is_walked_around():
    memory = Bytes()
    typed = TypedMemory(memory, FewTypes())
    head = typed.struct("_LIST_ENTRY", 0x1800)
    things = [typed.struct("_THING", 0x1000 + 0x80 * index) for index in range(6)]
    ring = [0x1800, *(thing.address_of("Links") for thing in things)]
    for index, link in enumerate(ring):
        entry = typed.struct("_LIST_ENTRY", link)
        entry.Flink, entry.Blink = ring[(index + 1) % len(ring)], ring[index - 1]
    assert list(head.entries("_THING", "Links")) == things
    typed.struct("_LIST_ENTRY", ring[3]).Flink = 0x9999_0000
    assert set(head.entries("_THING", "Links")) == set(things)
    typed.struct("_LIST_ENTRY", ring[3]).Flink = ring[2]
    assert set(head.entries("_THING", "Links")) == set(things)
    head.Flink = head.Blink = 0
    assert list(head.entries("_THING", "Links")) == []


def test_a_structure_prints_like_kds_dt(thing):
    thing.Colour = 1
    text = repr(thing)
    assert text.startswith("_THING at 0x1000\n")
    assert "+0x004 Low                      : Bits 0-2 = 0x0" in text
    assert "+0x008 Colour                   : 1 (Red)" in text
    assert "+0x028 Links                    : _LIST_ENTRY" in text


def test_times_are_utc_and_zero_is_none():
    assert filetime(0) is None
    assert filetime(116444736000000000) == datetime(1970, 1, 1, tzinfo=UTC)
    assert filetime((1 << 64) - 1) is None


def test_alternatives_are_tried_in_order_and_all_named_when_none_is_there():
    types = FewTypes()
    assert first_field(types, "_THING", "Missing", "Number", "Low") == "Number"
    with pytest.raises(TypeNotFoundError, match="Missing or Gone"):
        first_field(types, "_THING", "Missing", "Gone")


def test_a_fast_reference_loses_as_many_bits_as_its_type_says(kernel_path):
    if kernel_path is None:
        pytest.skip("no kernel types")
    image = ImageBuilder(kernel(kernel_path).types)
    address = image.allocate_struct("_EX_FAST_REF", {"Value": 0xFFFF9A0012345670 | 0xF})
    typed = TypedMemory(_Image(image), image.types)
    assert typed.struct("_EX_FAST_REF", address).reference == 0xFFFF9A0012345670


class _Image:
    def __init__(self, image):
        self.image = image

    def read(self, address, size):
        return self.image.read(address, size)


def test_a_string_whose_length_lies_is_bounded(newest):
    built = Built(newest)
    image = built.image
    at = image.allocate_struct("_UNICODE_STRING", {"Length": 0xFFFF, "Buffer": 0x1234})
    guest = built.open()
    with pytest.raises(UnreadableMemoryError):
        _ = guest.struct("_UNICODE_STRING", at).text
    image.write_unicode_string(at, "Grüße €")
    assert guest.struct("_UNICODE_STRING", at).text == "Grüße €"
    with pytest.raises(UsageError):
        _ = guest.struct("_LIST_ENTRY", at).text


def test_live_memory_is_written_through_the_types(newest):
    built = Built(newest)
    guest = built.open()
    eprocess = guest.process(812).eprocess
    eprocess["UniqueProcessId"] = 900
    assert built.image.read_field("_EPROCESS", eprocess.address, "UniqueProcessId") == 900
    assert isinstance(built.store, OneKernel)
