"""Where symbols are looked for, by the identity that a module's CodeView record names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from coldframe.errors import SymbolFileNotFoundError
from coldframe.symbols.isf import load_isf
from coldframe.symbols.model import PdbIdentity, SymbolFile


class SymbolStore:
    """ISF and PDB files and the folders that hold them."""

    def __init__(self, paths: Iterable[str | Path] = (), nt_symbol_path: str | None = None) -> None:
        self.paths = [Path(path) for path in paths]
        self.nt_symbol_path = nt_symbol_path

    def find(self, identity: PdbIdentity) -> SymbolFile:
        """The symbols of `identity`; raises `SymbolFileNotFoundError`."""
        for path in self.paths:
            for candidate in path.glob(f"**/{identity.guid}-{identity.age}.json*"):
                return load_isf(candidate)
        raise SymbolFileNotFoundError(f"no symbols for {identity}; looked in {', '.join(map(str, self.paths))}")
