"""A client of the Network Block Device protocol over a connected socket: reads a disk that QEMU has open.

Specification: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. Fixed newstyle handshake, NBD_OPT_GO,
NBD_CMD_READ with simple replies; several requests are under way at once, and their answers may come in any order.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence

from coldframe.disk.blocks import Blocks
from coldframe.errors import FormatError, GuestGoneError

_OPTION_MAGIC = 0x49484156454F5054  # IHAVEOPT
_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_MAGIC = 0x25609513, 0x67446698
_FIXED, _NO_ZEROES = 1, 2
_GO = 7
_ACK, _INFO, _ERROR = 1, 3, 1 << 31
_INFO_EXPORT = 0
_READ, _DISCONNECT = 0, 2
_SECTOR = 512
_UNDER_WAY = 12  # QEMU serves 16 requests of a client at once
_LONGEST = 8 << 20  # bytes of one request; a server must take 32 MB
_LONGEST_REPLY = 1 << 16  # of an option
_TIMEOUT = 30.0


class NbdBlocks(Blocks):
    """An export of an NBD server as blocks. Takes over `sock`.

    Raises `FormatError` where what answers is no such server or has no export of that name, `GuestGoneError` when it
    hangs up.
    """

    def __init__(self, sock: socket.socket, export: str, name: str) -> None:
        self.name = name
        self._socket = sock
        self._next = 0
        self._lengths: dict[int, int] = {}  # of the requests under way, by handle
        sock.settimeout(_TIMEOUT)
        try:
            self.size = self._shake_hands(export)
        except BaseException:
            sock.close()
            raise

    def _shake_hands(self, export: str) -> int:
        magic, option, flags = struct.unpack(">8sQH", self._receive(18))
        if magic != b"NBDMAGIC" or option != _OPTION_MAGIC or not flags & _FIXED:
            raise FormatError(f"{self.name}: no NBD server with the fixed newstyle handshake answers")
        self._send(struct.pack(">I", flags & (_FIXED | _NO_ZEROES)))
        wanted = export.encode()
        data = struct.pack(">I", len(wanted)) + wanted + struct.pack(">H", 0)
        self._send(struct.pack(">QII", _OPTION_MAGIC, _GO, len(data)) + data)
        size = -1
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _REPLY_MAGIC or length > _LONGEST_REPLY:
                raise FormatError(f"{self.name}: the NBD server's answer begins with {magic:#x}")
            payload = self._receive(length)
            if kind & _ERROR:
                said = payload.decode("utf-8", "replace") or f"error {kind & ~_ERROR}"
                raise FormatError(f"{self.name}: the NBD server refuses export {export!r}: {said}")
            if kind == _INFO and length >= 10 and payload[:2] == struct.pack(">H", _INFO_EXPORT):
                size = struct.unpack_from(">Q", payload, 2)[0]
            if kind == _ACK:
                break
        if size < 0:
            raise FormatError(f"{self.name}: the NBD server does not say how large the disk is")
        return int(size)

    def read(self, offset: int, size: int) -> bytes:
        """See `Blocks`."""
        return next(self.read_runs([(offset, size)]))

    def read_runs(self, runs: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """See `Blocks`; asks for the next ones while the first are on their way."""
        for offset, size in runs:
            self.check(offset, size)
        waiting: deque[tuple[int, int, list[int]]] = deque()  # first byte, size, handles of the requests
        answers: dict[int, bytes | None] = {}
        todo = deque(runs)
        try:
            while todo or waiting:
                while todo and len(self._lengths) < _UNDER_WAY:
                    waiting.append((*todo[0], self._ask(*todo.popleft())))
                offset, size, handles = waiting[0]
                while not all(handle in answers for handle in handles):
                    handle, data = self._answer()
                    answers[handle] = data
                waiting.popleft()
                parts = [answers.pop(handle) for handle in handles]
                if any(part is None for part in parts):
                    raise FormatError(f"{self.name}: QEMU cannot read {size:#x} bytes at {offset:#x} of the disk")
                skip = offset % _SECTOR
                yield b"".join(part for part in parts if part is not None)[skip : skip + size]
        finally:  # the generator may be left half way: nothing may stay in the socket
            while self._lengths:
                self._answer()

    def _ask(self, offset: int, size: int) -> list[int]:
        """Send requests for whole sectors; returns their handles."""
        handles, packets = [], []
        start = offset - offset % _SECTOR
        end = min(-(-(offset + size) // _SECTOR) * _SECTOR, self.size)
        for at in range(start, end, _LONGEST):
            self._next += 1
            length = min(_LONGEST, end - at)
            self._lengths[self._next] = length
            packets.append(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _READ, self._next, at, length))
            handles.append(self._next)
        self._send(b"".join(packets))
        return handles

    def _answer(self) -> tuple[int, bytes | None]:
        """The next answer: whose it is, and the bytes; None where QEMU could not read them."""
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        length = self._lengths.pop(handle, None)
        if magic != _SIMPLE_MAGIC or length is None:
            self._socket.close()
            raise FormatError(f"{self.name}: the NBD server answers {magic:#x} to no request of ours")
        return handle, None if error else self._receive(length)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise GuestGoneError(f"{self.name}: QEMU's NBD server hung up ({error.strerror or error})") from None

    def _receive(self, size: int) -> bytes:
        out = bytearray(size)
        view, done = memoryview(out), 0
        while done < size:
            try:
                count = self._socket.recv_into(view[done:])
            except OSError as error:
                raise GuestGoneError(f"{self.name}: QEMU's NBD server hung up ({error.strerror or error})") from None
            if not count:
                raise GuestGoneError(f"{self.name}: QEMU's NBD server hung up")
            done += count
        return bytes(out)

    def close(self) -> None:
        """Say good-bye and hang up."""
        with contextlib.suppress(OSError):
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()
