"""The real kernels' types that tests are run over: `../shared/symbols`, and the folder that COLDFRAME_ISF_DIR names."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from coldframe.symbols import SymbolFile, load_isf

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared" / "symbols"


def kernel_files() -> list[Path]:
    """ISF files of kernels, by name; empty where there are none."""
    folders = [SHARED / "ntkrnlmp.pdb"]
    more = os.environ.get("COLDFRAME_ISF_DIR")
    if more:
        folders.append(Path(more))
    found = {path.name: path for folder in folders for path in folder.rglob("*.json*") if path.is_file()}
    return [found[name] for name in sorted(found)]


@cache
def kernel(path: Path) -> SymbolFile:
    """A kernel's symbols; kept, since many tests share one."""
    return load_isf(path)
