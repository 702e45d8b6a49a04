"""Xpress' plain LZ77: the specification's own examples, another decoder's word, every form of match, and damage."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import FormatError
from coldframe.windows.store.xpress import decompress
from store.xpress import compress

# [MS-XCA] 3.1 and 3.2: examples of plain LZ77
ALPHABET = bytes.fromhex("3f000000") + b"abcdefghijklmnopqrstuvwxyz"
ABC = bytes.fromhex("ffffff1f61626317000fff2601")


def words(size: int, seed: int = 1) -> bytes:
    """`size` bytes that compress well and hold matches of many lengths."""
    chosen = random.Random(seed)
    vocabulary = [bytes(chosen.randbytes(chosen.randint(1, 40))) for _ in range(12)]
    return b"".join(chosen.choice(vocabulary) * chosen.choice([1, 1, 1, 2, 30]) for _ in range(size))[:size]


def test_the_specifications_examples() -> None:
    assert decompress(ALPHABET, 26) == b"abcdefghijklmnopqrstuvwxyz"
    assert decompress(ABC, 300) == b"abc" * 100


def test_the_tests_own_compressor_makes_the_specifications_bytes() -> None:
    assert compress(b"abcdefghijklmnopqrstuvwxyz") == ALPHABET
    assert compress(b"abc" * 100) == ABC


@given(st.lists(st.tuples(st.binary(max_size=20), st.integers(1, 300)), max_size=20), st.sampled_from([4, 9, 25, 1000]))
def test_what_was_compressed_comes_back(parts: list[tuple[bytes, int]], longest: int) -> None:
    data = b"".join(part * count for part, count in parts)
    assert decompress(compress(data, longest=longest), len(data)) == data


@pytest.mark.parametrize("length", [3, 9, 10, 24, 25, 26, 279, 280, 281, 65535, 65536, 70000])
def test_each_form_of_a_matchs_length(length: int) -> None:
    data = b"xyz" * (length // 3 + 2)
    assert decompress(compress(data[: length + 3]), length + 3) == data[: length + 3]


@pytest.mark.parametrize("seed", range(5))
def test_another_decoder_reads_the_same(seed: int) -> None:
    lzxpress = pytest.importorskip("dissect.util.compression.lzxpress", reason="dissect.util is not installed")
    data = words(4096, seed)
    packed = compress(data)
    assert lzxpress.decompress(packed) == data == decompress(packed, len(data))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_such_data_give_a_page_or_one_clear_error(data: bytes) -> None:
    try:
        assert len(decompress(data, 4096)) == 4096
    except FormatError as error:
        assert str(error).startswith("Xpress: ")


@given(st.integers(0, 200), st.integers(0, 255))
def test_damage_is_told_or_gives_a_whole_page(place: int, value: int) -> None:
    packed = bytearray(compress(words(4096)))
    packed[place % len(packed)] ^= value
    try:
        assert len(decompress(bytes(packed), 4096)) == 4096
    except FormatError as error:
        assert str(error).startswith("Xpress: ")


def test_a_match_of_four_billion_bytes_grows_no_larger_than_a_page() -> None:
    endless = bytes.fromhex("ffffff7f") + b"A" + bytes.fromhex("0700") + b"\x0f\xff" + bytes.fromhex("0000ffffffff")
    assert decompress(endless, 4096) == b"A" * 4096
