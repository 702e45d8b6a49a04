#!/usr/bin/env python3
"""Writes minint's structures as a C header, at the exact offsets of a real kernel's type information.

    guest/layout.py ISF [-o guest/layouts/nt_19041.h] [--fields guest/layouts/fields.txt] [--build 19041]
    guest/layout.py ISF --show _MMPFN

The ISF file (JSON, or JSON in xz or gzip) is volatility3's format: `user_types`, `enums`, `base_types`. The header
holds only what `fields.txt` lists; the rest of each structure is padding. It serves C and assembler alike: in assembler
(`__ASSEMBLER__`) only the `#define`s remain.

What the header gives for a structure `_NAME`:
  * `struct _NAME`, and `NAME` and `PNAME` as typedefs; exact size; each listed field at its exact offset, held by
    static assertions; bit-fields in storage units of their real type, the bits between them unnamed; unnamed unions and
    structures nested as the kernel nests them, so that a path like `u.Hard.Valid` is the kernel's own;
  * `SIZEOF__NAME` and `OFF__NAME__field` (`.` becomes `_`) for every listed field that is no bit-field;
  * `HAVE__NAME` and `HAVE__NAME__field` for the optional structures and fields that this build has.

The lines of `fields.txt`:
  _NAME field field.sub field? *     fields of a structure; `?` marks what some builds lack; `*` takes all fields
  _NAME? ...                         a structure that some builds lack
  enum _NAME? Constant Constant? *   constants of an enumeration
A path crosses both unnamed members and embedded named structures: `_EPROCESS Pcb.DirectoryTableBase` lists the field in
`_KPROCESS` and defines `OFF__EPROCESS__Pcb_DirectoryTableBase`. Lines for one structure add up. `#` starts a comment.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNNAMED = re.compile(r"^_?_?(unnamed|anonymous)|<unnamed|<anonymous")
BASES = {  # by size and signedness; on x86_64-pc-windows-msvc `long` has 4 bytes
    (1, False): "unsigned char",
    (2, False): "unsigned short",
    (4, False): "unsigned long",
    (8, False): "unsigned long long",
    (1, True): "signed char",
    (2, True): "short",
    (4, True): "long",
    (8, True): "long long",
}


class LayoutError(Exception):
    """The type information or the list of fields does not allow the header."""


def load_isf(path: Path) -> dict[str, Any]:
    """Returns the ISF document in `path` (plain, .xz or .gz)."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    elif path.suffix == ".gz":
        data = gzip.decompress(data)
    document: dict[str, Any] = json.loads(data)
    return document


@dataclass
class Wish:
    """What is asked of a record: fields by name, each with what is asked inside it, and whether it may be absent."""

    optional: bool = True
    whole: bool = False
    fields: dict[str, Wish] = field(default_factory=dict)

    def want(self, path: list[str], optional: bool) -> None:
        """Adds a path; a path asked for without `?` anywhere is required."""
        if path == ["*"]:
            self.whole = True
            return
        inner = self.fields.setdefault(path[0], Wish())
        if not optional:
            inner.optional = False
        if path[1:]:
            inner.want(path[1:], optional)


@dataclass
class Wishes:
    """The parsed `fields.txt`."""

    records: dict[str, Wish] = field(default_factory=dict)
    enums: dict[str, Wish] = field(default_factory=dict)
    paths: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)


def read_wishes(text: str) -> Wishes:
    """Parses `fields.txt`."""
    wishes = Wishes()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        table = wishes.records
        if words[0] == "enum":
            words, table = words[1:], wishes.enums
        name = words[0].rstrip("?")
        if not re.fullmatch(r"\w+", name):
            raise LayoutError(f"fields.txt, line {number}: expected a structure's name, found {words[0]!r}")
        wish = table.setdefault(name, Wish())
        if not words[0].endswith("?"):
            wish.optional = False
        for word in words[1:]:
            path, optional = word.rstrip("?"), word.endswith("?")
            wish.want(path.split("."), optional)
            if table is wishes.records and not path.endswith("*"):
                wishes.paths.setdefault(name, []).append((path, optional))
    return wishes


@dataclass
class Piece:
    """Something that occupies bytes in a record: one field, or one storage unit of bit-fields."""

    offset: int
    size: int
    name: str = ""
    type: dict[str, Any] | None = None
    wish: Wish | None = None
    base: str = ""
    bits: list[tuple[int, int, str]] = field(default_factory=list)  # position, length, name

    @property
    def end(self) -> int:
        """The first byte after the piece."""
        return self.offset + self.size


class Layout:
    """Turns an ISF's types and the wishes into C."""

    def __init__(self, isf: dict[str, Any], wishes: Wishes):
        self.records: dict[str, Any] = isf["user_types"]
        self.enums: dict[str, Any] = isf["enums"]
        self.bases: dict[str, Any] = isf["base_types"]
        self.wishes = wishes
        self.missing: list[str] = []
        self.written: set[str] = set()
        self.asserts: list[str] = []
        self.defines: list[tuple[str, str]] = []
        self.out: list[str] = []
        self.pads = 0
        for name, wish in wishes.records.items():  # paths through embedded named records reach those records' own lines
            self.spread(name, wish)

    # What the types say

    def spread(self, name: str, wish: Wish) -> None:
        """Carries what is asked inside an embedded named record to that record."""
        record = self.records.get(name)
        if record is None:
            return
        for field_name, inner in list(wish.fields.items()):
            entry = record["fields"].get(field_name)
            if entry is None or not (inner.fields or inner.whole):
                continue
            target = self.innermost(entry["type"])
            if target["kind"] not in ("struct", "union", "class"):
                self.missing.append(f"{name}.{field_name} is no structure, yet fields inside it are listed")
            elif UNNAMED.match(target["name"]):
                self.spread(target["name"], inner)
            elif target["name"] in self.records:
                known = self.wishes.records.setdefault(target["name"], Wish())
                merge(known, inner)
                self.spread(target["name"], inner)

    def innermost(self, type_: dict[str, Any]) -> dict[str, Any]:
        """The element type of an array (of arrays)."""
        while type_["kind"] == "array":
            type_ = type_["subtype"]
        return type_

    def size(self, type_: dict[str, Any]) -> int:
        """Size in bytes."""
        kind = type_["kind"]
        if kind == "pointer":
            return int(self.bases["pointer"]["size"])
        if kind == "array":
            return int(type_["count"]) * self.size(type_["subtype"])
        if kind == "bitfield":
            return self.size(type_["type"])
        if kind == "base":
            return int(self.bases[type_["name"]]["size"])
        if kind == "enum":
            return int(self.enums[type_["name"]]["size"]) if type_["name"] in self.enums else 4
        if kind == "function":
            return 0
        return int(self.records[type_["name"]]["size"]) if type_["name"] in self.records else 0

    def alignment(self, type_: dict[str, Any], depth: int = 0) -> int:
        """Natural alignment, as far as the fields tell."""
        type_ = self.innermost(type_)
        if type_["kind"] not in ("struct", "union", "class"):
            return max(1, self.size(type_))
        record = self.records.get(type_["name"])
        if record is None or depth > 16:
            return 1
        inner = [self.alignment(entry["type"], depth + 1) for entry in record["fields"].values()]
        return min(max(inner, default=1), self.packing(record, depth))

    def packing(self, record: dict[str, Any], depth: int = 0) -> int:
        """The widest `#pragma pack` under which each field can stand where it stands."""
        for pack in (8, 4, 2):
            widths = [
                (entry["offset"], min(pack, self.alignment(entry["type"], depth + 1)))
                for entry in record["fields"].values()
            ]
            if all(offset % width == 0 and record["size"] % width == 0 for offset, width in widths):
                return pack
        return 1

    def c_base(self, type_: dict[str, Any], unsigned: bool = False) -> str:
        """The C name of a base type or of an enumeration that is not listed."""
        if type_["kind"] == "enum":
            return BASES[self.size(type_), False]
        base = self.bases[type_["name"]]
        if base["kind"] == "float":
            return "double" if base["size"] == 8 else "float"
        if base["size"] == 0:
            return "void"
        name = type_["name"]
        if name in ("char", "int", "unsigned int") and not unsigned:
            return str(name)
        if name == "wchar":
            return "unsigned short"
        return BASES[base["size"], bool(base["signed"])]

    def declaration(self, type_: dict[str, Any], declarator: str, wish: Wish | None, indent: str) -> str:
        """`declarator` declared with this type; unnamed records are written in place."""
        kind = type_["kind"]
        if kind == "array":
            return self.declaration(type_["subtype"], f"{declarator}[{type_['count']}]", wish, indent)
        if kind == "pointer":
            return self.pointer(type_["subtype"], declarator, indent)
        if kind == "enum" and type_["name"] in self.wishes.enums and self.size(type_) == 4:
            return f"enum {type_['name']} {declarator}"
        if kind in ("base", "enum"):
            return f"{self.c_base(type_)} {declarator}"
        if kind in ("struct", "union", "class"):
            name = type_["name"]
            if UNNAMED.match(name):
                body = self.body(name, wish or Wish(whole=True), indent + "    ")
                keyword = self.records[name]["kind"].replace("class", "struct")
                return f"{self.keyword(name, keyword)} {{\n{body}{indent}}} {declarator}"
            return f"{self.keyword(name)} {name} {declarator}"
        raise LayoutError(f"cannot declare {declarator} of kind {kind}")

    def pointer(self, target: dict[str, Any], declarator: str, indent: str) -> str:
        """`declarator` declared as a pointer to `target`."""
        kind = target["kind"]
        if kind == "pointer":
            return self.pointer(target["subtype"], f"*{declarator}", indent)
        if kind in ("struct", "union", "class") and not UNNAMED.match(target["name"]):
            return f"{self.keyword(target['name'], target['kind'])} {target['name']} *{declarator}"
        if kind == "base":
            return f"{self.c_base(target)} *{declarator}"
        return f"void *{declarator}"  # functions, arrays, unnamed records, enumerations

    def keyword(self, name: str, default: str = "struct") -> str:
        """`struct` or `union`."""
        kind = self.records[name]["kind"] if name in self.records else default
        return "union" if kind == "union" else "struct"

    # One record's inside

    def pieces(self, name: str, wish: Wish) -> list[Piece]:
        """The listed fields of a record, bit-fields gathered into their storage units."""
        record = self.records[name]
        wanted = dict(wish.fields)
        if wish.whole:
            for key in record["fields"]:
                wanted[key] = Wish(whole=True)
                merge(wanted[key], wish.fields.get(key, Wish()))
        found: list[Piece] = []
        for field_name, inner in wanted.items():
            entry = record["fields"].get(field_name)
            if entry is None:
                if not inner.optional:
                    self.missing.append(f"{name} has no field {field_name}")
                continue
            type_ = entry["type"]
            if type_["kind"] != "bitfield":
                asked = inner if inner.fields or inner.whole else None
                found.append(Piece(entry["offset"], self.size(type_), field_name, type_, asked))
                continue
            base, size = self.c_base(type_["type"], unsigned=True), self.size(type_)
            position, length = type_["bit_position"], type_["bit_length"]
            for unit in found:
                if (unit.offset, unit.size, unit.base) == (entry["offset"], size, base) and all(
                    position >= start + count or start >= position + length for start, count, _ in unit.bits
                ):
                    break
            else:
                unit = Piece(entry["offset"], size, base=base)
                found.append(unit)
            unit.bits.append((position, length, field_name))
        return sorted(found, key=lambda piece: (piece.offset, -piece.size))

    def groups(self, pieces: list[Piece], pack: int) -> list[tuple[list[Piece], int, int]]:
        """Pieces that overlap, put together: each group, where its union starts and where it ends.

        C rounds a union's start and end to its widest member, so a neighbour inside that range joins the group.
        """
        groups: list[tuple[list[Piece], int, int]] = []
        for piece in pieces:
            group, start, end = [piece], piece.offset, piece.end
            while groups and (groups[-1][2] > start or groups[-1][1] == start):
                before, first, last = groups.pop()
                group, start, end = before + group, min(first, start), max(last, end)
                widest = max(self.piece_alignment(member, pack) for member in group)
                start, end = start - start % widest, -(-end // widest) * widest
            groups.append((group, start, end))
        return groups

    def piece_alignment(self, piece: Piece, pack: int) -> int:
        """Where C wants the piece to start: at a multiple of this."""
        natural = self.alignment(piece.type) if piece.type else piece.size
        return max(1, min(natural, pack))

    def body(self, name: str, wish: Wish, indent: str) -> str:
        """The C members of a record, padded to its size."""
        record = self.records[name]
        pieces, size = self.pieces(name, wish), record["size"]
        if record["kind"] == "union":
            lanes: list[list[Piece]] = [[piece] for piece in pieces]
            return self.union(lanes, 0, size, indent)
        text, at = "", 0
        pack, widest = self.packing(record), 1
        for group, start, end in self.groups(pieces, pack):
            certain = self.certain_alignment(group, pack)
            widest = max(widest, certain)
            if start != at + -at % certain:  # else the compiler leaves the hole, as it did in the kernel
                text += self.padding(start - at, indent)
            if len(group) == 1:
                text += self.member(group[0], indent)
            else:
                lanes = []
                for piece in group:
                    lane = next((lane for lane in lanes if lane[-1].end <= piece.offset and piece.size), None)
                    if lane is None:
                        lanes.append([piece])
                    else:
                        lane.append(piece)
                text += f"{indent}union {{\n{self.union(lanes, start, end, indent + '    ')}{indent}}};\n"
            at = end
        return text if size == at + -at % widest else text + self.padding(size - at, indent)

    def certain_alignment(self, group: list[Piece], pack: int) -> int:
        """The least alignment that C gives a group: what is in a record may be left out, unless all of it is listed."""
        certain = [piece for piece in group if not piece.type or self.is_whole(self.innermost(piece.type))]
        return max((self.piece_alignment(piece, pack) for piece in certain), default=1)

    def is_whole(self, type_: dict[str, Any]) -> bool:
        """Whether every field of it is declared."""
        wish = self.wishes.records.get(type_.get("name", ""))
        return type_["kind"] in ("base", "pointer", "enum") or (wish is not None and wish.whole)

    def union(self, lanes: list[list[Piece]], start: int, end: int, indent: str) -> str:
        """The members of a union, each lane being one or several pieces one after the other."""
        text, widest = "", 0
        for lane in lanes:
            widest = max(widest, lane[-1].end)
            if len(lane) == 1 and lane[0].offset == start and len(lane[0].bits) < 1:
                text += self.member(lane[0], indent)
                continue
            text += f"{indent}struct {{\n"
            at = start
            for piece in lane:
                text += self.padding(piece.offset - at, indent + "    ") + self.member(piece, indent + "    ")
                at = piece.end
            text += f"{indent}}};\n"
        return text if widest == end else text + self.padding(end - start, indent)

    def member(self, piece: Piece, indent: str) -> str:
        """One field, or one storage unit of bit-fields."""
        if piece.type is not None:
            return f"{indent}{self.declaration(piece.type, piece.name, piece.wish, indent)};\n"
        text, at = "", 0
        for position, length, name in sorted(piece.bits):
            if position > at:
                text += f"{indent}{piece.base} : {position - at};\n"
            text += f"{indent}{piece.base} {name} : {length};\n"
            at = position + length
        if at < piece.size * 8:
            text += f"{indent}{piece.base} : {piece.size * 8 - at};\n"
        return text

    def padding(self, size: int, indent: str) -> str:
        """`size` bytes that this build of minint does not name."""
        if not size:
            return ""
        self.pads += 1
        return f"{indent}unsigned char __pad{self.pads}[{size:#x}];\n"

    # The whole header

    def write_record(self, name: str, path: tuple[str, ...] = ()) -> None:
        """Writes a named record after all those it embeds."""
        if name in self.written:
            return
        if name in path:
            raise LayoutError(f"{' -> '.join(path)} embeds itself")
        record = self.records[name]
        wish = self.wishes.records.get(name, Wish())
        for embedded in self.embedded(name, wish):
            self.write_record(embedded, (*path, name))
        self.written.add(name)
        self.pads = 0
        pack = self.packing(record)
        known = name in self.wishes.records
        if known and (wish.fields or wish.whole):
            body = self.body(name, wish, "    ")
        else:
            unit = self.alignment({"kind": "struct", "name": name})
            count = record["size"] // unit
            body = f"    {BASES[unit, False]} __opaque[{count}];\n" if count else ""
        if pack < 8:
            self.out.append(f"#pragma pack(push, {pack})\n")
        self.out.append(f"{self.keyword(name)} {name} {{\n{body}}};\n")
        if pack < 8:
            self.out.append("#pragma pack(pop)\n")
        self.out.append("\n")
        whole = f"{self.keyword(name)} {name}"
        self.asserts.append(f'_Static_assert(sizeof({whole}) == {record["size"]:#x}, "{name}");\n')
        if known:
            self.defines.append((f"SIZEOF_{name}", f"{record['size']:#x}"))

    def embedded(self, name: str, wish: Wish) -> list[str]:
        """The named records that the listed fields hold by value."""
        found: list[str] = []
        for piece in self.pieces(name, wish):
            target = self.innermost(piece.type) if piece.type else None
            if target is None or target["kind"] not in ("struct", "union", "class"):
                continue
            if UNNAMED.match(target["name"]):
                found += self.embedded(target["name"], piece.wish or Wish(whole=True))
            else:
                found.append(target["name"])
        self.missing = list(dict.fromkeys(self.missing))
        return found

    def resolve(self, name: str, path: str) -> tuple[int, bool] | None:
        """Offset of a path from the start of a record and whether it is a bit-field; None where the build lacks it."""
        offset = 0
        type_: dict[str, Any] = {"kind": "struct", "name": name}
        for part in path.split("."):
            target = self.innermost(type_)
            entry = self.records.get(target.get("name", ""), {"fields": {}})["fields"].get(part)
            if entry is None:
                return None
            offset, type_ = offset + entry["offset"], entry["type"]
        return offset, type_["kind"] == "bitfield"

    def write_paths(self, name: str) -> None:
        """Offsets, assertions and HAVE_ constants of the listed paths."""
        if name not in self.records:
            return
        if self.wishes.records[name].optional:
            self.defines.append((f"HAVE_{name}", "1"))
        for path, optional in dict.fromkeys(self.wishes.paths.get(name, [])):
            found = self.resolve(name, path)
            if found is None:
                if not optional:
                    self.missing.append(f"{name} has no field {path}")
                continue
            offset, bits = found
            label = path.replace(".", "_")
            if optional:
                self.defines.append((f"HAVE_{name}__{label}", "1"))
            if not bits:
                self.defines.append((f"OFF_{name}__{label}", f"{offset:#x}"))
                self.asserts.append(
                    f"_Static_assert(__builtin_offsetof({self.keyword(name)} {name}, {path}) == {offset:#x}, "
                    f'"{name}.{path}");\n'
                )

    def write_enum(self, name: str, wish: Wish) -> None:
        """The listed constants of an enumeration."""
        enum = self.enums.get(name)
        if enum is None:
            if not wish.optional:
                self.missing.append(f"no enumeration {name}")
            return
        constants: dict[str, int] = enum["constants"]
        wanted = dict.fromkeys(constants, Wish()) if wish.whole else wish.fields
        lines = []
        for constant, inner in wanted.items():
            if constant in constants:
                lines.append(f"    {constant} = {constants[constant]},\n")
            elif not inner.optional:
                self.missing.append(f"{name} has no constant {constant}")
        if lines:
            self.out.append(f"enum {name} {{\n{''.join(lines)}}};\n\n")

    def header(self, title: str, constants: list[tuple[str, str]]) -> str:
        """The whole header's text.

        Raises:
            LayoutError: something listed without `?` is not in the type information; all such are named at once.
        """
        for name, wish in self.wishes.enums.items():
            self.write_enum(name, wish)
        for name, wish in self.wishes.records.items():
            if name in self.records:
                self.write_record(name)
                self.write_paths(name)
            elif not wish.optional:
                self.missing.append(f"no structure {name}")
        if self.missing:
            raise LayoutError("\n".join(dict.fromkeys(self.missing)))
        names = sorted(self.written)
        forward = "".join(f"{self.keyword(name)} {name};\n" for name in names)
        typedefs = "".join(
            f"typedef {self.keyword(name)} {name} {name[1:]}, *P{name[1:]};\n"
            for name in names
            if name.startswith("_") and name[1:2].isalpha()
        )
        defines = "".join(f"#define {name} {value}\n" for name, value in dict(constants + self.defines).items())
        guard = "NT_LAYOUT_H"
        return (
            f"/* {title}\n * Written by guest/layout.py from guest/layouts/fields.txt: change that list. */\n"
            f"#ifndef {guard}\n#define {guard}\n\n{defines}\n#ifndef __ASSEMBLER__\n\n{forward}\n{typedefs}\n"
            f"{''.join(self.out)}{''.join(self.asserts)}\n#endif\n#endif\n"
        )

    def show(self, name: str, indent: str = "", base: int = 0) -> None:
        """Prints a record with all its fields, unnamed members opened."""
        record = self.records.get(name)
        if record is None:
            near = [known for known in self.records if name.strip("_").lower() in known.lower()]
            raise LayoutError(f"no structure {name}; near names: {' '.join(sorted(near)[:20]) or 'none'}")
        if not indent:
            print(f"{name} {record['kind']} {record['size']:#x}")
        for field_name, entry in sorted(record["fields"].items(), key=lambda item: item[1]["offset"]):
            type_ = entry["type"]
            target = self.innermost(type_)
            bits = f":{type_['bit_position']}+{type_['bit_length']}" if type_["kind"] == "bitfield" else ""
            print(f"{indent}  {base + entry['offset']:#06x}{bits} {field_name}  {describe(type_)}")
            if UNNAMED.match(target.get("name", "")):
                self.show(target["name"], indent + "    ", base + entry["offset"])


def merge(into: Wish, other: Wish) -> None:
    """Adds what `other` asks to `into`."""
    into.whole |= other.whole
    for name, inner in other.fields.items():
        known = into.fields.setdefault(name, Wish())
        known.optional &= inner.optional
        merge(known, inner)


def describe(type_: dict[str, Any]) -> str:
    """A type in one word."""
    kind = type_["kind"]
    if kind == "array":
        return f"{describe(type_['subtype'])}[{type_['count']}]"
    if kind == "pointer":
        return f"{describe(type_['subtype'])}*"
    if kind == "bitfield":
        return describe(type_["type"])
    return str(type_.get("name", kind))


def version_of(build: int) -> tuple[int, int]:
    """Windows' major and minor version by its build number."""
    if build >= 10000:
        return 10, 0
    return (6, 3) if build >= 9600 else (6, 2) if build >= 9200 else (6, 1) if build >= 7600 else (6, 0)


def main() -> int:
    """The command."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Writes minint's structures from a real kernel's type information.")
    parser.add_argument("isf", type=Path, help="the kernel's ISF file: .json, .json.xz or .json.gz")
    parser.add_argument("-o", "--output", type=Path, help="the header; without it, standard output")
    parser.add_argument("--fields", type=Path, default=here / "layouts" / "fields.txt")
    parser.add_argument("--build", type=int, help="the build number; taken from an output named nt_BUILD.h otherwise")
    parser.add_argument("--show", metavar="NAME", action="append", help="print a structure and write nothing")
    options = parser.parse_args()
    try:
        isf = load_isf(options.isf)
        if options.show:
            for name in options.show:
                Layout(isf, Wishes()).show(name)
            return 0
        build = options.build
        if build is None and options.output and (match := re.search(r"nt_(\d+)", options.output.name)):
            build = int(match[1])
        if build is None:
            raise LayoutError("which build is this? Give --build, or an output named nt_BUILD.h")
        pdb = isf.get("metadata", {}).get("windows", {}).get("pdb", {})
        major, minor = version_of(build)
        constants = [
            ("NT_LAYOUT_BUILD", str(build)),
            ("NT_LAYOUT_MAJOR", str(major)),
            ("NT_LAYOUT_MINOR", str(minor)),
            ("NT_LAYOUT_NAME", f'"{build}"'),
        ]
        identity = f"{pdb.get('database', 'a kernel')} {pdb.get('GUID', '')}-{pdb.get('age', '')}"
        layout = Layout(isf, read_wishes(options.fields.read_text(encoding="utf-8")))
        text = layout.header(f"Windows build {build}'s structures, as in {identity}.", constants)
    except (OSError, ValueError, KeyError, lzma.LZMAError) as error:
        print(f"layout: {options.isf}: {error!r}", file=sys.stderr)
        return 1
    except LayoutError as error:
        print(f"layout: {options.isf.name}:\n{error}", file=sys.stderr)
        return 1
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
