"""Frame data of 32-bit code, from a PDB: for each range of instructions a program that leads to the function's caller.

Source: FRAMEDATA in Microsoft's cvinfo.h (https://github.com/microsoft/microsoft-pdb), and where its stream and the
strings lie in LLVM's documentation of the DBI and PDB streams (https://llvm.org/docs/PDB/DbiStream.html,
https://llvm.org/docs/PDB/PdbStream.html).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coldframe.errors import FormatError
from coldframe.symbols.dbi import DebugInfo
from coldframe.symbols.msf import MAGIC, Msf
from coldframe.symbols.pdb import mapped

_RECORD = struct.Struct("<6I2HI")
_INFO_HEADER = 28
_NAMES = b"/names"
_STRINGS_SIGNATURE = 0xEFFE_EFFE
_STRINGS_HEADER = 12
_LONGEST_PROGRAM = 1 << 10


@dataclass(frozen=True, slots=True)
class FrameData:
    """How to leave a function from the `size` bytes of code at `rva`; all sizes in bytes.

    `local`, `saved` and `parameters` are what the function has on the stack of variables, saved registers and
    arguments. `program` is in postfix notation: `$T0 $ebp 4 + = $eip $T0 ^ = $esp $T0 4 + =`.
    """

    rva: int
    size: int
    local: int
    parameters: int
    saved: int
    program: str


class FrameTable:
    """The frame data of one image, its `records` by address.

    Of ranges that hold an address the one that begins last tells of it.
    """

    def __init__(self, records: Iterable[FrameData]) -> None:
        self.records = tuple(sorted(records, key=lambda record: record.rva))
        self._starts = [record.rva for record in self.records]

    def find(self, rva: int) -> FrameData | None:
        """What tells of the instruction at `rva`."""
        at = bisect_right(self._starts, rva) - 1
        found = self.records[at] if at >= 0 else None
        return found if found is not None and rva < found.rva + found.size else None


def load_frame_data(path: str | Path) -> FrameTable:
    """The frame data in the PDB at `path`; an empty table for another file, or a PDB of 64-bit code.

    Raises `FormatError` for a damaged one, `OSError` when it cannot be read.
    """
    path = Path(path)
    with mapped(path) as data:
        if bytes(data[: len(MAGIC)]) != MAGIC:
            return FrameTable([])
        msf = Msf(data, str(path))
        debug = DebugInfo(msf, str(path))
        records = msf.stream(debug.frame_data_stream)
        return FrameTable(_read(records, _strings(msf), debug) if records else [])


def _read(data: bytes, strings: bytes, debug: DebugInfo) -> list[FrameData]:
    found = []
    skipped = len(data) % _RECORD.size  # a pointer in front, as object files have it
    for rva, size, local, parameters, _, program, _, saved, _ in _RECORD.iter_unpack(data[skipped:]):
        text, _, _ = strings[program : program + _LONGEST_PROGRAM].partition(b"\0")
        place = debug.moved(rva)
        if text and place is not None:
            found.append(FrameData(place, size, local, parameters, saved, text.decode("ascii", "replace")))
    return found


def _strings(msf: Msf) -> bytes:
    """The text of the stream that is called /names."""
    data = msf.stream(_named_streams(msf).get(_NAMES, 0xFFFF))
    if len(data) < _STRINGS_HEADER or int.from_bytes(data[:4], "little") != _STRINGS_SIGNATURE:
        raise FormatError(f"{msf.where}: frame data whose strings are not there")
    return data[_STRINGS_HEADER:]


def _named_streams(msf: Msf) -> dict[bytes, int]:
    """The streams that the PDB stream's hash table names."""
    data = msf.stream(1)
    try:
        (length,) = struct.unpack_from("<I", data, _INFO_HEADER)
        names = data[_INFO_HEADER + 4 : _INFO_HEADER + 4 + length]
        at = _INFO_HEADER + 4 + length
        count, _ = struct.unpack_from("<II", data, at)
        at += 8
        for _ in ("present", "deleted"):
            (words,) = struct.unpack_from("<I", data, at)
            at += 4 + 4 * words
        pairs = struct.iter_unpack("<II", data[at : at + 8 * count])
        return {names[name : names.find(b"\0", name)]: stream for name, stream in pairs}
    except struct.error as error:
        raise FormatError(f"{msf.where}: the table of named streams is cut off: {error}") from error
