"""A kernel whose PDB nobody has: a symbol file that the user names is taken if the kernel's exports agree with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from builder.compact import NT52, SEVEN_PAE, SYMBOLS, isf, write_isf
from coldframe.errors import NoKernelError, SymbolFileNotFoundError
from coldframe.symbols import SymbolStore, load_isf
from coldframe.target import open_image
from coldframe.windows.kernel import find_kernel
from x86.conftest import Built, Store, symbols_of
from x86.test_finding import wipe_kpcr, wipe_self_map, wipe_shared_data

EXPORTED = ("NtBuildNumber", "PsInitialSystemProcess", "MmSystemRangeStart", "NtWriteFile", "NtReadFile")


def without_codeview(symbol_file) -> Built:
    """A kernel like ReactOS': no CodeView record, installed in a folder of another name."""
    built = Built(symbol_file, codeview=False, root="C:\\ReactOS", base=0x80400000, exported=EXPORTED)
    built.store = Store(symbol_file, named=True, known=False)
    return built


def test_a_kernel_without_a_codeview_record_is_known_by_its_exports(symbol_file):
    built = without_codeview(symbol_file)
    for registers in ([], [built.registers]):
        location = find_kernel(built.image.physical(), None, registers)
        assert (location.base, location.identity) == (built.image.base, None)
    guest = built.open()
    assert [process.name for process in guest.processes] == ["System", "smss.exe", "notepad.exe"]
    assert guest.facts()["kernel"]["pdb"] is None
    assert guest.drivers[0].pdb is None
    assert guest.symbol("nt!NtWriteFile") == built.image.base + symbol_file.symbols["NtWriteFile"]
    (warning,) = guest.warnings
    assert "has no CodeView record" in warning
    assert "5 exports" in warning


def test_its_system_process_is_found_by_the_named_file(symbol_file):
    built = without_codeview(symbol_file)
    for wipe in (wipe_self_map, wipe_shared_data, wipe_kpcr):
        wipe(built.image)
    assert "System process" in built.open().location.how


def test_a_page_of_shared_data_of_another_folder_needs_a_version(symbol_file):
    built = without_codeview(symbol_file)
    wipe_self_map(built.image)
    wipe_kpcr(built.image)
    assert "KUSER_SHARED_DATA" in built.open().location.how
    built.image.write_physical(built.image.shared_data + 0x26C, bytes(8))
    built.store = Store(symbol_file, known=False)
    with pytest.raises(NoKernelError, match="KUSER_SHARED_DATA"):
        built.open()


def test_without_symbols_the_error_says_what_would_help(symbol_file):
    built = without_codeview(symbol_file)
    built.store = Store(symbol_file, known=False)
    with pytest.raises(SymbolFileNotFoundError, match=r"no CodeView record.*--symbols FILE"):
        built.open()


def test_a_record_that_nothing_is_found_for_yields_to_a_named_file(symbol_file):
    built = Built(symbol_file, exported=EXPORTED)
    built.store = Store(symbol_file, named=True, known=False)
    (warning,) = built.open().warnings
    assert f"names {symbol_file.identity}" in warning
    built.store = Store(symbol_file, named=False, known=False)
    with pytest.raises(SymbolFileNotFoundError):
        built.open()


def another(folder, change, name="other"):
    """NT 5.2's symbols with a change, as a file that the user names."""
    document = isf(NT52, pdb="ntoskrnl.pdb")
    change(document)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


def shift(document, by=0x400000):
    for symbol in document["symbols"].values():
        symbol["address"] += by


def move_one(document):
    document["symbols"]["NtWriteFile"]["address"] += 16


def drop_symbols(document):
    document["symbols"] = {name: document["symbols"][name] for name in ("NtBuildNumber", "KiTrap0E")}


def drop_processes(document):
    del document["user_types"]["_EPROCESS"]


def widen(document):
    document["base_types"]["pointer"]["size"] = 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shift, "all by 0x400000"),
        (move_one, "1 of 5 exports stand elsewhere"),
        (drop_symbols, "too few to know it by"),
        (drop_processes, "no type _EPROCESS"),
        (widen, "is of a 64-bit kernel, this one has 32 bits"),
    ],
)
def test_a_named_file_that_does_not_fit_is_refused_with_the_reason(folder, tmp_path, change, says):
    built = without_codeview(symbols_of(NT52, folder))
    built.store = SymbolStore([another(tmp_path, change)])
    with pytest.raises(SymbolFileNotFoundError, match=says):
        built.open()


def test_a_file_that_is_no_symbol_file_is_named_in_the_error(folder, tmp_path):
    built = without_codeview(symbols_of(NT52, folder))
    (tmp_path / "junk.json").write_text("{")
    built.store = SymbolStore([tmp_path / "junk.json"])
    with pytest.raises(SymbolFileNotFoundError, match=r"junk\.json: not an ISF file"):
        built.open()


def test_of_several_named_files_the_one_that_fits_is_taken(folder, tmp_path):
    built = without_codeview(symbols_of(NT52, folder))
    wrong = another(tmp_path, move_one)
    pae = write_isf(tmp_path / "pae.json", SEVEN_PAE, pdb="ntkrpamp.pdb", symbols=SYMBOLS[::-1])
    right = write_isf(tmp_path / "right.json", NT52, pdb="ntoskrnl.pdb")
    image = tmp_path / "reactos.raw"
    image.write_bytes(bytes(built.image.ram[0].data))
    with open_image(image, symbols=[wrong, pae, right]) as guest:
        assert guest.symbol_file_of_kernel.path == str(right)
        assert guest.location.format == "x86"


def test_symbols_whose_ptes_are_of_another_size_do_not_fit(folder, tmp_path):
    """Every export agrees, but the types are of a kernel with PAE."""
    built = without_codeview(symbols_of(NT52, folder))
    other = load_isf(write_isf(tmp_path / "pae.json", SEVEN_PAE, pdb="ntkrpamp.pdb"))
    built.store = Store(replace(other, symbols=built.symbol_file.symbols), named=True, known=False)
    with pytest.raises(SymbolFileNotFoundError, match="page-table entries have 8 bytes, those of this one 4"):
        built.open()
