"""A function's frame read off its first instructions, for when its unwind data is not in RAM.

The x64 ABI allows few instructions in a prologue (https://learn.microsoft.com/cpp/build/prolog-and-epilog): saves to
the home space, pushes, one allocation, one frame register. What they did up to a place in the function is undone from
there. This is a guess where unwind data is knowledge: the answer holds only if the return address follows a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coldframe.capabilities import ReadsMemory
from coldframe.debug.unwind_info import REGISTERS
from coldframe.errors import UnreadableMemoryError

LONGEST_PROLOGUE = 128
_RSP = 4
_NONVOLATILE = frozenset((3, 5, 6, 7, 12, 13, 14, 15))
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Prologue:
    """What the instructions did, in order: stack bytes taken, registers pushed or saved, the frame register.

    `pushes` are (register number, bytes taken before it); `saves` (register number, offset from the entry's rsp);
    `frame` is (register number, its distance below the entry's rsp).
    """

    taken: int = 0
    pushes: list[tuple[int, int]] = field(default_factory=list)
    saves: list[tuple[int, int]] = field(default_factory=list)
    frame: tuple[int, int] | None = None


def read_prologue(code: bytes) -> Prologue:
    """Read the prologue at the beginning of `code`, which ends where control is, up to the first other instruction."""
    found = Prologue()
    at, pending, rax_below = 0, None, None
    while at < len(code):
        rest = code[at : at + 11]
        rex = rest[0] if rest[0] & 0xF0 == 0x40 else 0
        body = rest[1:] if rex else rest
        length = 1 if rex else 0
        if not body:
            break
        if body[0] & 0xF8 == 0x50:  # push
            found.taken += 8
            found.pushes.append(((rex & 1) << 3 | body[0] & 7, found.taken))
            length += 1
        elif rex == 0x48 and body[:2] == b"\x83\xec" and len(body) >= 3:  # sub rsp, imm8
            found.taken += int.from_bytes(body[2:3], "little", signed=True)
            length += 3
        elif rex == 0x48 and body[:2] == b"\x81\xec" and len(body) >= 6:  # sub rsp, imm32
            found.taken += int.from_bytes(body[2:6], "little")
            length += 6
        elif not rex and body[0] == 0xB8 and len(body) >= 5:  # mov eax, imm32: how much __chkstk shall probe
            pending = int.from_bytes(body[1:5], "little")
            length += 5
        elif pending is not None and not rex and body[0] == 0xE8:  # call __chkstk
            length += 5
        elif pending is not None and rex == 0x48 and body[:2] in (b"\x29\xc4", b"\x2b\xe0"):  # sub rsp, rax
            found.taken += pending
            pending = None
            length += 2
        elif rex == 0x48 and body[:2] == b"\x8b\xc4":  # mov rax, rsp
            rax_below = found.taken
            length += 2
        elif rex & 8 and body[:2] in (b"\x89\xe5", b"\x8b\xec"):  # mov rbp, rsp
            found.frame = 5, found.taken
            length += 2
        elif (step := _store_or_frame(found, rex, body, rax_below)) is not None:
            length += step
        else:
            break
        at += length
    return found


def _store_or_frame(found: Prologue, rex: int, body: bytes, rax_below: int | None) -> int | None:
    """Length of `lea reg, n[rsp]` or of a store to `n[rsp]` or `n[rax]`; None for anything else."""
    opcode = body[:2] if body[0] == 0x0F else body[:1]
    modrm_at = len(opcode)
    if opcode not in (b"\x89", b"\x8d", b"\x0f\x29", b"\x0f\x28", b"\x0f\x11", b"\x0f\x1f") or len(body) <= modrm_at:
        return None
    modrm = body[modrm_at]
    mode, register, base = modrm >> 6, (rex & 4) << 1 | modrm >> 3 & 7, modrm & 7
    at = modrm_at + 1
    if opcode == b"\x0f\x1f":  # a long nop
        return at + (base == 4) + (0, 1, 4, 0)[mode]
    by_rax = base == 0 and rax_below is not None and not rex & 1
    if not (base == _RSP and body[at : at + 1] == b"\x24" and not rex & 1) and not by_rax:
        return None
    at += base == _RSP
    width = (0, 1, 4)[mode] if mode < 3 else None
    if width is None or len(body) < at + width:
        return None
    offset = int.from_bytes(body[at : at + width], "little", signed=True)
    from_entry = offset - (rax_below if by_rax and rax_below is not None else found.taken)
    if opcode == b"\x8d":
        if by_rax or register not in _NONVOLATILE or not rex & 8:
            return None
        found.frame = register, -from_entry
    elif opcode == b"\x89" and rex & 8 and register in _NONVOLATILE:
        found.saves.append((register, from_entry))
    return at + width


def undo_prologue(found: Prologue, memory: ReadsMemory, registers: Mapping[str, int]) -> dict[str, int]:
    """The caller's registers, `registers` being those of the function; raises `UnreadableMemoryError`."""
    state = dict(registers)
    if found.frame is not None:
        number, below = found.frame
        entry = state[REGISTERS[number]] + below
    else:
        entry = state["rsp"] + found.taken
    for number, below in reversed(found.pushes):
        state[REGISTERS[number]] = _u64(memory, entry - below)
    for number, above in found.saves:
        state[REGISTERS[number]] = _u64(memory, entry + above)
    state["rip"] = _u64(memory, entry)
    state["rsp"] = (entry + 8) & _MASK
    return state


def follows_call(memory: ReadsMemory, address: int) -> bool:
    """Whether the instruction before `address` is a call: what a return address must follow."""
    try:
        before = memory.read(address - 7, 7)
    except UnreadableMemoryError:
        return False
    if before[2] == 0xE8:  # call rel32
        return True
    for length in range(2, 8):  # call r/m64: FF /2
        start = 7 - length
        opcode = start + (before[start] & 0xF0 == 0x40)
        is_call = before[opcode] == 0xFF and opcode + 1 < 7 and before[opcode + 1] & 0x38 == 0x10
        if is_call and length - (opcode - start) == _modrm_length(before[opcode + 1 :]):
            return True
    return False


def _modrm_length(data: bytes) -> int:
    """Bytes of an instruction with a one-byte opcode whose ModRM byte and what follows are `data`."""
    mode, base = data[0] >> 6, data[0] & 7
    sib = mode != 3 and base == 4
    displacement = {0: 4 if base == 5 or (sib and len(data) > 1 and data[1] & 7 == 5) else 0, 1: 1, 2: 4, 3: 0}[mode]
    return 2 + sib + displacement


def _u64(memory: ReadsMemory, address: int) -> int:
    return int.from_bytes(memory.read(address & _MASK, 8), "little")
