"""Physical memory: sparse runs of buffers and sources read as one, holes said exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import CapabilityError, UnreadableMemoryError
from coldframe.memory import PhysicalMemory, Run

SPACE = 96


class Bytes:
    """A source over bytes, with a hole of its own at `broken`."""

    def __init__(self, data: bytes, broken: int | None = None) -> None:
        self.data = bytearray(data)
        self.broken = broken

    def read(self, offset: int, size: int) -> bytes:
        if self.broken is not None and offset <= self.broken < offset + size:
            raise UnreadableMemoryError(self.broken, 1, "broken")
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


@st.composite
def memories(draw):
    """A memory of a few runs below SPACE, and what is at each address (None in a hole)."""
    cuts = sorted(draw(st.sets(st.integers(0, SPACE), min_size=2, max_size=9)))
    truth: list[int | None] = [None] * (SPACE + 16)
    runs = []
    for start, end in itertools.pairwise(cuts):
        if not draw(st.booleans()):
            continue
        offset = draw(st.integers(0, 5))
        data = bytes((address * 37 + 11) & 0xFF for address in range(start, end))
        held = b"\xee" * offset + data + b"\xdd"
        backing = memoryview(bytearray(held)) if draw(st.booleans()) else Bytes(held)
        runs.append(Run(start, end - start, backing, offset))
        truth[start:end] = list(data)
    return PhysicalMemory(runs), truth


@given(memories(), st.integers(0, SPACE), st.integers(0, 15))
def test_a_read_is_the_bytes_or_says_where_the_hole_is(built, address, size):
    memory, truth = built
    wanted = truth[address : address + size]
    if None not in wanted:
        assert memory.read(address, size) == bytes(wanted)
        assert memory.view(address, size).tobytes() == bytes(wanted)
        return
    with pytest.raises(UnreadableMemoryError) as caught:
        memory.read(address, size)
    hole = caught.value
    assert hole.address == address + wanted.index(None)
    assert hole.size > 0
    assert all(byte is None for byte in truth[hole.address : hole.address + hole.size])


@given(memories(), st.integers(0, SPACE))
def test_words_are_the_bytes_whatever_was_read_before(built, first):
    memory, truth = built
    for address in [first, *range(SPACE)]:
        for width, read in ((8, memory.u64), (4, memory.u32)):
            wanted = truth[address : address + width]
            if None in wanted:
                with pytest.raises(UnreadableMemoryError):
                    read(address)
            else:
                assert read(address) == int.from_bytes(bytes(wanted), "little")
        assert (address in memory) == (truth[address] is not None)


anywhere = st.integers(0, SPACE) | st.sampled_from([2**64 - 1, 2**64 - 8, 2**63])


@given(memories(), st.lists(anywhere, max_size=20), st.integers(1, 9))
def test_reading_many_is_reading_each(built, addresses, size):
    memory, _ = built
    rows, readable = memory.read_many(np.array(addresses, dtype=np.uint64), size)
    for address, row, fine in zip(addresses, rows, readable, strict=True):
        try:
            expected = memory.read(address, size)
        except UnreadableMemoryError:
            assert not fine
            assert not row.any()
        else:
            assert fine
            assert row.tobytes() == expected


@given(memories(), st.integers(0, SPACE), st.binary(max_size=12))
def test_a_write_is_all_or_nothing(built, address, data):
    memory, truth = built
    before = [memory.read(run.start, run.size) for run in memory.runs]
    if None in truth[address : address + len(data)]:
        with pytest.raises(UnreadableMemoryError):
            memory.write(address, data)
        assert [memory.read(run.start, run.size) for run in memory.runs] == before
    else:
        memory.write(address, data)
        assert memory.read(address, len(data)) == data


def test_read_only_memory_says_so_before_anything_is_written():
    writable, fixed = bytearray(8), bytes(8)
    memory = PhysicalMemory([Run(0, 8, memoryview(writable)), Run(8, 8, memoryview(fixed))])
    with pytest.raises(CapabilityError, match="read-only"):
        memory.write(4, b"12345678")
    assert not any(writable)


def test_a_sources_error_speaks_of_guest_physical_addresses():
    memory = PhysicalMemory([Run(0x1000, 16, Bytes(bytes(32), broken=9), offset=4)])
    with pytest.raises(UnreadableMemoryError) as caught:
        memory.read(0x1002, 8)
    assert caught.value.address == 0x1005


def test_the_owner_can_close_a_buffer_after_release():
    data = bytearray(16)
    memory = PhysicalMemory([Run(0, 16, memoryview(data))])
    memory.u64(8)
    memory.release()
    memory.runs[0].backing.release()
    data.append(1)  # a buffer with views could not grow


@pytest.mark.parametrize("second", [0, 7, 4])
def test_runs_that_overlap_or_run_past_their_buffer_are_refused(second):
    buffer = memoryview(bytearray(8))
    with pytest.raises(ValueError, match="overlap"):
        PhysicalMemory([Run(0, 8, buffer), Run(second, 8, buffer)])
    with pytest.raises(ValueError, match="past the end"):
        PhysicalMemory([Run(0, 9, buffer)])


def test_negative_numbers_are_the_callers_mistake():
    memory = PhysicalMemory([Run(0, 8, memoryview(bytearray(8)))])
    for address, size in ((-1, 2), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            memory.read(address, size)
