"""A compressor of Xpress' plain LZ77, by [MS-XCA] 2.3: what `coldframe.windows.store.xpress` undoes, written apart."""

from __future__ import annotations

import struct


def compress(data: bytes, *, farthest: int = 0x2000, longest: int = 1 << 20) -> bytes:
    """`data` compressed; `farthest` and `longest` bound its matches, so that tests can choose their forms."""
    out = bytearray(4)
    flags_at, flags, count = 0, 0, 0
    nibble_at = -1
    seen: dict[bytes, int] = {}
    at = 0
    while at < len(data):
        found = seen.get(data[at : at + 3], -1)
        match = 0
        if found >= 0 and at - found <= farthest:
            while match < longest and at + match < len(data) and data[found + match] == data[at + match]:
                match += 1
        if match >= 3:
            code = match - 3
            out += struct.pack("<H", (at - found - 1) << 3 | min(code, 7))
            if code >= 7:
                code -= 7
                if nibble_at < 0:
                    nibble_at = len(out)
                    out.append(min(code, 15))
                else:
                    out[nibble_at] |= min(code, 15) << 4
                    nibble_at = -1
                if code >= 15:
                    code -= 15
                    out.append(min(code, 255))
                    if code >= 255:
                        whole = code + 22
                        out += struct.pack("<H", whole) if whole < 1 << 16 else struct.pack("<HI", 0, whole)
        else:
            match = 1
            out.append(data[at])
        flags = flags << 1 | (match > 1)
        for step in range(match):
            seen[data[at + step : at + step + 3]] = at + step
        at += match
        count += 1
        if count == 32:
            struct.pack_into("<I", out, flags_at, flags)
            flags_at, flags, count = len(out), 0, 0
            out += bytes(4)
    left = 32 - count
    struct.pack_into("<I", out, flags_at, (flags << left | (1 << left) - 1) & 0xFFFFFFFF)
    return bytes(out)
