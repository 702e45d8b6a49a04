"""Packets as a pcapng file: one section, one Ethernet interface, an enhanced packet block each.

Format: IETF draft-ietf-opsawg-pcapng (block types, options; everything little-endian, padded to 32 bits). Written
block by block and flushed, so that a reader may follow, and what is written before a crash is a whole file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

from coldframe.closing import Closing
from coldframe.errors import ColdframeError

Direction = Literal["send", "receive"]

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_LINKTYPE_ETHERNET = 1
_COMMENT, _APPLICATION, _NAME, _RESOLUTION, _FLAGS = 1, 4, 2, 9, 2
_INBOUND, _OUTBOUND = 1, 2
_LONGEST_OPTION = 0xFFFF
_MICROSECONDS = 6


class PcapngWriter(Closing):
    """A capture file being written; a context manager. Raises `ColdframeError` where the file cannot be written."""

    def __init__(self, path: Path, *, interface: str = "ndis") -> None:
        """Create `path`, replacing what is there; `interface` is the name that readers show."""
        self.path = path
        self.packets = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise ColdframeError(f"cannot write {path}: {error.strerror}") from error
        version = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        self._block(_SECTION, version + _options((_APPLICATION, b"coldframe")))
        described = _options((_NAME, interface.encode()), (_RESOLUTION, bytes([_MICROSECONDS])))
        self._block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0) + described)

    def close(self) -> None:
        """End the file; a second call does nothing."""
        self._file.close()

    def put(
        self, frame: bytes, when: float, direction: Direction, *, size: int | None = None, comment: str = ""
    ) -> None:
        """Write one packet, seen at `when` (seconds since 1970).

        `size` is the packet's length on the wire where `frame` is cut; `comment` is cut to 65,535 bytes of UTF-8.
        """
        ticks = max(0, round(when * 1e6))
        told = [(_COMMENT, comment.encode("utf-8", "replace"))] if comment else []
        told.append((_FLAGS, struct.pack("<I", _OUTBOUND if direction == "send" else _INBOUND)))
        head = struct.pack("<IIIII", 0, ticks >> 32, ticks & 0xFFFF_FFFF, len(frame), max(size or 0, len(frame)))
        self._block(_PACKET, head + _padded(frame) + _options(*told))
        self.packets += 1

    def _block(self, kind: int, body: bytes) -> None:
        length = struct.pack("<I", len(body) + 12)
        try:
            self._file.write(struct.pack("<I", kind) + length + body + length)
            self._file.flush()
        except OSError as error:
            raise ColdframeError(f"cannot write {self.path}: {error.strerror}") from error


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _options(*options: tuple[int, bytes]) -> bytes:
    """Options, each a code and its value, and their end."""
    out = b""
    for code, value in options:
        text = value[:_LONGEST_OPTION]
        while text != value and text and text[-1] & 0xC0 == 0x80:  # not within a character
            text = text[:-1]
        if text != value:
            text = text[:-1]
        out += struct.pack("<HH", code, len(text)) + _padded(text)
    return out + bytes(4)
