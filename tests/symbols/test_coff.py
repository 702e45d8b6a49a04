"""Symbols and types out of a MinGW image: the same source gives the same structures as by way of a PDB."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coldframe.errors import FormatError
from coldframe.symbols import load_pdb, load_symbols
from coldframe.symbols.model import Array, BitField, Pointer, Record, Reference, SymbolFile, Type
from symbols import programs

RECORDS = ("outer", "list", "PTE")


def linked(folder: Path, target: str, *flags: str) -> Path:
    """KERNEL_C as MinGW makes an image of it."""
    code, made, image = folder / "kernel.c", folder / f"{target}.o", folder / f"{target}.exe"
    code.write_text(programs.KERNEL_C)
    compile_command = [
        "clang",
        f"--target={target}-w64-mingw32",
        "-ffreestanding",
        "-O1",
        *flags,
        "-c",
        code,
        "-o",
        made,
    ]
    emulation = "i386pe" if target == "i686" else "i386pep"
    entry = "_DriverEntry" if target == "i686" else "DriverEntry"
    link_command = ["ld.lld", "-m", emulation, "--subsystem", "native", "-e", entry, made, "-o", image]
    for command in (compile_command, link_command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return image


def shape(symbols: SymbolFile, kind: Type) -> object:
    """What a type is, apart from how each format calls numbers and what C leaves without a name."""
    match kind:
        case BitField(position=position, length=length):
            return "bits", symbols.types.size(kind), position, length
        case Array(element=element, count=count):
            return "array", count, shape(symbols, element)
        case Pointer(target=target):
            return "pointer", kind.size, target.name if isinstance(target, Reference) else ""
        case Reference(name=name, kind=reference):
            found = symbols.types.find(name)
            return reference, layout(symbols, name) if isinstance(found, Record) else found and symbols.types.size(name)
    return type(kind).__name__, symbols.types.size(kind)


def layout(symbols: SymbolFile, name: str) -> object:
    record = symbols.types.record(name)
    return record.kind, record.size, {
        label: (field.offset, shape(symbols, field.type)) for label, field in record.fields.items()
    }  # fmt: skip


@pytest.mark.parametrize("version", [2, 4, 5])
@pytest.mark.parametrize("target", programs.TARGETS)
def test_structures_are_those_of_the_pdb(pdbs, tmp_path, target, version):
    theirs, ours = load_pdb(pdbs[f"kernel-{target}"]), load_symbols(linked(tmp_path, target, f"-gdwarf-{version}"))
    assert ours.types.pointer_size == theirs.types.pointer_size
    for name in RECORDS:
        assert layout(ours, name) == layout(theirs, name), name
    assert ours.types.enum("state") == theirs.types.enum("state")
    assert ours.types.enum("unnamed_enum").constants == {"A": 1, "B": 2}


@pytest.mark.parametrize("target", programs.TARGETS)
def test_names_are_those_of_c(tmp_path, target):
    symbols = load_symbols(linked(tmp_path, target, "-gdwarf-4")).symbols
    for name in ("NtWriteFile", "NtClose", "KeFast", "Outer", "Hidden", "local", "DriverEntry"):
        assert name in symbols, name
    assert symbols.nearest(symbols["NtClose"] + 1) == ("NtClose", 1)


def test_a_stripped_image_says_so(pdbs):
    image = pdbs["kernel-x86_64"].with_suffix(".exe")
    with pytest.raises(FormatError, match="stripped"):
        load_symbols(image)


def test_damage_is_told_in_one_line(tmp_path):
    image = linked(tmp_path, "i686", "-gdwarf-4")
    whole = image.read_bytes()
    damaged = tmp_path / "damaged.exe"
    for place in range(0x40, len(whole) - 8, len(whole) // 97):
        damaged.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        try:
            load_symbols(damaged)
        except FormatError as error:
            assert "\n" not in str(error)
