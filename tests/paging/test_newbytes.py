"""New bytes, filled in place: the same object, and all that was put in."""

from __future__ import annotations

import random

import pytest

from coldframe.paging.newbytes import new_bytes


@pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 3, (1 << 22) - 1, 1 << 22, (9 << 20) + 5])
def test_what_is_put_in_comes_out_and_is_not_copied(size):
    content = random.Random(size).randbytes(size)
    made = new_bytes(size)
    with made.getbuffer() as out:
        assert len(out) == size
        out[:] = content
    assert made.getvalue() == content
    assert made.getvalue() is made.getvalue()


def test_two_answers_do_not_share_memory():
    first, second = new_bytes(1 << 16), new_bytes(1 << 16)
    for made, byte in ((first, b"1"), (second, b"2")):
        with made.getbuffer() as out:
            out[:] = byte * len(out)
    assert set(first.getvalue()) == set(b"1")
    assert set(second.getvalue()) == set(b"2")
