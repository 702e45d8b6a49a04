"""x64 unwind data as DWARF's call frame information, for debuggers that know nothing of Windows.

Formats: "x64 exception handling" of Microsoft's documentation (see `debug.unwind_info`); DWARF 4, section 6.4.
Epilogues are not described: in the few instructions between a function's first pop and its return the caller is not
found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from coldframe.debug.unwind_info import MOST_CHAINED, REGISTERS, FunctionTable, Op, RuntimeFunction, UnwindInfo
from coldframe.errors import ColdframeError

_DWARF = {
    "rax": 0, "rdx": 1, "rcx": 2, "rbx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7,
    **{f"r{number}": number for number in range(8, 16)},
}  # fmt: skip
"""DWARF's numbers of the registers: System V ABI for AMD64, figure 3.36."""
_RETURN = 16
_ADVANCE, _OFFSET, _DEF_CFA, _DEF_CFA_OFFSET, _OFFSET_SF, _DEF_CFA_SF = 0x40, 0x80, 0x0C, 0x0E, 0x11, 0x12
_LONG_ADVANCE, _NOP = 0x02, 0x00
_WORD = 8
_ENTRY_OF_COMMON = 0xFFFFFFFF


def call_frames(tables: Sequence[FunctionTable]) -> bytes:
    """A `.debug_frame` section that describes every function of these tables; what cannot be read is left out."""
    plain, trap = _common(b""), _common(b"S")  # S: what it returns to is no instruction behind a call
    parts = [plain, trap]
    for table in tables:
        for function, infos in _functions(table):
            is_trap = any(code.op is Op.PUSH_MACHFRAME for info in infos for code in info.codes)
            try:
                steps = _steps(infos)
            except (struct.error, ValueError):  # numbers that no prologue has
                continue
            where = struct.pack(
                "<IQQ", len(plain) if is_trap else 0, table.base + function.begin, function.end - function.begin
            )
            parts.append(_entry(where + steps))
    return b"".join(parts)


def _functions(table: FunctionTable) -> Iterator[tuple[RuntimeFunction, list[UnwindInfo]]]:
    """Each function with its unwind data and that which it is chained to."""
    for index in range(len(table)):
        try:
            function = table[index]
            if function.unwind & 1 or not 0 < function.begin < function.end <= table.size:
                continue
            infos = [table.info(function)]
            while infos[-1].chained is not None and len(infos) < MOST_CHAINED:
                infos.append(table.info(infos[-1].chained))
        except ColdframeError:
            continue
        yield function, infos


def _common(augmentation: bytes) -> bytes:
    """The entry that others refer to: before a prologue the return address lies where rsp points."""
    head = struct.pack("<IB", _ENTRY_OF_COMMON, 1) + augmentation + b"\0"
    start = bytes([_DEF_CFA, _DWARF["rsp"], _WORD, _OFFSET | _RETURN, 1])
    return _entry(head + b"\x01" + _signed(-_WORD) + bytes([_RETURN]) + start)


def _entry(body: bytes) -> bytes:
    body += bytes([_NOP]) * (-(len(body) + 4) % _WORD)
    return struct.pack("<I", len(body)) + body


def _steps(infos: Sequence[UnwindInfo]) -> bytes:
    """What each instruction of the prologue does to the frame; of chained data all is done when the part begins.

    `depth` is how far below the canonical frame address rsp is; saved registers are counted from `base`, which is rsp
    when the frame register is set, or at the prologue's end.
    """
    out = bytearray()
    depth, at, framed = _WORD, 0, False
    for number, info in reversed(list(enumerate(infos))):
        codes = info.codes[::-1]
        base = _base_depth(info, depth)
        for code in codes:
            place = code.offset if number == 0 else 0
            out += _advance(place - at)
            at = max(at, place)
            match code.op:
                case Op.PUSH_MACHFRAME:  # error code, rip, cs, eflags, rsp, ss
                    depth += _WORD * (1 if code.info else 0)
                    out += _cfa_offset(depth) + _saved("rsp", -2)
                case Op.PUSH_NONVOL:
                    depth += _WORD
                    out += (b"" if framed else _cfa_offset(depth)) + _saved(REGISTERS[code.info], depth // _WORD)
                case Op.ALLOC_SMALL | Op.ALLOC_LARGE:
                    depth += code.value
                    out += b"" if framed else _cfa_offset(depth)
                case Op.SET_FPREG | Op.SET_FPREG_LARGE:
                    framed = True
                    out += _cfa_register(REGISTERS[info.frame_register], depth - info.frame_offset)
                case Op.SAVE_NONVOL | Op.SAVE_NONVOL_FAR:
                    out += _saved(REGISTERS[code.info], (base - code.value) // _WORD)
                case _:
                    pass
    return bytes(out)


def _base_depth(info: UnwindInfo, depth: int) -> int:
    """The depth of what saved registers are counted from."""
    for code in info.codes[::-1]:
        match code.op:
            case Op.PUSH_NONVOL:
                depth += _WORD
            case Op.PUSH_MACHFRAME:
                depth += _WORD * (1 if code.info else 0)
            case Op.ALLOC_SMALL | Op.ALLOC_LARGE:
                depth += code.value
            case Op.SET_FPREG | Op.SET_FPREG_LARGE:
                return depth
            case _:
                pass
    return depth


def _advance(count: int) -> bytes:
    if count <= 0:
        return b""
    return bytes([_ADVANCE | count]) if count < 0x40 else bytes([_LONG_ADVANCE, count])


def _cfa_offset(depth: int) -> bytes:
    return bytes([_DEF_CFA_OFFSET]) + _unsigned(depth)


def _cfa_register(name: str, offset: int) -> bytes:
    if offset >= 0:
        return bytes([_DEF_CFA, _DWARF[name]]) + _unsigned(offset)
    return bytes([_DEF_CFA_SF, _DWARF[name]]) + _signed(-offset // _WORD)


def _saved(name: str, words: int) -> bytes:
    """The caller's value of a register lies so many words below the canonical frame address."""
    if words >= 0:
        return bytes([_OFFSET | _DWARF[name]]) + _unsigned(words)
    return bytes([_OFFSET_SF, _DWARF[name]]) + _signed(words)


def _unsigned(value: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _signed(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value & 0x7F])
