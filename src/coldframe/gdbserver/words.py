"""Numbers, bytes and places as the words of a packet write them; all of it is the client's, so all of it is checked."""

from __future__ import annotations

from coldframe.errors import FormatError

TOP = 1 << 64
"""The first number that is no address."""


def number_of(digits: bytes) -> int:
    """A number of the protocol: hexadecimal digits and nothing else; raises `FormatError`."""
    if not digits or len(digits) > 32 or digits.strip(b"0123456789abcdefABCDEF"):
        raise FormatError(f"expected a hexadecimal number, found {digits[:32]!r}")
    return int(digits, 16)


def bytes_of_hex(digits: bytes) -> bytes:
    """Bytes of the protocol, two digits each; raises `FormatError`."""
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        raise FormatError(f"expected bytes as hexadecimal digits, found {digits[:32]!r}") from None


def point_of(words: bytes) -> tuple[int, int, int]:
    """Kind, address and length in `Z` and `z`; conditions and commands for the stub's side are not offered."""
    kind, address, length = [*words.partition(b";")[0].split(b","), b"", b"", b""][:3]
    return number_of(kind), number_of(address) % TOP, number_of(length)


def shown_packet(payload: bytes) -> str:
    """A packet in a line of the log."""
    text = payload[:120].decode("latin-1").encode("unicode_escape").decode()
    return text + (f"... ({len(payload)} bytes)" if len(payload) > 120 else "")
