"""The files that a client may read from the server: one, with the guest's symbols. It writes none.

Format: GDB's manual, "Host I/O Packets" and, for `fstat`, "struct stat" of the File-I/O protocol, which is big-endian.
"""

from __future__ import annotations

import errno
import struct

from coldframe.gdbserver.connection import escape
from coldframe.gdbserver.words import bytes_of_hex, number_of

_STAT = struct.Struct(">7I3Q3I")
_REGULAR = 0o100444
_BLOCK = 512
_DESCRIPTOR = 3


class HostFiles:
    """Answers `vFile` packets for the file `content` at `path`; at most `longest` bytes at a time."""

    def __init__(self, path: str, content: bytes, longest: int) -> None:
        self.path = path
        self._content = content
        self._longest = longest

    def answer(self, words: bytes) -> bytes:
        """The answer to a packet whose words these are, behind `vFile:`; raises `FormatError` for what is no number."""
        operation, _, given = words.partition(b":")
        match operation:
            case b"setfs":
                return b"F0"
            case b"open":
                name, flags, _ = (*given.split(b","), b"", b"", b"")[:3]
                if number_of(flags) & 3:
                    return _failed(errno.EACCES)
                found = bytes_of_hex(name) == self.path.encode()
                return b"F%x" % _DESCRIPTOR if found else _failed(errno.ENOENT)
            case b"close":
                return b"F0" if self._opened(given) else _failed(errno.EBADF)
            case b"pread":
                descriptor, size, offset = (*given.split(b","), b"", b"", b"")[:3]
                if not self._opened(descriptor):
                    return _failed(errno.EBADF)
                first = number_of(offset)
                data = self._content[first : first + min(number_of(size), self._longest)]
                return b"F%x;%b" % (len(data), escape(data))
            case b"fstat":
                if not self._opened(given):
                    return _failed(errno.EBADF)
                size_now = len(self._content)
                told = _STAT.pack(0, 1, _REGULAR, 1, 0, 0, 0, size_now, _BLOCK, -(-size_now // _BLOCK), 0, 0, 0)
                return b"F%x;%b" % (len(told), escape(told))
            case b"readlink":
                return _failed(errno.EINVAL)
            case _:
                return b""

    def _opened(self, descriptor: bytes) -> bool:
        return number_of(descriptor) == _DESCRIPTOR


def _failed(number: int) -> bytes:
    return b"F-1,%x" % number
