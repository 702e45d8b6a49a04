"""The real kernels' types that tests are run over: `../shared/symbols`, and the folder that COLDFRAME_ISF_DIR names.

Hundreds of kernels take minutes, so several runs can share them: with COLDFRAME_ISF_SHARE=2/3 a run takes the second
third of them, whatever their number (`scripts/soak-kernels` starts such runs).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from coldframe.symbols import SymbolFile, TableCache

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared" / "symbols"
X86 = 32
TABLES = TableCache(ROOT / "build" / "symbols")


def kernel_files(bits: int = 64) -> list[Path]:
    """ISF files of 64-bit or of 32-bit kernels, by name; empty where there are none.

    Those of 32-bit kernels have `x86` in their names or their folder's.
    """
    folders = [SHARED / "ntkrnlmp.pdb"]
    more = os.environ.get("COLDFRAME_ISF_DIR")
    if more:
        folders += [Path(folder) for folder in more.split(os.pathsep)]
    found = {path.name: path for folder in folders for path in folder.rglob("*.json*") if path.is_file()}
    found = {name: path for name, path in found.items() if ("x86" in f"{path.parent.name}/{name}") == (bits == X86)}
    part, _, parts = os.environ.get("COLDFRAME_ISF_SHARE", "1/1").partition("/")
    return [found[name] for name in sorted(found)][int(part) - 1 :: int(parts)]


@cache
def kernel(path: Path) -> SymbolFile:
    """A kernel's symbols; kept, since many tests share one."""
    return TABLES.load(path)
