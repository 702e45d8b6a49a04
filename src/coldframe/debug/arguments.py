"""The arguments of a function that a vCPU stands at the first instruction of, by its calling convention.

x64: the first four are in rcx, rdx, r8 and r9, the others on the stack above the return address and its 32 bytes of
home space (https://learn.microsoft.com/cpp/build/x64-calling-convention). x86, stdcall and cdecl alike: all on the
stack above the return address, four bytes each (https://learn.microsoft.com/cpp/cpp/stdcall); one of 64 bits takes two
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

from coldframe.errors import UsageError

_BY_REGISTER = ("rcx", "rdx", "r8", "r9")
_MASK = (1 << 64) - 1
_WORD_OF_X64 = 8
MOST_ARGUMENTS = 64
MOST_SLOTS = 1 << 16


class _Memory(Protocol):
    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


class _Arrival(Protocol):
    @property
    def memory(self) -> _Memory: ...

    registers: Mapping[str, int]

    def write_registers(self, values: Mapping[str, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Arguments:
    """`args[i]` is argument number i (from 0) as an unsigned number, `args[a:b]` are several; setting one changes the
    guest.

    `widths` are the arguments' sizes in bits as far as they are known: a 32-bit argument's slot has arbitrary bits
    above it, which are taken away; what is not known has a whole word's. `word` is 8 bytes, or 4 on x86. Right only
    before the function's first instruction has run. Reading raises `UnreadableMemoryError` where the stack is not in
    RAM. Setting writes one register or one word of stack; on error nothing was written.
    """

    hit: _Arrival
    widths: Sequence[int] = ()
    word: int = 8

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            if index.stop is None:
                raise UsageError("how many arguments there are is not known: name the end, args[0:4]")
            return [self[number] for number in range(*index.indices(MOST_ARGUMENTS))]
        if not 0 <= index < MOST_ARGUMENTS:
            raise IndexError(f"argument {index}: expected 0 to {MOST_ARGUMENTS - 1}")
        if self._is_in_register(index):
            value = self.hit.registers[_BY_REGISTER[index]]
        else:
            value = int.from_bytes(self.hit.memory.read(self._slot(index), self.word), "little")
        return value & (1 << self.widths[index]) - 1 if index < len(self.widths) else value

    def __setitem__(self, index: int, value: int) -> None:
        if not 0 <= index < MOST_ARGUMENTS:
            raise IndexError(f"argument {index}: expected 0 to {MOST_ARGUMENTS - 1}")
        bits = 8 * self.word
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise UsageError(f"argument {index} cannot be {value:#x}: it has {bits} bits")
        if self._is_in_register(index):
            self.hit.write_registers({_BY_REGISTER[index]: value & _MASK})
        else:
            self.hit.memory.write(self._slot(index), (value & (1 << bits) - 1).to_bytes(self.word, "little"))

    def _is_in_register(self, index: int) -> bool:
        return index < len(_BY_REGISTER) and self.word == _WORD_OF_X64

    def _slot(self, index: int) -> int:
        return (self.hit.registers["rsp"] + self.word * (1 + index)) & (1 << 8 * self.word) - 1


@dataclass(frozen=True, slots=True)
class StackSlots:
    """`stack[i]` is the word (8 bytes, 4 on x86) number i above the stack pointer; setting it changes the guest.

    At a function's first instruction `stack[0]` is the return address. Reading raises `UnreadableMemoryError` where the
    stack is not in RAM; setting raises `CapabilityError`, and then nothing was written.
    """

    memory: _Memory
    pointer: int
    word: int = 8

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(self.memory.read(self._place(index), self.word), "little")

    def __setitem__(self, index: int, value: int) -> None:
        bits = 8 * self.word
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise UsageError(f"a word of stack cannot be {value:#x}: it has {bits} bits")
        self.memory.write(self._place(index), (value & (1 << bits) - 1).to_bytes(self.word, "little"))

    def _place(self, index: int) -> int:
        if not 0 <= index < MOST_SLOTS:
            raise IndexError(f"word {index} of the stack: expected 0 to {MOST_SLOTS - 1}")
        return (self.pointer + self.word * index) & (1 << 8 * self.word) - 1
