"""How long symbols take to load, cold and warm, and to look up.

`python benchmarks/symbols.py [FILE...]`: PDB or ISF files; by default ntdll and the largest kernel of
`../shared/symbols`, the kernel also written as a PDB of a real one's size (12 MB). Each figure is the best of several.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from coldframe.symbols import SymbolFile, TableCache, load_isf  # noqa: E402
from coldframe.symbols.cache import compile_file  # noqa: E402
from symbols import rewrite  # noqa: E402

SHARED = ROOT.parent / "shared" / "symbols"


def best(repeats: int, action: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.01 else f"{seconds * 1e3:.0f}"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(argument) for argument in sys.argv[1:]] or samples(Path(scratch))
        table = Table("file", "MB", "types", "symbols", "cold", "warm open", "symbol", "nearest", "fields", title="ms")
        for path in paths:
            cache = TableCache(Path(scratch) / "cache")
            cold = best(3, lambda path=path: compile_file(path))  # type: ignore[misc]
            cache.load(path)
            warm = best(20, lambda path=path, cache=cache: cache.load(path))  # type: ignore[misc]
            loaded = cache.load(path)
            name, rva = list(loaded.symbols.items())[len(list(loaded.symbols.items())) // 2]
            record = max(loaded.types.names(), key=lambda known: fields(loaded, known))
            table.add_row(
                path.name,
                f"{path.stat().st_size / 1e6:.1f}",
                str(len(list(loaded.types.names()))),
                str(len(list(loaded.symbols.items()))),
                milliseconds(cold),
                milliseconds(warm),
                milliseconds(best(20, lambda loaded=loaded, name=name: loaded.symbols.get(name))),  # type: ignore[misc]
                milliseconds(best(20, lambda loaded=loaded, rva=rva: loaded.symbols.nearest(rva + 1))),  # type: ignore[misc]
                f"{milliseconds(min(first_field(cache, path, record) for _ in range(20)))} ({record})",
            )
        Console(width=160 if not sys.stdout.isatty() else None).print(table)


def fields(loaded: SymbolFile, name: str) -> int:
    return len(getattr(loaded.types.find(name), "fields", ()))


def first_field(cache: TableCache, path: Path, record: str) -> float:
    """Seconds until a field of the largest record is known, after a fresh open."""
    types = cache.load(path).types
    start = time.perf_counter()
    found = types.record(record)
    types.field(record, next(iter(found.fields)))
    return time.perf_counter() - start


def samples(scratch: Path) -> list[Path]:
    """Files of the shared folder, and a PDB as large as a kernel's made from one of them."""
    kernels = sorted((SHARED / "ntkrnlmp.pdb").glob("*.json.xz"), key=lambda path: path.stat().st_size)
    found = [path for path in (SHARED / "ntdll.pdb" / "ntdll.pdb", *kernels[-1:]) if path.is_file()]
    if kernels:
        pdb = scratch / "ntkrnlmp.pdb"
        pdb.write_bytes(rewrite.pdb(load_isf(kernels[-1]), module_symbols=True, filling=5 << 20))
        found.append(pdb)
    if not found:
        sys.exit("benchmarks/symbols.py: expected files to load as arguments, or ../shared/symbols, found neither")
    return found


if __name__ == "__main__":
    main()
