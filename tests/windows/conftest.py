"""Guests built from every kernel's types at hand, as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import kernel, kernel_files
from builder.windows import BuiltProcess, BuiltThread, WindowsBuilder
from coldframe.errors import SymbolFileNotFoundError
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.windows import Guest

KERNELS = kernel_files()
NO_TYPES = "no kernel types: ../shared/symbols is absent"


class OneKernel:
    """A symbol store with the symbols of one kernel."""

    def __init__(self, symbol_file: SymbolFile) -> None:
        self.symbol_file = symbol_file
        self.asked: list[PdbIdentity] = []

    def find(self, identity: PdbIdentity) -> SymbolFile:
        self.asked.append(identity)
        if identity.guid != self.symbol_file.identity.guid:
            raise SymbolFileNotFoundError(f"no symbols for {identity}; looked nowhere")
        return self.symbol_file


class Built:
    """A guest as it was built, and as coldframe opens it."""

    def __init__(self, path: Path, **options) -> None:
        self.symbol_file = kernel(path)
        self.image = WindowsBuilder(self.symbol_file, **options)
        self.store = OneKernel(self.symbol_file)
        self.image.add_idt()
        self.smss = self.add_process("smss.exe", 368, 4)
        self.notepad = self.add_process("notepad.exe", 812, 368)
        self.other = self.add_process("notepad.exe", 816, 368)
        self.thread: BuiltThread = self.image.add_thread(self.notepad, 1204)
        self.idle = self.image.add_thread(self.image.system, 8)

    def add_process(self, name: str, pid: int, ppid: int) -> BuiltProcess:
        return self.image.add_process(name, pid, ppid)

    def open(self, registers: list[dict[str, int]] | None = None) -> Guest:
        self.image.finish()
        hints = [self.image.registers(self.notepad)] if registers is None else registers
        return Guest.open(self.image.physical(), self.store, hints)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_path" in metafunc.fixturenames:
        absent = pytest.param(None, id="none", marks=pytest.mark.skip(reason=NO_TYPES))
        metafunc.parametrize("kernel_path", [pytest.param(p, id=p.name[:8]) for p in KERNELS] or [absent])


@pytest.fixture
def kernel_path(request: pytest.FixtureRequest) -> Path:
    raise AssertionError("given by parametrize")


@pytest.fixture
def built(kernel_path: Path) -> Built:
    if kernel(kernel_path).types.pointer_size != 8:
        pytest.skip("a 32-bit kernel")
    return Built(kernel_path)


@pytest.fixture
def newest() -> Path:
    if not KERNELS:
        pytest.skip(NO_TYPES)
    return KERNELS[0]
