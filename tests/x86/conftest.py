"""32-bit guests as they are built: of the two kernels told in this tree, and of every 32-bit ISF file at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import kernel, kernel_files
from builder.compact import NT52, SEVEN_PAE, compact_kernel
from builder.windows32 import Windows32Builder
from coldframe.errors import SymbolFileNotFoundError
from coldframe.symbols.model import SymbolFile
from coldframe.windows import Guest

NTDLL, TEXT = "\\WINDOWS\\system32\\ntdll.dll", "\\a.txt"
PDBS = {NT52: "ntoskrnl.pdb", SEVEN_PAE: "ntkrpamp.pdb"}
MORE = kernel_files(32)


class Store:
    """A symbol store with one kernel's symbols, perhaps also as a file that the user named."""

    def __init__(self, symbol_file: SymbolFile, *, named: bool = False, known: bool = True) -> None:
        self.symbol_file, self.named, self.known = symbol_file, named, known

    def find(self, identity):
        if not self.known or identity.guid != self.symbol_file.identity.guid:
            raise SymbolFileNotFoundError(f"no symbols for {identity}; looked nowhere")
        return self.symbol_file

    def named_files(self):
        return ([self.symbol_file] if self.named else []), []


class Built:
    """A guest as it was built, with something in every list."""

    def __init__(self, symbol_file: SymbolFile, **options) -> None:
        self.symbol_file = symbol_file
        self.store = Store(symbol_file)
        self.image = image = Windows32Builder(symbol_file, **options)
        image.add_idt()
        self.smss = image.add_process("smss.exe", 368, 4)
        self.notepad = notepad = image.add_process("notepad.exe", 812, 368)
        self.thread = image.add_thread(notepad, 1204)
        self.idle = image.add_thread(image.system, 8)
        image.add_processor(self.thread)
        image.add_driver("ntoskrnl.exe", image.base, image.size)
        image.add_driver("hal.dll", 0x806E0000, 0x20000, pdb="halacpi.pdb")
        image.add_module(notepad, "notepad.exe", 0x0100_0000, 0x14000)
        image.add_module(notepad, "ntdll.dll", 0x7C90_0000, 0xAF000)
        self.private = image.add_private_vad(notepad, 0x10000, 16)
        self.ntdll = image.add_view(notepad, 0x7C90_0000, file=NTDLL, counts=(1, 4, 2), image=True, protection=7)
        self.text = image.add_view(notepad, 0x40_0000, file=TEXT, counts=(3, 4), contiguous=False)
        self.file = image.add_file("\\Users\\b.txt")
        image.set_handles(
            notepad,
            {4: (self.file, 0x120089), 8: (notepad.address, 0x1FFFFF), 4100: (self.smss.address, 1)},
            level=1,
        )
        root = image.add_directory("")
        image.add_directory("Device", root)
        image.add_symbolic_link("C:", "\\Device\\HarddiskVolume1", root)
        image.set_cid_table()
        image.set_paging_files([(0, "\\??\\C:\\pagefile.sys", False)])
        image.finish()

    def open(self, registers=()) -> Guest:
        return Guest.open(self.image.physical(), self.store, registers)

    @property
    def registers(self) -> dict[str, int]:
        return self.image.registers(self.notepad)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kernels32")


def symbols_of(path: Path, folder: Path) -> SymbolFile:
    return compact_kernel(path, folder, PDBS[path]) if path in PDBS else kernel(path)


@pytest.fixture(params=[NT52, SEVEN_PAE, *MORE], ids=lambda path: path.stem)
def built(request, folder) -> Built:
    """Each 32-bit kernel at hand."""
    symbol_file = symbols_of(request.param, folder)
    if symbol_file.types.pointer_size != 4 or "_POOL_HEADER" not in symbol_file.types:
        pytest.skip("no 32-bit kernel, or one with half its types")
    return Built(symbol_file)


@pytest.fixture(params=[NT52, SEVEN_PAE], ids=lambda path: path.stem)
def symbol_file(request, folder) -> SymbolFile:
    """The two kernels of this tree."""
    return symbols_of(request.param, folder)


@pytest.fixture
def one(symbol_file) -> Built:
    return Built(symbol_file)
