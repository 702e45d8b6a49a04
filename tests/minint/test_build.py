"""What minint's images have to be, whatever their sources say: held by llvm's tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from coldframe.minint.machine import build
from coldframe.symbols import SymbolFile, load_pdb

BASE = 0x140000000


@pytest.fixture(scope="module")
def built() -> Path:
    return build("19041")


@pytest.fixture(scope="module")
def kernel(built: Path) -> SymbolFile:
    return load_pdb(built / "symbols" / "ntkrnlmp.pdb")


@pytest.fixture(scope="module")
def unwind(built: Path) -> str:
    return said("llvm-readobj", "--unwind", built / "ntoskrnl.exe")


def said(*words: str | Path) -> str:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("image", ["ntoskrnl.exe", "system32/ntdll.dll", "system32/notepad.exe"])
def test_no_image_touches_a_vector_register(built: Path, image: str) -> None:
    """minint keeps none across a switch, and nested KVM cannot emulate the instructions."""
    assert not re.search(r"%[xyz]?mm\d", said("llvm-objdump", "-d", "--no-show-raw-insn", built / image))


@pytest.mark.parametrize(
    ("entry", "code"), [("KiPageFault", "yes"), ("KiSystemCall64", "no"), ("KiDpcInterrupt", "no")]
)
def test_ways_into_the_kernel_have_ntoskrnls_unwind_data(
    kernel: SymbolFile, unwind: str, entry: str, code: str
) -> None:
    """A machine frame, a KTRAP_FRAME's 0x158 bytes below rbp's place, rbp 0x80 above the frame's start."""
    rva = kernel.symbols.get(entry)
    assert rva is not None
    function = unwind.partition(f"StartAddress: (0x{BASE + rva:X})")[2].partition("RuntimeFunction")[0]
    for part in (f"PUSH_MACHFRAME errcode={code}", "PUSH_NONVOL reg=RBP", "ALLOC_LARGE size=344", "offset=0x80"):
        assert part in function


def test_every_image_names_its_pdb_without_a_path(built: Path) -> None:
    images = [built / "ntoskrnl.exe", *sorted((built / "system32").glob("*.*e*"))]
    names = {
        image.name: re.findall(r"PDBFileName: (.*)", said("llvm-readobj", "--coff-debug-directory", image))
        for image in images
        if image.suffix in (".exe", ".dll")
    }
    expected = {name: [f"{Path(name).stem}.pdb"] for name in names} | {"ntoskrnl.exe": ["ntkrnlmp.pdb"]}
    assert names == expected
    assert all((built / "symbols" / pdbs[0]).is_file() for pdbs in names.values())


def test_building_again_changes_nothing(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*.*") if path.suffix in (".exe", ".dll", ".o")}
    build("19041")
    assert before == {path: path.stat().st_mtime_ns for path in before}
