"""Reading PDB files: https://llvm.org/docs/PDB/index.html.

`load_pdb` reads the whole file once and compiles its types and symbols into a table; later loads through the cache map
that table (see `cache`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldframe.errors import FormatError
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.symbols.msf import Msf
from coldframe.symbols.tables import open_table

_INFO = struct.Struct("<III16s")  # version, signature, age, GUID
_DBI_AGE = struct.Struct("<8xI")


def load_pdb(path: str | Path) -> SymbolFile:
    """Read a PDB, whole, into memory. Raises `FormatError`, or `OSError` when it cannot be read."""
    return open_table(compile_pdb(path), str(path))


def read_identity(path: str | Path) -> PdbIdentity:
    """Whose a PDB is, by its headers alone (a few blocks are read). Raises `FormatError`."""
    path = Path(path)
    with mapped(path) as data:
        msf = Msf(data, str(path))
        guid, age = _guid_and_age(msf)
        head = msf.stream(3, _DBI_AGE.size)
        return PdbIdentity(path.name, guid, _DBI_AGE.unpack(head)[0] if len(head) == _DBI_AGE.size else age)


def compile_pdb(path: str | Path, name: str | None = None) -> bytes:
    """The compiled table of a PDB (see `tables`); `name` is what the identity calls it, by default the file's name."""
    path = Path(path)
    with mapped(path) as data:
        return compile_pdb_data(data, name or path.name, str(path))


def compile_pdb_data(data: memoryview, name: str, where: str) -> bytes:
    """The compiled table of a PDB that lies in memory. Raises `FormatError`, its message starting with `where`."""
    from coldframe.symbols.build import TableBuilder  # noqa: PLC0415 - what is in the cache does without
    from coldframe.symbols.dbi import DebugInfo  # noqa: PLC0415
    from coldframe.symbols.tpi import TypeStream  # noqa: PLC0415

    msf = Msf(data, where)
    guid, age = _guid_and_age(msf)
    debug = DebugInfo(msf, where)
    builder = TableBuilder()
    TypeStream(msf.stream(2), builder, debug.pointer_size, f"{where}: type stream").compile()
    identity = PdbIdentity(name, guid, age if debug.age is None else debug.age)
    return builder.build(identity, debug.pointer_size, debug.symbols())


def _guid_and_age(msf: Msf) -> tuple[str, int]:
    info = msf.stream(1, _INFO.size)
    if len(info) < _INFO.size:
        raise FormatError(f"{msf.where}: no PDB information stream, so no GUID")
    _, _, age, guid = _INFO.unpack(info)
    return guid_text(guid), age


def guid_text(guid: bytes) -> str:
    """A GUID of 16 bytes as symbol stores write it: 32 upper-case hex digits."""
    first, second, third = struct.unpack_from("<IHH", guid)
    return f"{first:08X}{second:04X}{third:04X}{guid[8:].hex().upper()}"


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The file's bytes, as long as the block lasts. Raises `FormatError` for an empty file."""
    with path.open("rb") as stream:
        try:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise FormatError(f"{path}: an empty file, not a PDB") from error
    with mapped, memoryview(mapped) as view:
        yield view
