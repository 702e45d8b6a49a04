"""A file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldframe.symbols.files import atomic_file, atomic_write


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with atomic_file(path) as stream:
        stream.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_half_way_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "b"
    atomic_write(path, b"before")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_gets_the_rights_that_any_new_file_gets(tmp_path: Path) -> None:
    atomic_write(tmp_path / "b", b"")
    (tmp_path / "c").write_bytes(b"")
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "c").stat().st_mode
