"""x64 unwind data: `RUNTIME_FUNCTION` and `UNWIND_INFO`, versions 1 and 2, read from an image in memory.

Format: https://learn.microsoft.com/cpp/build/exception-handling-x64. Version 2 (its `UWOP_EPILOG` codes) is described
by LLVM's Win64EH.h and by .NET's unwinder_amd64.cpp. RVAs and sizes are in bytes; every count is checked against the
bytes that are there, since the guest wrote them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum

from coldframe.capabilities import ReadsMemory
from coldframe.errors import FormatError, UnreadableMemoryError
from coldframe.windows.pe import EXCEPTION, PeImage

REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
"""General registers by the number that unwind codes and instructions give them."""

CHAINED = 4
"""UNW_FLAG_CHAININFO: a RUNTIME_FUNCTION follows the codes."""

_ENTRY = struct.Struct("<III")
_MOST_FUNCTIONS = 1 << 21
_WHOLE_TABLE = 1 << 24


class Op(IntEnum):
    """What a prologue instruction did (`UWOP_*`)."""

    PUSH_NONVOL = 0
    ALLOC_LARGE = 1
    ALLOC_SMALL = 2
    SET_FPREG = 3
    SAVE_NONVOL = 4
    SAVE_NONVOL_FAR = 5
    EPILOG = 6
    SPARE = 7
    SAVE_XMM128 = 8
    SAVE_XMM128_FAR = 9
    PUSH_MACHFRAME = 10
    SET_FPREG_LARGE = 11


_SLOTS = {
    Op.ALLOC_LARGE: 2,
    Op.SAVE_NONVOL: 2,
    Op.SAVE_NONVOL_FAR: 3,
    Op.SPARE: 3,
    Op.SAVE_XMM128: 2,
    Op.SAVE_XMM128_FAR: 3,
    Op.SET_FPREG_LARGE: 3,
}


@dataclass(frozen=True, slots=True)
class RuntimeFunction:
    """One entry of `.pdata`: code from RVA `begin` up to `end`, described at RVA `unwind`."""

    begin: int
    end: int
    unwind: int


@dataclass(frozen=True, slots=True)
class Code:
    """One unwind code.

    `offset` is where in the function the prologue instruction ends; `info` a register number or, for a machine frame,
    whether an error code lies on it; `value` the operand in bytes (size of an allocation, offset of a save).
    """

    offset: int
    op: Op
    info: int
    value: int


@dataclass(frozen=True, slots=True)
class Epilogue:
    """A version 2 epilogue: `size` bytes of code, `before_end` bytes in front of the function's end."""

    before_end: int
    size: int


@dataclass(frozen=True, slots=True)
class UnwindInfo:
    """A parsed `UNWIND_INFO`. `frame_register` is 0 for none; `frame_offset` is in bytes."""

    version: int
    flags: int
    prologue: int
    frame_register: int
    frame_offset: int
    codes: tuple[Code, ...]
    epilogues: tuple[Epilogue, ...]
    chained: RuntimeFunction | None


def parse_unwind_info(memory: ReadsMemory, address: int) -> UnwindInfo:
    """Read the `UNWIND_INFO` at `address`; raises `FormatError`, `UnreadableMemoryError`."""
    first, prologue, count, frame = memory.read(address, 4)
    version, flags = first & 7, first >> 3
    if version not in (1, 2):
        raise FormatError(f"unwind data at {address:#x} is of version {version}, expected 1 or 2")
    data = memory.read(address + 4, 2 * count)
    codes, epilogues = _codes(data, version, address)
    chained = None
    if flags & CHAINED:
        chained = RuntimeFunction(*_ENTRY.unpack(memory.read(address + 4 + 2 * (count + (count & 1)), _ENTRY.size)))
    frame_offset = 16 * (frame >> 4)
    for code in codes:
        if code.op is Op.SET_FPREG_LARGE:
            frame_offset = code.value
    return UnwindInfo(version, flags, prologue, frame & 15, frame_offset, codes, epilogues, chained)


def _codes(data: bytes, version: int, address: int) -> tuple[tuple[Code, ...], tuple[Epilogue, ...]]:
    codes: list[Code] = []
    epilogues: list[Epilogue] = []
    at, epilogue_size = 0, None
    while at < len(data):
        offset, number, info = data[at], data[at + 1] & 15, data[at + 1] >> 4
        try:
            op = Op(number)
        except ValueError:
            raise FormatError(f"unwind data at {address:#x} has code {number}, which no version defines") from None
        if op is Op.EPILOG and version == 2:
            if epilogue_size is None:  # the first gives the size of all, and whether one ends the function
                epilogue_size = offset
                if info & 1:
                    epilogues.append(Epilogue(offset, offset))
            elif before_end := offset | info << 8:  # 0 pads to an even number of codes
                epilogues.append(Epilogue(before_end, epilogue_size))
            at += 2
            continue
        # UWOP_SAVE_XMM of the oldest version 1 images took two slots and saved nothing we restore
        slots = 2 if op is Op.EPILOG else _SLOTS.get(op, 1) + (op is Op.ALLOC_LARGE and info != 0)
        if at + 2 * slots > len(data):
            raise FormatError(f"unwind data at {address:#x} ends within code {op.name}")
        codes.append(Code(offset, op, info, _operand(op, info, data[at + 2 : at + 2 * slots])))
        at += 2 * slots
    return tuple(codes), tuple(epilogues)


def _operand(op: Op, info: int, operand: bytes) -> int:
    number = int.from_bytes(operand, "little")
    match op:
        case Op.ALLOC_SMALL:
            return 8 * info + 8
        case Op.ALLOC_LARGE:
            return number if info else 8 * number
        case Op.SAVE_NONVOL:
            return 8 * number
        case Op.SAVE_XMM128 | Op.SET_FPREG_LARGE:
            return 16 * number
        case _:
            return number


class FunctionTable:
    """The `.pdata` of one image at `base`: which function an RVA lies in, and its unwind data.

    Read from `memory` as it is asked for; what was read is kept, since an image does not change it. A table of which
    parts are not in RAM is searched entry by entry, and raises `UnreadableMemoryError` only for an entry that it needs.
    """

    def __init__(self, memory: ReadsMemory, base: int) -> None:
        self._memory = memory
        self.base = base
        image = PeImage.read(memory, base)
        directory = image.directory(EXCEPTION)
        rva, size = directory if directory is not None else (0, 0)
        self.size = image.size
        self._rva = rva
        self._count = min(size // _ENTRY.size, _MOST_FUNCTIONS)
        self._begins: list[int] | None = None
        self._table = b""
        self._infos: dict[int, UnwindInfo] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> RuntimeFunction:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if self._table:
            return RuntimeFunction(*_ENTRY.unpack_from(self._table, index * _ENTRY.size))
        entry = self._memory.read(self.base + self._rva + index * _ENTRY.size, _ENTRY.size)
        return RuntimeFunction(*_ENTRY.unpack(entry))

    def find(self, rva: int, memory: ReadsMemory | None = None) -> RuntimeFunction | None:
        """The function whose code holds `rva`, or None (a leaf function has no entry).

        An entry whose unwind RVA is odd refers to another entry (`RUNTIME_FUNCTION_INDIRECT`), which is returned.
        `memory` is where to read from when this call should use another address space than the table was made with.
        """
        if memory is not None:
            self._memory = memory
        if self._begins is None:
            self._load()
        index = self._bisect(rva) if self._begins is None else bisect_right(self._begins, rva) - 1
        if index < 0:
            return None
        function = self[index]
        if not function.begin <= rva < function.end:
            return None
        if function.unwind & 1:
            return RuntimeFunction(*_ENTRY.unpack(self._memory.read(self.base + (function.unwind & ~1), _ENTRY.size)))
        return function

    def info(self, function: RuntimeFunction, memory: ReadsMemory | None = None) -> UnwindInfo:
        """The unwind data of `function`; raises `FormatError`, `UnreadableMemoryError`."""
        if memory is not None:
            self._memory = memory
        info = self._infos.get(function.unwind)
        if info is None:
            if not 0 < function.unwind < self.size:
                raise FormatError(
                    f"unwind data of the function at {self.base + function.begin:#x} is said to be at RVA"
                    f" {function.unwind:#x}, outside of the image of {self.size:#x} bytes"
                )
            info = self._infos[function.unwind] = parse_unwind_info(self._memory, self.base + function.unwind)
        return info

    def primary(self, function: RuntimeFunction, memory: ReadsMemory | None = None) -> RuntimeFunction:
        """The function that `function` is chained to, or itself; raises `FormatError` on a chain without end."""
        for _ in range(MOST_CHAINED):
            chained = self.info(function, memory).chained
            if chained is None:
                return function
            function = chained
        raise FormatError(f"unwind data at {self.base + function.unwind:#x} is chained more than {MOST_CHAINED} times")

    def _load(self) -> None:
        if not self._count or self._count * _ENTRY.size > _WHOLE_TABLE:
            return
        try:
            table = self._memory.read(self.base + self._rva, self._count * _ENTRY.size)
        except UnreadableMemoryError:
            return
        self._table = table
        self._begins = [begin for begin, _, _ in _ENTRY.iter_unpack(table)]

    def _bisect(self, rva: int) -> int:
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if rva < self[middle].begin:
                high = middle
            else:
                low = middle + 1
        return low - 1


MOST_CHAINED = 32
"""How many chained entries are followed (Windows' own UNWIND_CHAIN_LIMIT)."""
