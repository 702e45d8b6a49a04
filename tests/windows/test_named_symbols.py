"""A 64-bit kernel without a CodeView record (ReactOS has none): known by its exports, read by a named symbol file."""

from __future__ import annotations

import struct

import pytest

from builder.pe import EXPORTS, pe_headers
from coldframe.errors import SymbolFileNotFoundError
from windows.conftest import Built

NAMES = ("NtBuildNumber", "PsInitialSystemProcess", "PsProcessType", "MmHighestUserAddress")


@pytest.fixture
def unnamed(newest):
    """A kernel whose export directory says ntoskrnl.exe, and that has no record of its PDB."""
    built = Built(newest)
    image, symbols = built.image, built.symbol_file.symbols
    exports = {name: symbols[name] for name in NAMES if name in symbols}
    page = bytearray(pe_headers(image.size, pdb=None, exports=exports))
    struct.pack_into("<I", page, EXPORTS + 12, 0xF00)
    page[0xF00:0xF0D] = b"ntoskrnl.exe\0"
    image.write(image.base, bytes(page))
    built.store.named_files = lambda: ([built.symbol_file], [])
    return built


def test_it_opens_with_a_warning(unnamed):
    for registers in ([], None):
        guest = unnamed.open(registers)
        assert guest.location.identity is None
        assert [process.pid for process in guest.processes] == [4, 368, 812, 816]
        assert "has no CodeView record" in guest.warnings[0]


def test_without_a_named_file_the_error_says_what_would_help(unnamed):
    unnamed.store.named_files = lambda: ([], [])
    with pytest.raises(SymbolFileNotFoundError, match="--symbols FILE"):
        unnamed.open()


def test_another_export_name_is_no_kernel(unnamed):
    unnamed.image.write(unnamed.image.base + 0xF00, b"ntosxxxx.exe\0")
    with pytest.raises(Exception, match="no NT kernel"):
        unnamed.open()
