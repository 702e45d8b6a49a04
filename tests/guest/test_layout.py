"""minint's structures lie exactly as the real kernel's, which its compiler's own PDB confirms through llvm-pdbutil."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ROOT / "guest" / "layouts"
SYMBOLS = ROOT.parent / "shared" / "symbols" / "ntkrnlmp.pdb"
CLANG = [
    "clang",
    "--target=x86_64-pc-windows-msvc",
    "-ffreestanding",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-g",
    "-gcodeview",
]


def load_layout() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minint_layout", ROOT / "guest" / "layout.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


layout = load_layout()


def compiled_types(header: Path, names: list[str], folder: Path) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What clang made of the header, as llvm-pdbutil reads it: structure -> flattened path -> (offset, bit, bits)."""
    source = folder / "types.c"
    source.write_text(f'#include "{header}"\n' + "".join(f"struct {n} *p{n};\n{n[1:]} v{n};\n" for n in names))
    subprocess.run([*CLANG, "-c", "-o", folder / "types.o", source], check=True)
    command = ["lld-link", "/dll", "/noentry", "/nodefaultlib", "/debug", f"/pdb:{folder}/types.pdb"]
    subprocess.run([*command, f"/out:{folder}/types.dll", folder / "types.o"], check=True)
    dump = ["llvm-pdbutil", "dump", "-types", folder / "types.pdb"]
    text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    members: dict[str, list[tuple[str, str, int]]] = {}
    bits: dict[str, tuple[int, int]] = {}
    records: dict[str, tuple[str, str]] = {}
    by_name: dict[str, str] = {}
    for block in re.split(r"\n(?=\s+0x[0-9A-F]+ \| )", text):
        head = re.match(r"\s+(0x[0-9A-F]+) \| (LF_\w+) \[size = \d+\](?: `(.*)`)?", block)
        if not head:
            continue
        index, kind, name = head.groups()
        if kind == "LF_FIELDLIST":
            found = re.findall(r"LF_MEMBER \[name = `(.*?)`, Type = (0x[0-9A-F]+).*?, offset = (\d+)", block)
            members[index] = [(field, type_, int(offset)) for field, type_, offset in found]
        elif kind == "LF_BITFIELD" and (match := re.search(r"bit offset = (\d+), # bits = (\d+)", block)):
            bits[index] = int(match[1]), int(match[2])
        elif kind in ("LF_STRUCTURE", "LF_UNION") and "forward ref" not in block:
            match = re.search(r"field list: (0x[0-9A-F]+)", block)
            records[index] = name, match[1] if match else ""
            by_name.setdefault(name, index)

    def flatten(index: str, prefix: str, base: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        for field, type_, offset in members.get(records[index][1], []):
            if not field.startswith("__"):
                yield prefix + field, (base + offset, *bits.get(type_, (0, 0)))
                if "<unnamed-tag>" in records.get(type_, ("", ""))[0]:
                    yield from flatten(type_, f"{prefix}{field}.", base + offset)

    return {name: dict(flatten(by_name[name], "", 0)) for name in names}


def real_types(isf: dict[str, Any], name: str, prefix: str = "", base: int = 0) -> dict[str, tuple[int, int, int]]:
    found = {}
    for field, entry in isf["user_types"][name]["fields"].items():
        type_ = entry["type"]
        bits = (type_["bit_position"], type_["bit_length"]) if type_["kind"] == "bitfield" else (0, 0)
        found[prefix + field] = (base + entry["offset"], *bits)
        if layout.UNNAMED.match(type_.get("name", "")):
            found |= real_types(isf, type_["name"], f"{prefix}{field}.", base + entry["offset"])
    return found


def in_bits(place: tuple[int, int, int]) -> tuple[int, int]:
    """A bit-field's place without its storage unit, which compilers choose differently."""
    return place[0] * 8 + place[1], place[2]


def isf_of(header: Path) -> Path:
    identity = re.search(r"([0-9A-F]{32}-\d+)\.", header.read_text().splitlines()[0])
    assert identity
    path = SYMBOLS / f"{identity[1]}.json.xz"
    if not path.exists():
        pytest.skip("needs ../shared/symbols with real kernels' ISF files")
    return path


@pytest.mark.parametrize("header", sorted(LAYOUTS.glob("nt_*.h")), ids=lambda path: path.stem)
def test_every_field_lies_where_the_real_kernel_has_it(header: Path, tmp_path: Path) -> None:
    isf = layout.load_isf(isf_of(header))
    wishes = layout.read_wishes((LAYOUTS / "fields.txt").read_text())
    names = [n for n in wishes.records if isf["user_types"].get(n, {}).get("kind") == "struct"]
    compiled = compiled_types(header, names, tmp_path)
    checked = 0
    for name in names:
        real = real_types(isf, name)
        for path, place in compiled[name].items():
            assert in_bits(place) == in_bits(real[path]), f"{name}.{path}"
            checked += 1
        for path, _ in wishes.paths.get(name, []):
            if path in real:
                assert path in compiled[name], f"{name}.{path} is listed"
    assert checked > 1000


@pytest.mark.parametrize("header", sorted(LAYOUTS.glob("nt_*.h")), ids=lambda path: path.stem)
def test_committed_headers_are_what_the_generator_writes(header: Path, tmp_path: Path) -> None:
    output = tmp_path / header.name
    command = [sys.executable, ROOT / "guest" / "layout.py", isf_of(header), "-o", output]
    subprocess.run(command, check=True)
    assert output.read_text() == header.read_text(), "run guest/layouts/make"


@pytest.mark.parametrize("header", sorted(LAYOUTS.glob("nt_*.h")), ids=lambda path: path.stem)
def test_headers_serve_assembler_too(header: Path, tmp_path: Path) -> None:
    source = tmp_path / "offsets.S"
    source.write_text(f'#include "{header}"\nmovq %gs:OFF__KPCR__Self, %rax\n.long SIZEOF__KTRAP_FRAME\n')
    subprocess.run([*CLANG[:2], "-c", "-o", tmp_path / "offsets.o", source], check=True)


ULONG = {"kind": "base", "name": "unsigned long"}
SMALL: dict[str, Any] = {
    "base_types": {
        "unsigned long": {"kind": "int", "size": 4, "signed": False},
        "unsigned long long": {"kind": "int", "size": 8, "signed": False},
        "pointer": {"kind": "int", "size": 8, "signed": False},
    },
    "enums": {"_COLOUR": {"size": 4, "base": "long", "constants": {"Red": 0, "Green": 7}}},
    "user_types": {
        "_TICKS": {"kind": "struct", "size": 12, "fields": {"Low": {"offset": 0, "type": ULONG}}},
        "_ROOT": {
            "kind": "struct",
            "size": 0x20,
            "fields": {
                "Flags": {"offset": 4, "type": ULONG},
                "First": {
                    "offset": 4,
                    "type": {"kind": "bitfield", "bit_position": 3, "bit_length": 5, "type": ULONG},
                },
                "Ticks": {"offset": 8, "type": {"kind": "struct", "name": "_TICKS"}},
                "Quad": {"offset": 8, "type": {"kind": "base", "name": "unsigned long long"}},
                "u": {"offset": 0x18, "type": {"kind": "union", "name": "__unnamed_1"}},
            },
        },
        "__unnamed_1": {
            "kind": "union",
            "size": 8,
            "fields": {
                "Long": {"offset": 0, "type": {"kind": "base", "name": "unsigned long long"}},
                "Half": {"offset": 4, "type": ULONG},
            },
        },
    },
}


def run_layout(tmp_path: Path, fields: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    (tmp_path / "fields.txt").write_text(fields)
    command = [sys.executable, ROOT / "guest" / "layout.py", tmp_path / "small.json", "-o", tmp_path / "nt_9999.h"]
    return subprocess.run([*command, "--fields", tmp_path / "fields.txt"], check=False, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("clang"), reason="needs clang")
def test_overlapping_fields_become_unions_and_optional_ones_say_whether_they_are_there(tmp_path: Path) -> None:
    done = run_layout(tmp_path, "_ROOT Flags First Ticks Quad u.Half Gone? u.Long?\nenum _COLOUR Green\n_NEVER? *\n")
    assert done.returncode == 0, done.stderr
    (tmp_path / "use.c").write_text(
        '#include "nt_9999.h"\n#if defined(HAVE__ROOT__Gone) || defined(HAVE__NEVER) || !HAVE__ROOT__u_Long\n#error\n'
        '#endif\n_Static_assert(OFF__ROOT__u_Half == 0x1c && Green == 7 && SIZEOF__ROOT == 0x20, "");\n'
        "unsigned long f(ROOT *r) { return r->First + r->u.Half + r->Ticks.__opaque[0]; }\n"
    )
    subprocess.run([*CLANG, "-c", "-o", tmp_path / "use.o", tmp_path / "use.c"], check=True)


def test_what_is_missing_is_named_all_at_once(tmp_path: Path) -> None:
    done = run_layout(tmp_path, "_ROOT Gone u.Lost\n_NEVER Field\n")
    assert done.returncode == 1
    assert {"_ROOT has no field Gone", "_ROOT has no field u.Lost", "no structure _NEVER"} <= set(
        done.stderr.splitlines()
    )
