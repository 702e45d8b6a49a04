"""The packets of GDB's remote serial protocol over a stream socket.

Specification: "Remote Serial Protocol" in GDB's manual. QEMU takes the start of a new packet as the acknowledgement of
its last one, so nothing is acknowledged here and several packets travel in one write. Checksums are not verified: a
Unix socket loses nothing.
"""

from __future__ import annotations

import re
import select
import socket
import time

from coldframe.errors import FormatError, GuestGoneError

_LONGEST_PACKET = 1 << 20
_ESCAPED = re.compile(rb"\}(.)", re.DOTALL)
_RUN = re.compile(rb"(.)\*(.)", re.DOTALL)

INTERRUPT = b"\x03"
RESYNC = b"\x03#00"
"""Stops the guest if it runs, ends a packet that was cut off if there is one, and is ignored by an idle stub."""


def packet(payload: bytes) -> bytes:
    """`payload` framed with its checksum."""
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)


def expand(payload: bytes) -> bytes:
    """Undo run-length encoding and escapes."""
    if b"*" in payload:
        payload = _RUN.sub(lambda match: match[1] * (match[2][0] - 28), payload)
    if b"}" in payload:
        payload = _ESCAPED.sub(lambda match: bytes([match[1][0] ^ 0x20]), payload)
    return payload


class PacketSocket:
    """Packets over a connected socket; `receive` gives payloads in order and skips acknowledgements."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._received = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, data: bytes) -> None:
        """Send framed bytes, all in one write where the socket's buffer takes them."""
        try:
            while data:
                try:
                    data = data[self.socket.send(data) :]
                except BlockingIOError:
                    select.select([], [self.socket], [], 1.0)
        except OSError:
            raise GuestGoneError("the virtual machine has ended: QEMU closed the gdbstub's connection") from None

    def drop(self) -> None:
        """Forget what has been received and not been taken."""
        self._received.clear()

    def receive(self, timeout: float | None) -> bytes | None:
        """The next payload, or None after `timeout` seconds (None: no limit).

        Raises `GuestGoneError` when QEMU closed the connection.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (payload := self._take()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not self._poll.poll(left):
                return None
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                raise GuestGoneError("the virtual machine has ended: QEMU closed the gdbstub's connection")
            self._received += data
        return payload

    def _take(self) -> bytes | None:
        received = self._received
        start = received.find(b"$")
        if start < 0:
            received.clear()
            return None
        end = received.find(b"#", start)
        if end < 0 or len(received) < end + 3:
            if len(received) > _LONGEST_PACKET:
                raise FormatError("the gdbstub sends a packet without an end: it is no gdbstub")
            return None
        payload = bytes(received[start + 1 : end])
        del received[: end + 3]
        return expand(payload)
