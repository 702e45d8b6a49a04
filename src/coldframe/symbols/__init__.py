"""Symbols and types of Windows modules: PDB and ISF files, symbol stores, the on-disk cache."""

from pathlib import Path

from coldframe.symbols.cache import TableCache
from coldframe.symbols.isf import load_isf, write_isf
from coldframe.symbols.model import PdbIdentity, SymbolFile, Symbols, Types
from coldframe.symbols.pdb import load_pdb, read_identity
from coldframe.symbols.store import SymbolStore

__all__ = [
    "PdbIdentity",
    "SymbolFile",
    "SymbolStore",
    "Symbols",
    "TableCache",
    "Types",
    "load_isf",
    "load_pdb",
    "load_symbols",
    "read_identity",
    "write_isf",
]


def load_symbols(path: str | Path) -> SymbolFile:
    """The symbols in the PDB, compressed PDB, ISF file or MinGW image at `path`, through the on-disk cache.

    Raises `FormatError` when the file is damaged, `OSError` when it cannot be read.
    """
    return TableCache().load(path)
