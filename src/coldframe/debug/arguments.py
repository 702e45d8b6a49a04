"""The arguments of a function that a vCPU stands at the first instruction of, by the x64 calling convention.

The first four are in rcx, rdx, r8 and r9, the others on the stack above the return address and its 32 bytes of home
space (https://learn.microsoft.com/cpp/build/x64-calling-convention).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coldframe.errors import UsageError

_BY_REGISTER = ("rcx", "rdx", "r8", "r9")
_MASK = (1 << 64) - 1
MOST_ARGUMENTS = 64


class _Memory(Protocol):
    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Arguments:
    """`args[i]` is argument number i (from 0) as an unsigned number; setting it changes the guest.

    `widths` are the arguments' sizes in bits as far as they are known: a 32-bit argument's slot has arbitrary bits
    above it, which are taken away; what is not known has 64. Right only before the function's first instruction has
    run. Reading raises `UnreadableMemoryError` where the stack is not in RAM. Setting writes one register or eight
    bytes of stack; on error nothing was written.
    """

    registers: Mapping[str, int]
    memory: _Memory
    put: Callable[[Mapping[str, int]], None]
    widths: Sequence[int] = ()

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < MOST_ARGUMENTS:
            raise IndexError(f"argument {index}: expected 0 to {MOST_ARGUMENTS - 1}")
        if index < len(_BY_REGISTER):
            value = self.registers[_BY_REGISTER[index]]
        else:
            value = int.from_bytes(self.memory.read(self._slot(index), 8), "little")
        return value & (1 << self.widths[index]) - 1 if index < len(self.widths) else value

    def __setitem__(self, index: int, value: int) -> None:
        if not 0 <= index < MOST_ARGUMENTS:
            raise IndexError(f"argument {index}: expected 0 to {MOST_ARGUMENTS - 1}")
        if not -(1 << 63) <= value <= _MASK:
            raise UsageError(f"argument {index} cannot be {value:#x}: it has 64 bits")
        if index < len(_BY_REGISTER):
            self.put({_BY_REGISTER[index]: value & _MASK})
        else:
            self.memory.write(self._slot(index), (value & _MASK).to_bytes(8, "little"))

    def _slot(self, index: int) -> int:
        return (self.registers["rsp"] + 8 + 8 * index) & _MASK
