"""A symbol file that has nothing, for a target of which something can be told without one.

What does ask for a name or a type is told why there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

from coldframe.errors import SymbolFileNotFoundError
from coldframe.symbols.model import Enum, PdbIdentity, Record, SymbolFile, Symbols, Types


class _NoTypes(Types):
    def __init__(self, reason: str, pointer_size: int) -> None:
        self._reason = reason
        self.pointer_size = pointer_size

    def find(self, name: str) -> Record | Enum | None:
        return None

    def names(self) -> Iterator[str]:
        return iter(())

    def record(self, name: str) -> Record:
        raise SymbolFileNotFoundError(f"this needs the kernel's types: {self._reason}")

    def field(self, name: str, path: str) -> NoReturn:
        raise SymbolFileNotFoundError(f"this needs the kernel's types: {self._reason}")


class _NoSymbols(Symbols):
    def __init__(self, reason: str) -> None:
        self._reason = reason

    def get(self, name: str) -> int | None:
        return None

    def nearest(self, rva: int) -> tuple[str, int] | None:
        return None

    def items(self) -> Iterable[tuple[str, int]]:
        return ()

    def __getitem__(self, name: str) -> int:
        raise SymbolFileNotFoundError(f"{name!r} needs the kernel's symbols: {self._reason}")


def without_symbols(reason: str, pointer_size: int) -> SymbolFile:
    """Symbols and types with nothing in them; `reason` says why."""
    return SymbolFile(PdbIdentity("", "", 0), _NoTypes(reason, pointer_size), _NoSymbols(reason), "")
