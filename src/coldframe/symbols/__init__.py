"""Symbols and types of Windows modules: PDB and ISF files, symbol stores, the on-disk cache."""

from coldframe.symbols.isf import load_isf, write_isf
from coldframe.symbols.model import PdbIdentity, SymbolFile, Symbols, Types
from coldframe.symbols.pdb import load_pdb, read_identity
from coldframe.symbols.store import SymbolStore

__all__ = [
    "PdbIdentity",
    "SymbolFile",
    "SymbolStore",
    "Symbols",
    "Types",
    "load_isf",
    "load_pdb",
    "read_identity",
    "write_isf",
]
