"""The types of one kernel with the PTEs of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from coldframe.symbols.model import Enum, Record, SymbolFile, Types


class Merged(Types):
    """`base`, but the structures of `other` whose names begin with `_MMPTE`."""

    def __init__(self, base: Types, other: Types) -> None:
        self.pointer_size = base.pointer_size
        self._base, self._other = base, other

    def find(self, name: str) -> Record | Enum | None:
        return (self._other if name.startswith("_MMPTE") else self._base).find(name)

    def names(self) -> Iterator[str]:
        return self._base.names()

    @classmethod
    def ptes_of(cls, symbol_file: SymbolFile, other: SymbolFile) -> SymbolFile:
        return replace(symbol_file, types=cls(symbol_file.types, other.types))
