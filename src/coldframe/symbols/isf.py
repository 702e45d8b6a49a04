"""Volatility 3's Intermediate Symbol Format: reading `.json`, `.json.xz`, `.json.gz` and writing them.

The format: https://github.com/volatilityfoundation/volatility3/tree/develop/volatility3/schemas (6.1.0 and before have
what Windows needs). An ISF file made from a PDB keeps the PDB's identity in `metadata.windows.pdb`.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

from coldframe.errors import FormatError
from coldframe.symbols.files import atomic_write
from coldframe.symbols.model import (
    Array,
    Base,
    BitField,
    Enum,
    Function,
    PdbIdentity,
    Pointer,
    Record,
    Reference,
    SymbolFile,
    Type,
)
from coldframe.symbols.tables import encoded, open_table

SUFFIXES = (".json", ".json.xz", ".json.gz")

_MAX_JSON = 512 << 20  # the largest kernel's ISF has 7 MB
_MAX_DEPTH = 64
_FILE_NAME = re.compile(r"([0-9A-Fa-f]{32})-([0-9]+)\.json(?:\.xz|\.gz)?")
_MACHINES = {4: 0x014C, 8: 0x8664}
_BASE_KINDS = {"int", "float", "bool", "char", "void"}


def load_isf(path: str | Path) -> SymbolFile:
    """Read an ISF file, whole, into memory. Raises `FormatError`, or `OSError` when it cannot be read."""
    return open_table(compile_isf(path), str(path))


def identity_from_name(path: Path) -> PdbIdentity | None:
    """What the layout `ntkrnlmp.pdb/GUID-AGE.json.xz` says by the file's place; None for other names."""
    match = _FILE_NAME.fullmatch(path.name)
    return PdbIdentity(path.parent.name, match[1].upper(), int(match[2])) if match else None


def compile_isf(path: str | Path) -> bytes:
    """The compiled table of an ISF file (see `tables`). Raises `FormatError`."""
    path = Path(path)
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not an ISF file: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        raise FormatError(f"{path}: not an ISF file: expected an object with `metadata`")
    return _Compiler(path, cast("dict[str, object]", document)).compile()


def _text(path: Path) -> bytes:
    """The JSON text, unpacked, refusing one so large that it can only be a decompression bomb."""
    try:
        with _open(path) as stream:
            text = stream.read(_MAX_JSON + 1)
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise FormatError(f"{path}: cannot be unpacked: {error}") from error
    if len(text) > _MAX_JSON:
        raise FormatError(f"{path}: unpacks to more than {_MAX_JSON >> 20} MB, too much for an ISF file")
    return text


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        start = stream.read(6)
    if start == b"\xfd7zXZ\0":
        return cast("IO[bytes]", lzma.open(path, "rb"))
    if start[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


class _Compiler:
    def __init__(self, path: Path, document: dict[str, object]) -> None:
        from coldframe.symbols.build import TableBuilder  # noqa: PLC0415 - what is in the cache does without

        self.path = path
        self.document = document
        self.builder = TableBuilder()
        self.bases: dict[str, tuple[int, str, bool]] = {}

    def fail(self, place: str, expected: str) -> FormatError:
        return FormatError(f"{self.path}: {place}: expected {expected}")

    def mapping(self, value: object, place: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self.fail(place, "an object")
        return cast("dict[str, object]", value)

    def number(self, value: object, place: str) -> int:
        if not isinstance(value, int):
            raise self.fail(place, "a whole number")
        return value

    def text(self, value: object, place: str) -> str:
        if not isinstance(value, str):
            raise self.fail(place, "a string")
        return value

    def section(self, name: str) -> Mapping[str, object]:
        return self.mapping(self.document.get(name, {}), name)

    def compile(self) -> bytes:
        for name, value in self.section("base_types").items():
            base = self.mapping(value, name)
            kind = self.text(base.get("kind"), name)
            if kind not in _BASE_KINDS:
                raise self.fail(f"base type {name}", f"one of {', '.join(sorted(_BASE_KINDS))}, found {kind!r}")
            self.bases[name] = self.number(base.get("size"), name), kind, bool(base.get("signed"))
        pointer = self.bases.get("pointer")
        pointer_size = pointer[0] if pointer else 8
        if pointer_size not in _MACHINES:
            raise self.fail("base type pointer", f"4 or 8 bytes, found {pointer_size}")
        for name, value in self.section("user_types").items():
            self.record(name, self.mapping(value, name))
        for name, value in self.section("enums").items():
            self.enum(name, self.mapping(value, name))
        return self.builder.build(self.identity(), pointer_size, self.symbols(pointer_size))

    def record(self, name: str, value: Mapping[str, object]) -> None:
        kind = self.text(value.get("kind"), name)
        if kind not in ("struct", "union", "class"):
            raise self.fail(name, f"a struct, union or class, found {kind!r}")
        members = []
        for label, item in self.mapping(value.get("fields"), name).items():
            place = f"{name}.{label}"
            member = self.mapping(item, place)
            members.append((label, self.number(member.get("offset"), place), self.type(member.get("type"), place)))
        self.builder.define(name, kind, self.number(value.get("size"), name), self.builder.fields(members))

    def enum(self, name: str, value: Mapping[str, object]) -> None:
        constants = self.mapping(value.get("constants"), name).items()
        members = self.builder.constants((label, self.number(item, f"{name}.{label}")) for label, item in constants)
        base = self.base(self.text(value.get("base"), name), name)
        self.builder.define(name, "enum", self.number(value.get("size"), name), members, base)

    def base(self, name: str, place: str) -> int:
        if name not in self.bases:
            raise self.fail(place, f"a base type that is defined, found {name!r}")
        return self.builder.base(name, *self.bases[name])

    def type(self, value: object, place: str, depth: int = 0) -> int:
        if depth > _MAX_DEPTH:
            raise self.fail(place, f"a type nested at most {_MAX_DEPTH} deep")
        kind = self.mapping(value, place)
        builder = self.builder
        match kind.get("kind"):
            case "base":
                return self.base(self.text(kind.get("name"), place), place)
            case "pointer":
                size = self.bases.get(self.text(kind.get("base", "pointer"), place), (8, "int", False))[0]
                return builder.pointer(self.type(kind.get("subtype"), place, depth + 1), size)
            case "array":
                element = self.type(kind.get("subtype"), place, depth + 1)
                return builder.array_of(element, max(0, self.number(kind.get("count"), place)))
            case "bitfield":
                unit = self.type(kind.get("type"), place, depth + 1)
                position = self.number(kind.get("bit_position"), place)
                return builder.bit_field(unit, position, self.number(kind.get("bit_length"), place))
            case "function":
                return builder.function()
            case "struct" | "union" | "class" | "enum" as reference:
                return builder.reference(self.text(kind.get("name"), place), reference)
        raise self.fail(place, f"a type, found the kind {kind.get('kind')!r}")

    def symbols(self, pointer_size: int) -> list[tuple[bytes, int, bytes]]:
        """(Name, RVA, alias); the ones without an RVA (constants) are left out.

        Volatility 3 takes a leading underscore from every name and keeps the name as it was in `linkage_name`. Only on
        x86 is the short one the C name.
        """
        found = []
        for name, value in self.section("symbols").items():
            symbol = self.mapping(value, name)
            address, linker = symbol.get("address"), symbol.get("linkage_name")
            if isinstance(address, int):
                names = encoded(name), b"" if linker is None else encoded(self.text(linker, name))
                plain, other = names if pointer_size == 4 or not names[1] else names[::-1]
                found.append((plain, address, other))
        return found

    def identity(self) -> PdbIdentity:
        """From the metadata, else from the file's place, else only its name."""
        windows = self.section("metadata").get("windows")
        pdb = cast("dict[str, object]", windows).get("pdb") if isinstance(windows, dict) else None
        if pdb is not None:
            told = self.mapping(pdb, "metadata.windows.pdb")
            guid = self.text(told.get("GUID"), "GUID").replace("-", "").upper()
            if not re.fullmatch("[0-9A-F]{32}", guid):
                raise self.fail("metadata.windows.pdb.GUID", f"32 hex digits, found {guid[:40]!r}")
            return PdbIdentity(self.text(told.get("database"), "database"), guid, self.number(told.get("age"), "age"))
        return identity_from_name(self.path) or PdbIdentity(self.path.name.split(".json")[0], "0" * 32, 0)


def write_isf(symbol_file: SymbolFile, path: str | Path) -> None:
    """Write `symbol_file` as ISF, packed by the suffix (`.json`, `.json.xz`, `.json.gz`), for volatility3 2.x.

    A name with several RVAs keeps the one that `Symbols.get` gives: JSON has one value a name. The file appears whole
    or not at all.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise FormatError(f"{path}: an ISF file's name ends in {', '.join(SUFFIXES)}")
    text = json.dumps(isf_document(symbol_file), sort_keys=True, separators=(",", ":")).encode()
    packed = text if path.suffix == ".json" else lzma.compress(text) if path.suffix == ".xz" else gzip.compress(text)
    atomic_write(path, packed)


def isf_document(symbol_file: SymbolFile) -> dict[str, object]:
    """The ISF document of `symbol_file`, as plain dicts."""
    types, identity = symbol_file.types, symbol_file.identity
    bases: dict[str, object] = {"pointer": _base(Base("pointer", types.pointer_size, "int", False))}
    records: dict[str, object] = {}
    enums: dict[str, object] = {}
    for name in types.names():
        match types.find(name):
            case Record(kind=kind, size=size, fields=fields):
                members = {
                    label: {"offset": field.offset, "type": _type(field.type, types.pointer_size, bases)}
                    for label, field in fields.items()
                }
                records[name] = {"kind": kind, "size": size, "fields": members}
            case Enum(base=base, constants=constants):
                bases[base.name] = _base(base)
                enums[name] = {"base": base.name, "size": base.size, "constants": dict(constants)}
    symbols = {name: {"address": symbol_file.symbols.get(name)} for name, _ in symbol_file.symbols.items()}
    pdb = {
        "GUID": identity.guid,
        "age": identity.age,
        "database": identity.name,
        "machine_type": _MACHINES[types.pointer_size],
    }
    producer = {"name": "coldframe", "version": "0.1.0", "datetime": datetime.now(UTC).isoformat()}
    metadata = {"format": "6.1.0", "producer": producer, "windows": {"pdb": pdb}}
    return {"metadata": metadata, "base_types": bases, "user_types": records, "enums": enums, "symbols": symbols}


def _base(base: Base) -> dict[str, object]:
    return {"kind": base.kind, "size": base.size, "signed": base.signed, "endian": "little"}


def _type(kind: Type, pointer_size: int, bases: dict[str, object]) -> dict[str, object]:
    match kind:
        case Base(name=name):
            bases[name] = _base(kind)
            return {"kind": "base", "name": name}
        case Pointer(target=target, size=size):
            told: dict[str, object] = {"kind": "pointer", "subtype": _type(target, pointer_size, bases)}
            if size != pointer_size:
                told["base"] = f"pointer{8 * size}"
                bases[f"pointer{8 * size}"] = _base(Base(f"pointer{8 * size}", size, "int", False))
            return told
        case Array(element=element, count=count):
            return {"kind": "array", "count": count, "subtype": _type(element, pointer_size, bases)}
        case BitField(base=base, position=position, length=length):
            unit = _type(base, pointer_size, bases)
            return {"kind": "bitfield", "bit_position": position, "bit_length": length, "type": unit}
        case Reference(name=name, kind=reference):
            return {"kind": reference, "name": name}
        case Function():
            return {"kind": "function"}
