"""The packets of GDB's remote serial protocol over a stream socket.

Specification: "Remote Serial Protocol" in GDB's manual. QEMU takes the start of a new packet as the acknowledgement of
its last one, so nothing is acknowledged here and several packets travel in one write. Checksums are not verified: a
Unix socket loses nothing.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections import deque

from coldframe.errors import FormatError, GuestGoneError

_LONGEST_PACKET = 1 << 20
_PACKET = re.compile(rb"\$([^#]*)#..", re.DOTALL)
_CHECKSUM = 2
_ESCAPED = re.compile(rb"\}(.)", re.DOTALL)
_RUN = re.compile(rb"(.)\*(.)", re.DOTALL)
_WATCHFUL = 200e-6
"""Seconds for which an answer is looked for before the thread sleeps: waking it costs as much as QEMU's whole answer.

Each look lets other threads go first, so that QEMU does not wait for a core.
"""

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
        self._payloads: deque[bytes] = deque()
        self._cut_off = b""
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._watchful = _WATCHFUL if len(os.sched_getaffinity(0)) > 1 else 0.0

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
        self._payloads.clear()
        self._cut_off = b""

    def receive(self, timeout: float | None) -> bytes | None:
        """The next payload, or None after `timeout` seconds (None: no limit).

        Raises `GuestGoneError` when QEMU closed the connection.
        """
        payloads = self._payloads
        if not payloads:
            now = time.monotonic()
            watchful = now + self._watchful
            deadline = None if timeout is None else now + timeout
            while not self._take():
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    return None
                if now < watchful:
                    os.sched_yield()
                else:
                    self._poll.poll(None if deadline is None else (deadline - now) * 1000)
        return payloads.popleft()

    def _take(self) -> bool:
        """Take in what has come; whether there is a payload now."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            raise GuestGoneError("the virtual machine has ended: QEMU closed the gdbstub's connection")
        data = self._cut_off + data
        self._payloads.extend(map(expand, _PACKET.findall(data)))
        end = data.rfind(b"#", 0, len(data) - _CHECKSUM)
        start = data.find(b"$", end + 1 + _CHECKSUM if end >= 0 else 0)
        self._cut_off = data[start:] if start >= 0 else b""
        if len(self._cut_off) > _LONGEST_PACKET:
            raise FormatError("the gdbstub sends a packet without an end: it is no gdbstub")
        return bool(self._payloads)
