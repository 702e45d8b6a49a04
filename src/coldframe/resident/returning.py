"""Where a function of the kernel returns: a RET of its own, at the beginning of an instruction that it can reach.

A byte 0xC3 may be the middle of an instruction, or belong to another function. So the function's instructions are
decoded along its control flow, from its entry, within the bounds that the image's unwind data gives it; parts that the
compiler placed elsewhere are chained to it there.
"""

from __future__ import annotations

from iced_x86 import Code, Decoder, FlowControl, Instruction

from coldframe.capabilities import ReadsMemory
from coldframe.debug.unwind_info import FunctionTable, RuntimeFunction
from coldframe.errors import ColdframeError, FormatError, UnreadableMemoryError

_MOST_INSTRUCTIONS = 20_000
_LONGEST_PART = 1 << 16
_CONDITIONAL = (FlowControl.CONDITIONAL_BRANCH, FlowControl.XBEGIN_XABORT_XEND)


class NoReturnError(ColdframeError):
    """No RET of the function could be found; the message says what was decoded."""


def find_return(memory: ReadsMemory, base: int, address: int) -> int:
    """The address of a plain RET of the function at `address`, in the image at `base`; the first that is reached.

    Raises `NoReturnError` when there is none in what is in RAM.
    """
    table = FunctionTable(memory, base)
    try:
        function = table.find(address - base, memory)
    except (UnreadableMemoryError, FormatError) as error:
        raise NoReturnError(f"the unwind data of the function at {address:#x}: {error}") from None
    if function is None or function.begin != address - base:
        raise NoReturnError(f"no unwind data says that a function begins at {address:#x}")
    walk = _Walk(memory, table, base, function)
    found = walk.first_return(address)
    if found is None:
        raise NoReturnError(
            f"no RET among the {walk.seen_count} instructions of the function at {address:#x} that are in RAM"
        )
    return found


class _Walk:
    """One walk along a function's control flow."""

    def __init__(self, memory: ReadsMemory, table: FunctionTable, base: int, function: RuntimeFunction) -> None:
        self._memory = memory
        self._table = table
        self._base = base
        self._primary = function.begin
        self._parts: dict[int, bytes] = {}
        self._seen: set[int] = set()

    @property
    def seen_count(self) -> int:
        return len(self._seen)

    def first_return(self, entry: int) -> int | None:
        """Breadth first over branches, so that the RET nearest to the entry is found."""
        waiting = [entry]
        while waiting and len(self._seen) < _MOST_INSTRUCTIONS:
            address = waiting.pop(0)
            part = self._part(address)
            if part is None:
                continue
            start, code = part
            decoder = Decoder(64, code[address - start :], ip=address)
            for instruction in decoder:
                if instruction.is_invalid or instruction.ip in self._seen:
                    break
                self._seen.add(instruction.ip)
                if instruction.code == Code.RETNQ:
                    return int(instruction.ip)
                target = _target(instruction)
                if target is not None:
                    waiting.append(target)
                if not _falls_through(instruction):
                    break
        return None

    def _part(self, address: int) -> tuple[int, bytes] | None:
        """The part of the function that holds `address`: its start and its bytes; None outside the function."""
        for start, code in self._parts.items():
            if start <= address < start + len(code):
                return start, code
        try:
            found = self._table.find(address - self._base, self._memory)
            if found is None or self._table.primary(found, self._memory).begin != self._primary:
                return None
        except (UnreadableMemoryError, FormatError):
            return None
        start, size = self._base + found.begin, min(found.end - found.begin, _LONGEST_PART)
        held = self._readable(start, size, address)
        if held is not None:
            self._parts[held[0]] = held[1]
        return held

    def _readable(self, start: int, size: int, address: int) -> tuple[int, bytes] | None:
        """The bytes around `address` that are in RAM, page by page."""
        try:
            return start, self._memory.read(start, size)
        except UnreadableMemoryError:
            pass
        first, end = max(start, address & ~0xFFF), min(start + size, (address & ~0xFFF) + 0x1000)
        try:
            return first, self._memory.read(first, end - first)
        except UnreadableMemoryError:
            return None


def _target(instruction: Instruction) -> int | None:
    """Where a near branch goes; None for every other instruction."""
    if instruction.flow_control in (*_CONDITIONAL, FlowControl.UNCONDITIONAL_BRANCH):
        target = int(instruction.near_branch_target)
        return target or None
    return None


def _falls_through(instruction: Instruction) -> bool:
    """Whether the next instruction may follow: also behind a call, though some do not come back."""
    return instruction.flow_control in (
        FlowControl.NEXT,
        FlowControl.CALL,
        FlowControl.INDIRECT_CALL,
        FlowControl.INTERRUPT,
        *_CONDITIONAL,
    )
