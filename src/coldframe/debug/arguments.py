"""The arguments of a function that a vCPU stands at the first instruction of, by its calling convention.

x64: the first four are in rcx, rdx, r8 and r9, the others on the stack above the return address and its 32 bytes of
home space (https://learn.microsoft.com/cpp/build/x64-calling-convention). x86, stdcall and cdecl alike: all on the
stack above the return address, four bytes each (https://learn.microsoft.com/cpp/cpp/stdcall); one of 64 bits takes two
numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, overload

from coldframe.errors import UsageError

_BY_REGISTER = ("rcx", "rdx", "r8", "r9")
_WORD_OF_X64 = 8


class _Memory(Protocol):
    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


class _Arrival(Protocol):
    @property
    def memory(self) -> _Memory: ...

    registers: Mapping[str, int]

    def write_registers(self, values: Mapping[str, int]) -> None: ...


class _Words(ABC):
    """Words of a stopped thread by number, singly or as slices with an end; setting one changes the guest."""

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self._read(number) for number in self._numbers(index)]
        return self._read(self._checked(index))

    @overload
    def __setitem__(self, index: int, value: int) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Sequence[int]) -> None: ...
    def __setitem__(self, index: int | slice, value: int | Sequence[int]) -> None:
        numbers = self._numbers(index) if isinstance(index, slice) else range(self._checked(index), index + 1)
        values = [value] if isinstance(value, int) else value
        if len(numbers) != len(values):
            raise UsageError(f"{len(numbers)} {self._called}s are not set by {len(values)} values")
        for number, one in zip(numbers, values, strict=True):
            bits = 8 * self.word
            if not -(1 << bits - 1) <= one < 1 << bits:
                raise UsageError(f"{self._called} {number} cannot be {one:#x}: it has {bits} bits")
            self._write(number, one & (1 << bits) - 1)

    def _numbers(self, wanted: slice) -> range:
        if wanted.stop is None:
            raise UsageError(f"how many {self._called}s there are is not known: name the end, [0:4]")
        return range(*wanted.indices(self._most))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self._most:
            raise IndexError(f"{self._called} {index}: expected 0 to {self._most - 1}")
        return index

    word: int
    _called: ClassVar[str]
    _most: ClassVar[int]

    @abstractmethod
    def _read(self, index: int) -> int: ...

    @abstractmethod
    def _write(self, index: int, value: int) -> None: ...


@dataclass(frozen=True)
class Arguments(_Words):
    """`args[i]` is argument number i (from 0) as an unsigned number, `args[a:b]` are several; setting them changes the
    guest.

    `widths` are the arguments' sizes in bits as far as they are known: a 32-bit argument's slot has arbitrary bits
    above it, which are taken away; what is not known has a whole word's. `word` is 8 bytes, or 4 on x86. Right only
    before the function's first instruction has run. Reading raises `UnreadableMemoryError` where the stack is not in
    RAM. Setting writes a register or a word of stack for each argument; on error those before the one named were
    written.
    """

    hit: _Arrival
    widths: Sequence[int] = ()
    word: int = _WORD_OF_X64

    _called = "argument"
    _most = 64

    def _read(self, index: int) -> int:
        if self._is_in_register(index):
            value = self.hit.registers[_BY_REGISTER[index]]
        else:
            value = int.from_bytes(self.hit.memory.read(self._slot(index), self.word), "little")
        return value & (1 << self.widths[index]) - 1 if index < len(self.widths) else value

    def _write(self, index: int, value: int) -> None:
        if self._is_in_register(index):
            self.hit.write_registers({_BY_REGISTER[index]: value})
        else:
            self.hit.memory.write(self._slot(index), value.to_bytes(self.word, "little"))

    def _is_in_register(self, index: int) -> bool:
        return index < len(_BY_REGISTER) and self.word == _WORD_OF_X64

    def _slot(self, index: int) -> int:
        return (self.hit.registers["rsp"] + self.word * (1 + index)) & (1 << 8 * self.word) - 1


@dataclass(frozen=True)
class StackSlots(_Words):
    """`stack[i]` is the word (8 bytes, 4 on x86) number i above the stack pointer, `stack[a:b]` are several; setting
    them changes the guest.

    At a function's first instruction `stack[0]` is the return address. Reading raises `UnreadableMemoryError` where the
    stack is not in RAM; setting raises `CapabilityError`, and then nothing was written behind it.
    """

    memory: _Memory
    pointer: int
    word: int = _WORD_OF_X64

    _called = "slot"
    _most = 1 << 16

    def _read(self, index: int) -> int:
        return int.from_bytes(self.memory.read(self._place(index), self.word), "little")

    def _write(self, index: int, value: int) -> None:
        self.memory.write(self._place(index), value.to_bytes(self.word, "little"))

    def _place(self, index: int) -> int:
        return (self.pointer + self.word * index) & (1 << 8 * self.word) - 1
