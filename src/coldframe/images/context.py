"""CONTEXT of winnt.h: a thread's or processor's registers as Windows' dumps hold them, of x64 and of x86."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_DEFAULT_MXCSR = 0x1F80


@dataclass(frozen=True, slots=True)
class ContextForm:
    """Where a machine's CONTEXT has its registers, which are named as their 64-bit forms.

    `segments` and `integers` are the names in the order of the structure, from `segments_at` and `integers_at` on, each
    in the format of struct's letter beside it. `mxcsr_at` are the places of MXCSR and of its copy in the FXSAVE area.
    """

    size: int
    flags: int
    flags_at: int
    segments: Sequence[str]
    segments_at: int
    segment: str
    integers: Sequence[str]
    integers_at: int
    integer: str
    eflags_at: int
    mxcsr_at: Sequence[int] = ()

    def pack(self, registers: Mapping[str, int]) -> bytes:
        """A CONTEXT with these registers; those not named are 0."""
        data = bytearray(self.size)
        struct.pack_into("<I", data, self.flags_at, self.flags)
        for at in self.mxcsr_at:
            struct.pack_into("<I", data, at, registers.get("mxcsr", _DEFAULT_MXCSR) & 0xFFFF_FFFF)
        for names, at, letter in (
            (self.segments, self.segments_at, self.segment),
            (self.integers, self.integers_at, self.integer),
            (("eflags",), self.eflags_at, "I"),
        ):
            mask = (1 << 8 * struct.calcsize(f"<{letter}")) - 1
            words = (registers.get(name, 0) & mask for name in names)
            struct.pack_into(f"<{len(names)}{letter}", data, at, *words)
        return bytes(data)

    def unpack(self, data: bytes, at: int) -> Mapping[str, int]:
        """The registers of the CONTEXT at `at` of `data`; empty where its instruction pointer is 0: none was saved."""
        integers = struct.unpack_from(f"<{len(self.integers)}{self.integer}", data, at + self.integers_at)
        segments = struct.unpack_from(f"<{len(self.segments)}{self.segment}", data, at + self.segments_at)
        (eflags,) = struct.unpack_from("<I", data, at + self.eflags_at)
        found = dict(zip((*self.integers, *self.segments), (*integers, *segments), strict=True)) | {"eflags": eflags}
        return found if found["rip"] else {}


CONTEXT64 = ContextForm(
    size=0x4D0, flags=0x100007, flags_at=0x30,  # CONTEXT_AMD64: control, integer and segment registers
    segments=("cs", "ds", "es", "fs", "gs", "ss"), segments_at=0x38, segment="H",
    integers=("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip"),
    integers_at=0x78, integer="Q", eflags_at=0x44, mxcsr_at=(0x34, 0x118),
)  # fmt: skip
CONTEXT32 = ContextForm(
    size=0x2CC, flags=0x10007, flags_at=0,  # CONTEXT_i386
    segments=("gs", "fs", "es", "ds"), segments_at=0x8C, segment="I",
    integers=("rdi", "rsi", "rbx", "rdx", "rcx", "rax", "rbp", "rip", "cs", "eflags", "rsp", "ss"),
    integers_at=0x9C, integer="I", eflags_at=0xC0,
)  # fmt: skip
"""Its SegCs, EFlags and SegSs stand between the integer registers."""
