"""Plain LZ77 of Microsoft's Xpress, as RtlDecompressBuffer reads it: [MS-XCA] section 2.4.

Bits of 32-bit words, the highest first, tell literals (0) from matches (1). A match is a 16-bit word: its distance less
one above, three bits of length below; lengths of 10 and more go on in a nibble shared by two matches, then in a byte, a
16-bit and a 32-bit word.

Why not a library's: the compressed bytes are the guest's, and a match may claim four billion bytes; here nothing grows
past what was asked for.
"""

from __future__ import annotations

from coldframe.errors import FormatError

_FLAG_BITS = 32
_NIBBLE = 7  # what a length field says when the length goes on: 3 bits, 4 bits, 8 bits
_BYTE = 15
_WORD = 255
_SHORTEST = 3


def decompress(data: bytes, size: int) -> bytes:
    """The `size` bytes that `data` holds; raises `FormatError` for data that holds fewer, or says what it has not."""
    out = bytearray()
    at = 0
    nibble = 0  # where the byte is whose upper half the next long match takes; 0: none waits
    end = len(data)
    try:
        while len(out) < size:
            flags = int.from_bytes(data[at : at + 4], "little")
            at += 4
            left = _FLAG_BITS
            while left and len(out) < size:
                run = left - (flags & ((1 << left) - 1)).bit_length()
                if run:  # literals up to the next match
                    run = min(run, size - len(out))
                    if at + run > end:
                        raise IndexError
                    out += data[at : at + run]
                    at += run
                    left -= run
                    continue
                left -= 1
                word = data[at] | data[at + 1] << 8
                at += 2
                length = word & 7
                if length == _NIBBLE:
                    if nibble:
                        length = data[nibble] >> 4
                        nibble = 0
                    else:
                        length = data[at] & 15
                        nibble = at
                        at += 1
                    if length == _BYTE:
                        length = data[at]
                        at += 1
                        if length == _WORD:
                            length = data[at] | data[at + 1] << 8
                            at += 2
                            if not length:
                                length = int.from_bytes(data[at : at + 4], "little")
                                at += 4
                            length -= _BYTE + _NIBBLE
                            if length < 0:
                                raise FormatError(f"Xpress: a long match of fewer than {_BYTE + _NIBBLE} bytes at {at}")
                        length += _BYTE
                    length += _NIBBLE
                _copy(out, (word >> 3) + 1, min(length + _SHORTEST, size - len(out)))
    except IndexError:
        raise FormatError(f"Xpress: {end} bytes end after {len(out)} of {size} bytes") from None
    return bytes(out)


def _copy(out: bytearray, distance: int, length: int) -> None:
    start = len(out) - distance
    if start < 0:
        raise FormatError(f"Xpress: a match reaches back {distance} bytes where there are {len(out)}")
    if distance >= length:
        out += out[start : start + length]
    else:  # it repeats what it writes
        pattern = bytes(out[start:])
        out += (pattern * (length // distance + 1))[:length]
