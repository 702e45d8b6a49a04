"""Is control in an epilogue? Read off the instructions, as `RtlVirtualUnwind` does for version 1 unwind data.

An x64 epilogue has one shape: an optional `add rsp, n` or `lea rsp, n[frame register]`, any number of pops, then a
`ret` or a jump that leaves the function (https://learn.microsoft.com/cpp/build/prolog-and-epilog). From inside one the
caller is found by carrying the rest of it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MOST_POPS = 16
_LONGEST = 7 + 2 * _MOST_POPS + 8
"""Bytes of the longest epilogue: the release of the stack, pops with a prefix, the jump."""

CODE_BYTES = _LONGEST


@dataclass(frozen=True, slots=True)
class Release:
    """The instruction that gives the stack frame back: rsp becomes register number `base` plus `amount`."""

    base: int
    amount: int


@dataclass(frozen=True, slots=True)
class EpilogueRest:
    """What is left to execute: give the stack back (or None), then pop these registers, by number, then return.

    With `machine_frame` the return is an `iretq`.
    """

    release: Release | None
    pops: tuple[int, ...]
    machine_frame: bool = False


def rest_of_epilogue(code: bytes, frame_register: int, leaves: Callable[[int], bool]) -> EpilogueRest | None:
    """What is left of the epilogue that `code` (from the instruction pointer on) is in, or None outside of one.

    `leaves(displacement)` says whether a jump to that many bytes from the start of `code` goes out of the function.
    An `iretq` ends an epilogue too (which `RtlVirtualUnwind` does not know): then a machine frame is on the stack.
    """
    release, at = _release(code, frame_register)
    pops: list[int] = []
    while len(pops) < _MOST_POPS:
        register, length = _pop(code, at)
        if not length:
            break
        pops.append(register)
        at += length
    if code[at : at + 3] == b"\x0f\x01\xf8":  # swapgs
        at += 3
    if code[at : at + 2] == b"\x48\xcf":
        return EpilogueRest(release, tuple(pops), machine_frame=True)
    return EpilogueRest(release, tuple(pops)) if _ends(code, at, leaves) else None


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _release(code: bytes, frame_register: int) -> tuple[Release | None, int]:
    if code[:3] == b"\x48\x83\xc4" and len(code) >= 4:  # add rsp, imm8
        return Release(4, _signed(code[3:4])), 4
    if code[:3] == b"\x48\x81\xc4" and len(code) >= 7:  # add rsp, imm32
        return Release(4, _signed(code[3:7])), 7
    if len(code) >= 4 and code[0] in (0x48, 0x49) and code[1] == 0x8D and frame_register:  # lea rsp, n[frame register]
        modrm = code[2]
        base = (code[0] & 1) << 3 | modrm & 7
        if base == frame_register and modrm & 7 != 4:
            if modrm & 0xF8 == 0x60:
                return Release(base, _signed(code[3:4])), 4
            if modrm & 0xF8 == 0xA0 and len(code) >= 7:
                return Release(base, _signed(code[3:7])), 7
    return None, 0


def _pop(code: bytes, at: int) -> tuple[int, int]:
    """Register number and length of the pop at `at`; length 0 when it is none."""
    if at < len(code) and code[at] & 0xF8 == 0x58:
        return code[at] & 7, 1
    if at + 1 < len(code) and code[at] & 0xF0 == 0x40 and code[at + 1] & 0xF8 == 0x58:
        return (code[at] & 1) << 3 | code[at + 1] & 7, 2
    return 0, 0


def _ends(code: bytes, at: int, leaves: Callable[[int], bool]) -> bool:
    if code[at : at + 1] == b"\xf2":  # bnd (MPX) prefix
        at += 1
    end = code[at : at + 6]
    if end[:1] in (b"\xc3", b"\xc2") or end[:2] == b"\xf3\xc3":  # ret; ret imm16; rep ret
        return True
    if end[:1] == b"\xeb" and len(end) >= 2:  # jmp rel8
        return leaves(at + 2 + _signed(end[1:2]))
    if end[:1] == b"\xe9" and len(end) >= 5:  # jmp rel32
        return leaves(at + 5 + _signed(end[1:5]))
    if end[:2] == b"\xff\x25":  # jmp [rip + disp32]: to an import
        return True
    # REX.W jmp r/m64: the needless prefix marks a jump out of the function
    return len(end) >= 3 and end[0] & 0xF8 == 0x48 and end[1] == 0xFF and end[2] & 0x38 == 0x20
