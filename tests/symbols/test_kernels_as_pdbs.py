"""A real kernel's types and symbols, written as a PDB, read as they were."""

from __future__ import annotations

from pathlib import Path

from coldframe.symbols import load_isf, load_pdb
from symbols import rewrite


def test_a_kernel_written_as_a_pdb_reads_the_same(tmp_path: Path, kernels: list[Path]) -> None:
    source = load_isf(kernels[-1])
    path = tmp_path / "ntkrnlmp.pdb"
    path.write_bytes(rewrite.pdb(source, module_symbols=True))
    found = load_pdb(path)
    names = list(source.types.names())
    assert list(found.types.names()) == names
    for name in names:
        assert found.types.find(name) == source.types.find(name), name
    assert list(found.symbols.items()) == list(source.symbols.items())
