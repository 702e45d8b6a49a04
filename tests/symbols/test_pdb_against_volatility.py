"""A PDB and the ISF file that volatility3's own converter makes of it say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coldframe.symbols import load_isf, load_pdb
from coldframe.symbols.model import Enum, Record


def converted(pdb: Path) -> dict[str, Any]:
    pytest.importorskip("volatility3", reason="needs the extra `volatility`")
    from volatility3.framework import contexts
    from volatility3.framework.symbols.windows.pdbconv import PdbReader

    document = PdbReader(contexts.Context(), pdb.resolve().as_uri(), pdb.name).get_json()
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


def test_ntdll_has_the_same_types_paths_and_names(tmp_path: Path, ntdll: Path) -> None:
    path = tmp_path / "ntdll.json"
    path.write_text(json.dumps(converted(ntdll)))
    ours, theirs = load_pdb(ntdll), load_isf(path)
    assert ours.identity == theirs.identity
    assert list(ours.types.names()) == list(theirs.types.names())
    for name in ours.types.names():
        mine, other = ours.types.find(name), theirs.types.find(name)
        assert mine == other, name
        if isinstance(mine, Record) and isinstance(other, Record):
            assert list(mine.fields.items()) == sorted(
                other.fields.items(), key=lambda item: list(mine.fields).index(item[0])
            )
        else:
            assert isinstance(mine, Enum)
    assert set(theirs.symbols.items()) <= set(ours.symbols.items())
