"""Compiled symbols on disk, so that the second load of a PDB or ISF file is a memory map.

One table (see `tables`) for each source file, under `$XDG_CACHE_HOME/coldframe`, in a folder named for the version of
the format. A table says which file it was made from, of what size and time; when any of it differs, or the table is
damaged, it is made anew. A cache that cannot be written is done without.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from pathlib import Path

from coldframe.cachefolder import default_folder
from coldframe.errors import FormatError
from coldframe.symbols import cabinet, msf
from coldframe.symbols.files import atomic_write
from coldframe.symbols.isf import compile_isf
from coldframe.symbols.model import SymbolFile
from coldframe.symbols.pdb import compile_pdb, compile_pdb_data
from coldframe.symbols.tables import VERSION, open_table, table_meta


def compile_file(path: Path) -> bytes:
    """The compiled table of a PDB, a compressed PDB, an ISF file or an image with symbols in it, told by content.

    Raises `FormatError`.
    """
    with path.open("rb") as stream:
        start = stream.read(len(msf.MAGIC))
    if start.startswith(cabinet.MAGIC):
        name = f"{path.name[:-1]}b" if path.name.endswith("_") else path.name
        return compile_pdb_data(memoryview(cabinet.unpack(path)), name, str(path))
    if start.startswith((b"\xfd7zXZ\0", b"\x1f\x8b")) or start.lstrip()[:1] == b"{":
        return compile_isf(path)
    if start.startswith(b"MZ"):
        from coldframe.symbols.coff import compile_coff  # noqa: PLC0415 - few symbols come in an image

        return compile_coff(path)
    return compile_pdb(path)


class TableCache:
    """Loads symbol files through tables kept in `folder` (default: `default_folder()`)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def load(self, path: str | Path) -> SymbolFile:
        """The symbols in the PDB or ISF file at `path`: mapped from the cache, or compiled and put there.

        Raises `FormatError` when the file is damaged, `OSError` when it cannot be read.
        """
        path = Path(path)
        stamp = _stamp(path)
        place = self._place(path)
        found = _open(place, path, stamp) if place else None
        if found is None:
            from coldframe.symbols.build import with_meta  # noqa: PLC0415 - what is in the cache does without

            table = with_meta(compile_file(path), {"source": stamp})
            if place is not None and _write(place, table):
                found = _open(place, path, stamp)
            found = found or open_table(table, str(path))
        return found

    def _place(self, path: Path) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        return self.folder / f"tables-{VERSION}" / f"{name}.sym"


def _stamp(path: Path) -> str:
    """What changes when the file does."""
    told = path.stat()
    return json.dumps([str(path.absolute()), told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino])


def _open(place: Path, path: Path, stamp: str) -> SymbolFile | None:
    """The table at `place` when it is whole and of the source as it now is."""
    try:
        with place.open("rb") as stream:
            mapped = _map(stream.fileno())
        found = open_table(mapped, str(path), where=str(place))
    except (OSError, ValueError, FormatError):
        return None
    return found if table_meta(found).get("source") == stamp else None


def _map(descriptor: int) -> mmap.mmap:
    """The file as memory; where Python can, no descriptor is kept open for it (a guest has hundreds of modules)."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _write(place: Path, table: bytes) -> bool:
    try:
        atomic_write(place, table)
    except OSError:
        return False
    return True
