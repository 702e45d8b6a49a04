"""Kernels told in a few lines: the structures that tests use, a field a line, and symbols laid out in a made-up image.

A file of `tests/builder/kernels32` has a line for each structure (`_NAME SIZE`, `union _NAME SIZE`) and below it its
fields: `OFFSET NAME TYPE`, where TYPE is `u32`, `i16`, `void*`, `_NAME*`, `u8[16]`, `u32:5:2` (two bits from bit 5).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from coldframe.symbols import SymbolFile, load_isf

FOLDER = Path(__file__).parent / "kernels32"
NT52, SEVEN_PAE = FOLDER / "nt52.txt", FOLDER / "7pae.txt"
SYMBOLS = (
    *(
        "KiTrap0E",
        "NtWriteFile",
        "NtReadFile",
        "KiSwapContext",
        "NtBuildNumber",
        "NtBuildLab",
        "PsInitialSystemProcess",
    ),
    *("PsActiveProcessHead", "PsLoadedModuleList", "MmSystemRangeStart", "MmHighestUserAddress", "MmPagedPoolStart"),
    *("MmSubsectionBase", "MmNonPagedPoolEnd", "MmPagingFile", "PspCidTable", "ObpKernelHandleTable"),
    *("ObpRootDirectoryObject", "KiProcessorBlock", "KdVersionBlock", "KiBugCheckData"),
)
FIRST_SYMBOL, BETWEEN_SYMBOLS = 0x50000, 0x300
GUID = "5A2F" * 8
_BASES = {"void": (0, "void", False), "pointer": (4, "int", False)}
_BASES |= {f"{sign}{8 * size}": (size, "int", sign == "i") for sign in "ui" for size in (1, 2, 4, 8)}


def isf(path: Path, *, pdb: str, symbols: Iterable[str] = SYMBOLS) -> dict[str, object]:
    """The kernel in that file as an ISF document."""
    records: dict[str, dict] = {}
    fields: dict[str, object] = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if line[0] != " ":
            fields = {}
            kind = "union" if words[0] == "union" else "struct"
            records[words[-2]] = {"kind": kind, "size": int(words[-1], 16), "fields": fields}
        else:
            fields[words[1]] = {"offset": int(words[0], 16), "type": words[2]}
    for record in records.values():
        for field in record["fields"].values():
            field["type"] = _type(field["type"], records)
    more = ["ObTypeIndexTable", "ObpInfoMaskToOffset"] if "TypeIndex" in records["_OBJECT_HEADER"]["fields"] else []
    places = {
        name: {"address": FIRST_SYMBOL + number * BETWEEN_SYMBOLS} for number, name in enumerate([*symbols, *more])
    }
    bases = {
        name: {"kind": kind, "size": size, "signed": signed, "endian": "little"}
        for name, (size, kind, signed) in _BASES.items()
    }
    told = {"GUID": GUID, "age": 1, "database": pdb, "machine_type": 0x14C}
    producer = {"name": "tests", "version": "1", "datetime": "2026-01-01T00:00:00+00:00"}
    return {
        "metadata": {"format": "6.1.0", "producer": producer, "windows": {"pdb": told}},
        "base_types": bases,
        "user_types": records,
        "enums": {},
        "symbols": places,
    }


def _type(text: str, records: dict[str, dict]) -> dict[str, object]:
    if text.endswith("*"):
        return {"kind": "pointer", "subtype": _type(text[:-1], records)}
    array = re.fullmatch(r"(.*)\[(\d+)\]", text)
    if array:
        return {"kind": "array", "count": int(array[2]), "subtype": _type(array[1], records)}
    if ":" in text:
        base, position, length = text.split(":")
        unit = {"kind": "base", "name": base}
        return {"kind": "bitfield", "bit_position": int(position), "bit_length": int(length), "type": unit}
    if text == "code":
        return {"kind": "function"}
    if text in _BASES:
        return {"kind": "base", "name": text}
    return {"kind": records[text]["kind"] if text in records else "struct", "name": text}


def write_isf(path: Path, kernel: Path, **more) -> Path:
    """That document as a file at `path`, for `--symbols`."""
    path.write_text(json.dumps(isf(kernel, **more)))
    return path


@cache
def compact_kernel(path: Path, folder: Path, pdb: str = "ntkrnlpa.pdb") -> SymbolFile:
    """The kernel in that file; `folder` takes its ISF file."""
    return load_isf(write_isf(folder / f"{path.stem}.json", path, pdb=pdb))
