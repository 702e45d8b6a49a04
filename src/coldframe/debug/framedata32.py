"""Callers of 32-bit functions by the frame data of their PDB (see `symbols.framedata`): the compiler's own word.

A program assigns registers from registers, constants and memory: `^` reads a word, `@` rounds down to a multiple.
`.raSearch` is where the return address lies when the function's variables and saved registers, and the arguments of
the call that it is in, are taken off its stack. Source: the remarks of IDiaStackFrame and of `DIA SDK` on frame data
(https://learn.microsoft.com/visualstudio/debugger/debug-interface-access/idiaframedata-get-program).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

from coldframe.errors import ColdframeError
from coldframe.symbols.framedata import FrameData, FrameTable, load_frame_data
from coldframe.windows.module import Module

_MASK = 0xFFFF_FFFF
_EMPTY = FrameTable([])
_MOST_WORDS = 256
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "@": lambda a, b: a - a % b,
}


class FrameTables:
    """The frame data of modules, each read once."""

    def __init__(self) -> None:
        self._tables: WeakKeyDictionary[Module, FrameTable] = WeakKeyDictionary()

    def find(self, module: Module, address: int) -> FrameData | None:
        """What tells of the instruction at `address`; None also where there is no PDB."""
        table = self._tables.get(module)
        if table is None:
            try:
                table = load_frame_data(module.symbols.path)
            except (ColdframeError, OSError):
                table = _EMPTY
            self._tables[module] = table
        return table.find(address - module.base)


def run_program(
    data: FrameData, registers: Mapping[str, int], pushed: int, word: Callable[[int], int]
) -> dict[str, int] | None:
    """The caller's registers ("$eip", "$esp", "$ebp"); None where the program asks for what is not known.

    `registers` are the callee's, by such names; `pushed` is how many bytes of arguments lie on the stack for a call
    that has not returned; `word` reads four bytes of memory, and its errors are raised.
    """
    values = dict(registers)
    search = registers["$esp"] + data.local + data.saved + pushed
    values |= {".raSearch": search, ".raSearchStart": search}
    values |= {".cbSavedRegs": data.saved, ".cbLocals": data.local, ".cbParams": data.parameters}
    stack: list[str | int] = []

    def pop() -> int:
        last = stack.pop()
        return last if isinstance(last, int) else values[last]

    try:
        for token in data.program.split()[:_MOST_WORDS]:
            if token == "=":
                value, target = pop(), stack.pop()
                values[str(target)] = value & _MASK
            elif token == "^":
                stack.append(word(pop() & _MASK))
            elif token in _OPERATORS:
                second, first = pop(), pop()
                stack.append(_OPERATORS[token](first, second) & _MASK)
            else:
                stack.append(int(token) if token.isdigit() else token)
        return {name: values[name] for name in ("$eip", "$esp", "$ebp")}
    except (IndexError, KeyError, ZeroDivisionError):
        return None
