"""From the registers inside a function to its caller's, by the image's unwind data.

The order is that of `RtlVirtualUnwind`: an epilogue is carried out to its end; anywhere else, the part of the prologue
that has run is undone, code by code, through chained entries; then the return address is popped, unless a machine frame
(`UWOP_PUSH_MACHFRAME`: an interrupt, an exception or a system call) gave rip and rsp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from coldframe.capabilities import ReadsMemory
from coldframe.debug.epilogue import CODE_BYTES, EpilogueRest, rest_of_epilogue
from coldframe.debug.unwind_info import MOST_CHAINED, REGISTERS, FunctionTable, Op, RuntimeFunction, UnwindInfo
from coldframe.errors import FormatError, UnreadableMemoryError

_MASK = (1 << 64) - 1
_PAGE = 4096

How = Literal["leaf", "unwind data", "epilogue", "machine frame"]


@dataclass(frozen=True, slots=True)
class Unwound:
    """The caller's registers (those that the callee saved; volatile ones keep the callee's values).

    `how` they were found. `user` is None, except behind a machine frame: whether it returns to user mode.
    """

    registers: Mapping[str, int]
    how: How
    user: bool | None = None


def unwind_frame(
    table: FunctionTable | None, memory: ReadsMemory, registers: Mapping[str, int], *, returned_to: bool = False
) -> Unwound:
    """The caller of the function that `registers` are in.

    `table` is that of the module which holds rip; None makes it a leaf. `returned_to` says that rip is a return
    address: the call stands before it, so control is in no epilogue that has begun. Raises `UnreadableMemoryError` when
    the stack or the unwind data is not in RAM, `FormatError` when the unwind data is nonsense.
    """
    state = dict(registers)
    if table is None:
        return _leaf(memory, state)
    rva = state["rip"] - table.base
    function = table.find(rva - 1 if returned_to else rva, memory)
    if function is None:
        return _leaf(memory, state)
    info = table.info(function, memory)
    if not returned_to:
        if info.version == 2:
            for epilogue in info.epilogues:
                into = rva - (function.end - epilogue.before_end)
                if 0 <= into < epilogue.size:
                    return _pop_rest(table, memory, state, info, into)
        elif (rest := _epilogue(table, memory, state["rip"], function, info)) is not None:
            return _carry_out(memory, state, rest)
    return _undo(table, memory, state, info, rva - function.begin)


def unwind_epilogue(memory: ReadsMemory, registers: Mapping[str, int], into: int) -> Unwound | None:
    """The caller, if the instructions at rip are an epilogue whatever unwind data says; None when they are not.

    `into` is how far rip is from the function's first instruction: a jump back behind that leaves the function.
    """
    rest = rest_of_epilogue(_code(memory, registers["rip"]), 0, lambda displacement: displacement < -into)
    return None if rest is None else _carry_out(memory, dict(registers), rest)


def _u64(memory: ReadsMemory, address: int) -> int:
    return int.from_bytes(memory.read(address & _MASK, 8), "little")


def _leaf(memory: ReadsMemory, state: dict[str, int]) -> Unwound:
    _return(memory, state)
    return Unwound(state, "leaf")


def _return(memory: ReadsMemory, state: dict[str, int]) -> None:
    state["rip"] = _u64(memory, state["rsp"])
    state["rsp"] = (state["rsp"] + 8) & _MASK


def _epilogue(
    table: FunctionTable, memory: ReadsMemory, rip: int, function: RuntimeFunction, info: UnwindInfo
) -> EpilogueRest | None:
    rva = rip - table.base
    code = _code(memory, rip)

    def leaves(displacement: int) -> bool:
        target = rva + displacement
        if function.begin <= target < function.end:
            return target == function.begin and info.chained is None  # a call of itself in place of the last
        other = table.find(target, memory)
        if other is None:
            return True
        primary = table.primary(other, memory)  # another part of this function is not outside of it
        return primary.begin != table.primary(function, memory).begin or target == primary.begin

    return rest_of_epilogue(code, info.frame_register, leaves)


def _code(memory: ReadsMemory, address: int) -> bytes:
    """The instruction bytes at `address`, as many as are in RAM."""
    first = min(CODE_BYTES, _PAGE - address % _PAGE)
    try:
        code = memory.read(address, first)
    except UnreadableMemoryError:
        return b""
    try:
        return code + memory.read(address + first, CODE_BYTES - first)
    except UnreadableMemoryError:
        return code


def _carry_out(memory: ReadsMemory, state: dict[str, int], rest: EpilogueRest) -> Unwound:
    if rest.release is not None:
        state["rsp"] = (state[REGISTERS[rest.release.base]] + rest.release.amount) & _MASK
    for number in rest.pops:
        value = _u64(memory, state["rsp"])
        state["rsp"] = (state["rsp"] + 8) & _MASK
        state[REGISTERS[number]] = value
    if rest.machine_frame:
        return _machine_frame(memory, state, with_error_code=False)
    _return(memory, state)
    return Unwound(state, "epilogue")


def _pop_rest(table: FunctionTable, memory: ReadsMemory, state: dict[str, int], info: UnwindInfo, into: int) -> Unwound:
    """Carry out a version 2 epilogue from `into` bytes behind its start: it pops what the prologue pushed.

    The codes tell it all, no instruction is read: a pop is one byte long, of r8 to r15 two.
    """
    codes = list(info.codes)
    for _ in range(MOST_CHAINED):
        if info.chained is None:
            break
        info = table.info(info.chained, memory)
        codes += info.codes
    at, begun = 0, False
    for code in codes:
        if code.op is Op.PUSH_MACHFRAME:
            return _machine_frame(memory, state, with_error_code=False)
        if code.op is Op.PUSH_NONVOL:
            begun = True
            if at >= into:
                value = _u64(memory, state["rsp"])
                state["rsp"] = (state["rsp"] + 8) & _MASK
                state[REGISTERS[code.info]] = value
            at += 1 + (code.info >= 8)
        elif begun and code.op is Op.ALLOC_SMALL and code.value == 8:  # pushfq, undone by popfq
            if at >= into:
                state["rsp"] = (state["rsp"] + 8) & _MASK
            at += 1
    _return(memory, state)
    return Unwound(state, "epilogue")


def _frame_base(state: Mapping[str, int], info: UnwindInfo, into: int) -> int:
    """What saved registers are counted from: the frame register once the prologue has set it, else rsp."""
    if info.frame_register:
        is_set = into >= info.prologue or info.chained is not None
        for code in info.codes:
            if code.op in (Op.SET_FPREG, Op.SET_FPREG_LARGE):
                is_set = is_set or into >= code.offset
        if is_set:
            return state[REGISTERS[info.frame_register]] - info.frame_offset
    return state["rsp"]


def _undo(
    table: FunctionTable,
    memory: ReadsMemory,
    state: dict[str, int],
    info: UnwindInfo,
    into: int,
) -> Unwound:
    """Undo the codes of a function at or before `into` (bytes from its start), then those that it is chained to."""
    base = _frame_base(state, info, into)
    for _ in range(MOST_CHAINED):
        for code in info.codes:
            if into < code.offset:
                continue
            match code.op:
                case Op.PUSH_NONVOL:
                    value = _u64(memory, state["rsp"])
                    state["rsp"] += 8
                    state[REGISTERS[code.info]] = value
                case Op.ALLOC_SMALL | Op.ALLOC_LARGE:
                    state["rsp"] += code.value
                case Op.SET_FPREG | Op.SET_FPREG_LARGE:
                    state["rsp"] = state[REGISTERS[info.frame_register]] - info.frame_offset
                case Op.SAVE_NONVOL | Op.SAVE_NONVOL_FAR:
                    state[REGISTERS[code.info]] = _u64(memory, base + code.value)
                case Op.SAVE_XMM128 | Op.SAVE_XMM128_FAR:
                    saved = memory.read((base + code.value) & _MASK, 16)
                    state[f"xmm{code.info}"] = int.from_bytes(saved, "little")
                case Op.PUSH_MACHFRAME:
                    return _machine_frame(memory, state, with_error_code=bool(code.info))
                case Op.EPILOG | Op.SPARE:
                    pass
            state["rsp"] &= _MASK
        if info.chained is None:
            _return(memory, state)
            return Unwound(state, "unwind data")
        info, into = table.info(info.chained, memory), 1 << 32
    raise FormatError(f"unwind data in the image at {table.base:#x} is chained more than {MOST_CHAINED} times")


def _machine_frame(memory: ReadsMemory, state: dict[str, int], *, with_error_code: bool) -> Unwound:
    """rip, cs, eflags, rsp, ss as the processor pushed them."""
    frame = memory.read((state["rsp"] + 8 * with_error_code) & _MASK, 40)
    rip, cs, eflags, rsp, ss = (int.from_bytes(frame[at : at + 8], "little") for at in range(0, 40, 8))
    state |= {"rip": rip, "rsp": rsp, "eflags": eflags, "cs": cs & 0xFFFF, "ss": ss & 0xFFFF}
    return Unwound(state, "machine frame", user=cs & 3 == 3)
