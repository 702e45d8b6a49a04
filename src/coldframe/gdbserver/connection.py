"""One client's end of the remote serial protocol: its packets, bounded, and its Ctrl-C while the guest runs.

Specification: GDB's manual, "Remote Protocol", sections "Overview", "Packet Acknowledgment" and "Interrupts". The
client is not trusted: what it sends is bounded in size and in number, and one that takes no answers is let go of.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coldframe.errors import ColdframeError
from coldframe.qemu.packets import INTERRUPT, packet

LONGEST = 0x8000
"""Bytes of the longest packet, framing included; the client is told so (`PacketSize`)."""
_MOST_WAITING = 64
_MOST_REPEATS = 16
_PATIENCE = 30.0
"""Seconds in which a client has to take what it asked for."""
_SPECIAL = frozenset(b"#$*}")


class ClientGoneError(ColdframeError):
    """The client has closed the connection, or does not keep to the protocol's bounds."""


class PacketReader:
    """Bytes as they come into packets: payloads, unescaped, with their framing taken away and their sums checked.

    Whatever stands between packets is passed over. Pure: nothing is sent from here.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """What `data` completes: (payload, whether its sum is right). A Ctrl-C between packets is `INTERRUPT`, a
        request to send the last packet again is `-`.

        Raises `ClientGoneError` where a packet does not end within `LONGEST` bytes.
        """
        self._bytes += data
        while self._bytes:
            first = self._bytes[:1]
            if first != b"$":
                del self._bytes[:1]
                if first in (INTERRUPT, b"-"):
                    yield bytes(first), True
                continue
            end = self._bytes.find(b"#")
            if end < 0 or len(self._bytes) < end + 3:
                if len(self._bytes) > LONGEST:
                    raise ClientGoneError(f"the client sent a packet of more than {LONGEST} bytes")
                return
            raw, told = bytes(self._bytes[1:end]), bytes(self._bytes[end + 1 : end + 3])
            del self._bytes[: end + 3]
            yield unescape(raw), told.lower() == b"%02x" % (sum(raw) & 0xFF)


def unescape(data: bytes) -> bytes:
    """Binary data as it was before it was escaped for a packet."""
    head, *parts = data.split(b"}")
    return head + b"".join(bytes([part[0] ^ 0x20]) + part[1:] for part in parts if part)


def escape(data: bytes) -> bytes:
    """Binary data without the bytes that mean something in a packet."""
    return b"".join(bytes([0x7D, byte ^ 0x20]) if byte in _SPECIAL else bytes([byte]) for byte in data)


class Connection:
    """A client that is connected: `source` and `sink` are the descriptors it is read from and written to.

    Anybody else who connects to `listener` meanwhile is sent away.
    """

    def __init__(self, source: int, sink: int, listener: socket.socket | None = None) -> None:
        self._source = source
        self._sink = sink
        self._listener = listener
        self._reader = PacketReader()
        self._waiting: deque[bytes] = deque()
        self._ended: ClientGoneError | None = None
        self._last = b""
        self._repeats = 0
        self.acknowledges = True
        """Whether packets are acknowledged, until the client asks that they are not (`QStartNoAckMode`)."""
        self.turned_away = 0

    def receive(self) -> bytes:
        """The next payload, `INTERRUPT` for a Ctrl-C; raises `ClientGoneError`."""
        while not self._waiting:
            if self._ended is not None:
                raise self._ended
            self._fill(None)
        return self._waiting.popleft()

    def send(self, payload: bytes) -> None:
        """Send one packet; `payload` is escaped already where it is binary."""
        self._repeats = 0
        self._last = packet(payload)
        self._write(self._last)

    @contextmanager
    def watched(self, stop: Callable[[], None]) -> Iterator[threading.Event]:
        """While the block runs, another thread calls `stop` at the client's Ctrl-C or end, and sets the event.

        Packets that come meanwhile wait for `receive`.
        """
        asked = threading.Event()
        ours, theirs = os.pipe()

        def watch() -> None:
            try:
                while not asked.is_set():
                    if not self._fill(ours):
                        return
                    if INTERRUPT in self._waiting:
                        self._waiting.remove(INTERRUPT)
                        break
            except ClientGoneError as error:
                self._ended = error
                self._waiting.clear()
            asked.set()
            stop()

        thread = threading.Thread(target=watch, name="coldframe gdbserver client", daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            os.close(theirs)
            thread.join()
            os.close(ours)

    def _fill(self, until: int | None) -> bool:
        """Wait for bytes of the client and take the packets out; False when the pipe `until` was closed first."""
        poll = select.poll()
        listener = -1 if self._listener is None else self._listener.fileno()
        for descriptor in (self._source, listener, -1 if until is None else until):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if until in ready:
            return False
        if self._source in ready:
            try:
                data = os.read(self._source, 1 << 16)
            except OSError:
                data = b""
            if not data:
                raise ClientGoneError("the client has closed the connection")
            for payload, whole in self._reader.feed(data):
                self._take(payload, whole=whole)
        elif listener in ready and self._listener is not None:  # the client's end would make place for another
            self._listener.accept()[0].close()
            self.turned_away += 1
        return True

    def _take(self, payload: bytes, *, whole: bool) -> None:
        if payload == b"-":
            self._repeats += 1
            if self._repeats > _MOST_REPEATS:
                raise ClientGoneError(f"the client asked for the same packet {self._repeats} times")
            self._write(self._last)
            return
        if payload != INTERRUPT and self.acknowledges:
            self._write(b"+" if whole else b"-")
        if not whole:
            return
        if len(self._waiting) >= _MOST_WAITING:
            raise ClientGoneError(f"the client sent {_MOST_WAITING} packets without waiting for an answer")
        self._waiting.append(payload)

    def _write(self, data: bytes) -> None:
        deadline = time.monotonic() + _PATIENCE
        poll = select.poll()
        poll.register(self._sink, select.POLLOUT)
        view = memoryview(data)
        while view:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ClientGoneError(f"the client took no answer for {_PATIENCE:g} s")
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise ClientGoneError("the client has closed the connection") from None
