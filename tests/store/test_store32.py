"""The compressed store of 32-bit Windows 10: its own offsets, in a guest with Windows 7's other types and Windows 10's
PTEs, since no 32-bit Windows 10's types are at hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from builder import pattern
from builder.compact import SEVEN_PAE
from builder.layouts import bit_field_types
from builder.windows32 import Windows32Builder
from coldframe.paging import State
from coldframe.symbols.model import SymbolFile, Symbols
from coldframe.windows import Guest
from store.test_xpress import words
from store.writer import BUILDS_32, GLOBALS, Kind, Numbers, StoreWriter
from x86.conftest import Store, symbols_of
from x86.merged import Merged

PAGE = 4096
AT = 0x100_0000
STORE = 2


class WithGlobals(Symbols):
    """Windows 7's symbols, and where Windows 10's store manager is."""

    def __init__(self, base: Symbols) -> None:
        self._base = base
        last = base.nearest((1 << 31) - 1)
        self._place = -(-((1 << 31) - 1 - (last[1] if last else 0)) // PAGE) * PAGE + 0x40

    def get(self, name: str) -> int | None:
        return self._place if name == GLOBALS else self._base.get(name)

    def nearest(self, rva: int) -> tuple[str, int] | None:
        return (GLOBALS, rva - self._place) if rva >= self._place else self._base.nearest(rva)

    def items(self) -> Iterable[tuple[str, int]]:
        return [*self._base.items(), (GLOBALS, self._place)]


@pytest.fixture(scope="module")
def symbol_file(tmp_path_factory: pytest.TempPathFactory) -> SymbolFile:
    seven = symbols_of(SEVEN_PAE, Path(tmp_path_factory.mktemp("kernels32")))
    ten = replace(seven, types=bit_field_types("pae 10"))
    return replace(Merged.ptes_of(seven, ten), symbols=WithGlobals(seven.symbols))


@pytest.mark.parametrize("numbers", BUILDS_32, ids=lambda numbers: str(numbers.build))
def test_every_build_gives_back_what_was_stored(symbol_file: SymbolFile, numbers: Numbers) -> None:
    image = Windows32Builder(symbol_file)
    image.add_idt()
    owner = image.add_process("MemCompression", 1480, 4)
    notepad = image.add_process("notepad.exe", 812, 4)
    image.add_processor(image.add_thread(notepad, 1204))
    writer = StoreWriter(image, numbers, owner, STORE)
    kinds: list[Kind] = ["compressed", "combined", "raw"]
    pages: dict[int, bytes] = {}
    for index in range(18):
        data = (words(PAGE, index), pattern(index), random.Random(index).randbytes(PAGE))[index % 3]
        page, address = 5 + 977 * index, AT + PAGE * index
        writer.add(page, data, kinds[index // 3 % 3])
        image.set_entry(notepad.dtb, address, image.paged(STORE, page * PAGE))
        pages[address] = data
    writer.finish()
    image.finish()
    with Guest.open(image.physical(), Store(symbol_file), [image.registers(notepad)]) as guest:
        guest.resolver.virtual_store = STORE  # Windows 7's paging files do not say which is the store's
        memory = guest.process(812).memory
        assert guest.build == numbers.build
        for address, data in pages.items():
            page = memory.resolve(address)
            assert (page.state, page.source) == (State.COMPRESSED, "store:3"), page.reason
            assert memory.read(address, PAGE) == data
