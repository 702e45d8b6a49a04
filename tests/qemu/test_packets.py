"""Packets come out of the stream as they went in, however it is cut; a stream that is none of it ends in one line."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import FormatError, GuestGoneError
from coldframe.qemu.gdbstub import GdbStub
from coldframe.qemu.packets import PacketSocket, packet

PLAIN = st.binary(max_size=40).map(lambda data: bytes(byte for byte in data if byte not in b"$#}*+"))


@pytest.fixture
def ends() -> Iterator[tuple[PacketSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield PacketSocket(ours), theirs


@given(payloads=st.lists(PLAIN, min_size=1, max_size=6), cuts=st.sets(st.integers(0, 300)), acknowledged=st.booleans())
def test_payloads_come_in_order_wherever_the_stream_is_cut(
    payloads: list[bytes], cuts: set[int], acknowledged: bool
) -> None:
    stream = b"".join(b"+" * acknowledged + packet(payload) for payload in payloads)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        packets, received = PacketSocket(ours), list[bytes]()
        marks = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
        for start, end in itertools.pairwise(marks):
            theirs.sendall(stream[start:end])
            while (payload := packets.receive(0)) is not None:
                received.append(payload)
        assert received == payloads


def test_escapes_and_runs_are_undone(ends: tuple[PacketSocket, socket.socket]) -> None:
    packets, theirs = ends
    theirs.sendall(packet(b"a}\x03b0* c"))
    assert packets.receive(1) == b"a#b0000c"


def test_a_wait_ends_in_time_under_a_flood_of_acknowledgements(ends: tuple[PacketSocket, socket.socket]) -> None:
    packets, theirs = ends
    over = threading.Event()

    def flood() -> None:
        theirs.settimeout(0.01)
        while not over.is_set():
            try:
                theirs.sendall(b"+" * 4096)
            except OSError:
                continue

    thread = threading.Thread(target=flood)
    thread.start()
    began = time.monotonic()
    assert packets.receive(0.2) is None
    assert time.monotonic() - began < 5
    over.set()
    thread.join()


def test_a_packet_without_an_end_is_no_gdbstubs(ends: tuple[PacketSocket, socket.socket]) -> None:
    packets, theirs = ends

    def send() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(b"$" + bytes(3 << 20))

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(FormatError, match="without an end"):
        packets.receive(20)
    packets.socket.close()
    thread.join()


def test_the_end_of_the_connection_is_the_end_of_the_machine(ends: tuple[PacketSocket, socket.socket]) -> None:
    packets, theirs = ends
    theirs.sendall(packet(b"OK"))
    theirs.close()
    assert packets.receive(1) == b"OK"
    with pytest.raises(GuestGoneError):
        packets.receive(1)


@pytest.mark.parametrize("said", [b"", b"T", b"Tzz", b"T5", b"OK", b"E22"])
def test_what_is_no_stop_reply_is_named(ends: tuple[PacketSocket, socket.socket], said: bytes) -> None:
    with pytest.raises(FormatError, match="where a stop was expected"):
        GdbStub(ends[0].socket).stop_reply(said)
