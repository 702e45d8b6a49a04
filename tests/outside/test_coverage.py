"""No page that another tool reads right is read otherwise by coldframe, on minint and on real kernels' types."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from coldframe.paging import State
from outside.dump import Frozen
from outside.kernels import KERNELS, both, outcome, scenes
from outside.readers import (
    ZEROS,
    Answers,
    by_coldframe,
    by_memprocfs,
    by_volatility,
    isf_folder,
    pages_with_content,
)

NO_VOLATILITY = pytest.mark.skipif(
    importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed (extra `volatility`)"
)


@pytest.fixture(scope="module")
def own(frozen: Frozen) -> Answers:
    return by_coldframe(frozen.image, frozen.symbols, pages_with_content(frozen.truth.pages), frozen.disk)


@pytest.mark.minint
def test_with_the_disk_nothing_is_read_wrong_and_all_but_what_no_file_has_is_read(frozen: Frozen, own: Answers) -> None:
    pages = pages_with_content(frozen.truth.pages)
    wrong = Counter((page.state, page.via) for key, page in pages.items() if own[key] not in {"", page.sha256})
    lost = Counter((page.state, page.via) for key, page in pages.items() if not own[key])
    assert not wrong
    assert not lost


@pytest.mark.minint
@NO_VOLATILITY
def test_what_volatility3_reads_right_is_read_the_same(
    frozen: Frozen, own: Answers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("coverage")
    pages = pages_with_content(frozen.truth.pages)
    isf = isf_folder(folder / "isf", frozen.symbols)
    theirs = by_volatility(folder, frozen.image, isf, pages, ours=False)
    right = {key for key, page in pages.items() if theirs[key]["Read"] == page.sha256}
    assert len(right) > 200
    assert all(own[key] == pages[key].sha256 for key in right)


@pytest.mark.minint
def test_what_memprocfs_reads_right_is_read_the_same(frozen: Frozen, own: Answers) -> None:
    pytest.importorskip("memprocfs", reason="memprocfs is not installed (dependency group `outside`)")
    pages = pages_with_content(frozen.truth.pages)
    theirs = by_memprocfs(frozen.image, list(pages))
    right = {key for key, page in pages.items() if theirs[key] == page.sha256}
    assert len([key for key in right if pages[key].sha256 != ZEROS]) > 100
    assert all(own[key] == pages[key].sha256 for key in right)


@NO_VOLATILITY
@pytest.mark.parametrize(
    "words",
    [words for words in scenes(list(KERNELS)[::4]) if words[2] != "mask bit 35"],
    ids=lambda words: words[0][:8],
)
def test_what_volatility3s_layer_reads_right_of_a_real_kernels_page_states_is_read_the_same(
    words: tuple[str, str, str], tmp_path: Path
) -> None:
    right = 0
    for case, theirs, ours in both(tmp_path, *words):
        if outcome(case, theirs) == "right":
            assert ours == theirs, case.name
            right += case.state is State.VALID
        assert outcome(case, ours) == ("not" if case.content is None else "right"), case.name
    assert right > 2
