"""minint's Xpress, coldframe's and dissect's: what one packs the others unpack."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import FormatError
from coldframe.windows.store.xpress import decompress
from store.guest_xpress import GuestXpress, build_library
from store.test_xpress import words
from store.xpress import compress


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> GuestXpress:
    return GuestXpress(build_library(tmp_path_factory.mktemp("xpress")))


@given(st.lists(st.tuples(st.binary(max_size=20), st.integers(1, 300)), max_size=12))
def test_what_the_guest_packs_is_unpacked(guest: GuestXpress, parts: list[tuple[bytes, int]]) -> None:
    data = b"".join(part * count for part, count in parts)[:0x3000]
    packed = guest.compress(data, 0x8000)
    assert packed is not None
    assert decompress(packed, len(data)) == data
    assert guest.decompress(packed, len(data)) == data
    assert guest.decompress(compress(data), len(data)) == data


@pytest.mark.parametrize("seed", range(4))
def test_another_decoder_unpacks_it_too(guest: GuestXpress, seed: int) -> None:
    lzxpress = pytest.importorskip("dissect.util.compression.lzxpress", reason="dissect.util is not installed")
    data = words(4096, seed)
    packed = guest.compress(data)
    assert packed is not None
    assert len(packed) < 4096
    assert lzxpress.decompress(packed) == data


def test_what_does_not_fit_is_not_packed(guest: GuestXpress) -> None:
    assert guest.compress(random.Random(1).randbytes(4096), 0xFF0) is None


@given(st.binary(max_size=200), st.sampled_from([1, 60, 4096]))
def test_damage_is_seen_by_both(guest: GuestXpress, data: bytes, size: int) -> None:
    """Where the kernel's unpacks it, so does coldframe's, to the same bytes; coldframe's cuts what is too long."""
    found = guest.decompress(data, size)
    try:
        own = decompress(data, size)
    except FormatError:
        own = None
    assert found is None or own == found
