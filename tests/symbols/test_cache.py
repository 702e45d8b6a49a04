"""The second load of a symbol file is a memory map of what the first compiled."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

from coldframe.errors import FormatError
from coldframe.symbols import SymbolFile, TableCache, load_symbols
from coldframe.symbols import cache as cache_module
from coldframe.symbols.tables import TableSymbols
from symbols import handmade as make


def pdb(*names: str) -> bytes:
    symbols = b"".join(make.public(name, 1, 16 * number) for number, name in enumerate(names))
    return make.pdb(b"", symbols, [make.section(".text", 0x1000)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.pdb"
    path.write_bytes(pdb("NtClose"))
    return path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were compiled, in order."""
    done: list[Path] = []
    compile_file = cache_module.compile_file

    def watched(path: Path) -> bytes:
        done.append(path)
        return compile_file(path)

    monkeypatch.setattr(cache_module, "compile_file", watched)
    return done


def is_mapped(found: SymbolFile) -> bool:
    assert isinstance(found.symbols, TableSymbols)
    return isinstance(found.symbols._table.buffer, mmap.mmap)


def tables(home: Path) -> list[Path]:
    return sorted(home.glob("tables-*/*"))


def test_the_second_load_maps_what_the_first_compiled(path: Path, cache_home: Path, compiled: list[Path]) -> None:
    first, second = load_symbols(str(path)), load_symbols(str(path))
    assert compiled == [path]
    assert is_mapped(second)
    assert list(second.symbols.items()) == list(first.symbols.items()) == [("NtClose", 0x1000)]
    assert (second.path, second.identity) == (str(path), first.identity)
    assert len(tables(cache_home)) == 1


def test_a_source_that_changed_is_compiled_anew(path: Path, compiled: list[Path]) -> None:
    assert load_symbols(str(path)).symbols.get("NtOpen") is None
    told = path.stat()
    path.write_bytes(pdb("NtOpen"))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert load_symbols(str(path)).symbols.get("NtOpen") == 0x1000
    assert len(compiled) == 2


def test_symbols_in_use_outlive_a_change_of_their_source(path: Path) -> None:
    before = load_symbols(str(path))
    path.write_bytes(pdb("NtOpen"))
    load_symbols(str(path))
    assert before.symbols.get("NtClose") == 0x1000


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "other"])
def test_a_damaged_cache_is_made_anew(path: Path, cache_home: Path, compiled: list[Path], damage: str) -> None:
    load_symbols(str(path))
    (place,) = tables(cache_home)
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes({"empty": b"", "cut": content[:-5], "flip": content, "other": b"something else" * 9}[damage])
    assert load_symbols(str(path)).symbols.get("NtClose") == 0x1000
    assert len(compiled) == 2
    load_symbols(str(path))
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_is_done_without(path: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "a file where a folder has to be"
    blocked.write_bytes(b"")
    found = TableCache(blocked).load(path)
    assert found.symbols.get("NtClose") == 0x1000
    assert not is_mapped(found)


def test_a_source_that_is_damaged_leaves_nothing_in_the_cache(path: Path, cache_home: Path) -> None:
    path.write_bytes(pdb("NtClose")[:700])
    with pytest.raises(FormatError):
        load_symbols(str(path))
    assert tables(cache_home) == []


def test_two_who_load_at_once_both_get_it_whole(path: Path, cache_home: Path) -> None:
    found: list[SymbolFile] = []
    threads = [threading.Thread(target=lambda: found.append(TableCache().load(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(one.symbols.items()) for one in found] == [[("NtClose", 0x1000)]] * 8
    assert len(tables(cache_home)) == 1
