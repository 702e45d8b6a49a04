"""volatility3 with coldframe as its memory layer reads the pages that its own layer loses."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import coldframe
from coldframe.minint import TruthPage, start
from coldframe.paging import State, Via
from coldframe.volatility import PLUGINS
from outside.dump import Frozen
from outside.readers import Key, Row, by_volatility, isf_folder, pages_with_content, vol

pytestmark = [
    pytest.mark.minint,
    pytest.mark.skipif(
        importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed (extra `volatility`)"
    ),
]

PAGE = 4096
ADDRESS = (1 << 48) - 1
IN_RAM = {State.VALID, State.TRANSITION}


@pytest.fixture(scope="module")
def pages(frozen: Frozen) -> dict[Key, TruthPage]:
    """The pages whose content the guest told."""
    return pages_with_content(frozen.truth.pages)


@pytest.fixture(scope="module")
def read(
    frozen: Frozen, pages: dict[Key, TruthPage], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[Key, Row]]:
    """`read(ours)`: what volatility3 reads of these pages, through coldframe's layer or through its own."""
    folder = tmp_path_factory.mktemp("layer")
    symbols = isf_folder(folder / "isf", frozen.symbols)
    answers: dict[bool, dict[Key, Row]] = {}

    def run(ours: bool) -> dict[Key, Row]:
        if ours not in answers:
            answers[ours] = by_volatility(folder, frozen.image, symbols, pages, ours=ours)
            assert set(answers[ours]) == set(pages)
        return answers[ours]

    return run


def right(pages: dict[Key, TruthPage], answers: dict[Key, Row]) -> set[Key]:
    return {key for key, page in pages.items() if answers[key]["Read"] == page.sha256}


def has_table(page: TruthPage) -> bool:
    """Whether the image can tell where the page is: its page table is not in a paging file."""
    return Via.PAGED_TABLE not in page.via


def test_all_pages_in_ram_and_all_promised_zeros_are_read(
    pages: dict[Key, TruthPage], read: Callable[[bool], dict[Key, Row]]
) -> None:
    expected = {key for key, page in pages.items() if page.state in {*IN_RAM, State.DEMAND_ZERO} and has_table(page)}
    missed = expected - right(pages, read(True))
    assert not missed, Counter((pages[key].state, pages[key].via) for key in missed)


def test_nothing_else_than_the_truth_is_read(
    pages: dict[Key, TruthPage], read: Callable[[bool], dict[Key, Row]]
) -> None:
    answers = read(True)
    told = {key for key in pages if answers[key]["Read"]}
    assert told == right(pages, answers)


def test_the_list_of_mapped_pages_has_all_that_are_in_ram(
    pages: dict[Key, TruthPage], read: Callable[[bool], dict[Key, Row]]
) -> None:
    answers = read(True)
    expected = {key for key, page in pages.items() if page.state in IN_RAM and has_table(page)}
    assert {key for key in pages if answers[key]["Listed"]} == expected


def test_its_own_layer_loses_pages_that_coldframes_reads(
    pages: dict[Key, TruthPage], read: Callable[[bool], dict[Key, Row]]
) -> None:
    own, ours = right(pages, read(False)), right(pages, read(True))
    assert own < ours
    for state, via in [
        (State.TRANSITION, {Via.TRANSITION_TABLE}),
        (State.TRANSITION, {Via.PROTOTYPE}),
        (State.TRANSITION, {Via.VAD, Via.PROTOTYPE}),
        (State.VALID, {Via.VAD, Via.PROTOTYPE}),
        (State.DEMAND_ZERO, set()),
        (State.DEMAND_ZERO, {Via.VAD}),
    ]:
        some = {key for key, page in pages.items() if page.state == state and set(page.via) == via}
        assert some
        assert some <= ours
        assert not some & own, (state, via)


def test_a_running_guest_is_read_and_runs_on(tmp_path: Path) -> None:
    with start(layout="19041", vcpus=2) as machine:
        symbols = isf_folder(tmp_path / "isf", machine.symbols_folder)
        rows = vol("-p", str(PLUGINS), "-s", symbols, "-f", f"coldframe:{machine.qmp}", "windows.pslist")
        with coldframe.attach(machine.qmp, symbols=[machine.symbols_folder]) as guest:
            assert [row["PID"] for row in rows] == [process.pid for process in guest.processes]
            assert guest.vm.was_running


RULES = """
rule words {
    strings:
        $a = "paragraph" nocase ascii wide
        $b = "Documents" wide
        $c = { 4d 5a 78 00 }
    condition:
        any of them
}
"""


def test_yara_rules_find_what_vadyarascan_finds(frozen: Frozen, tmp_path: Path) -> None:
    pytest.importorskip("yara_x", reason="yara-x is not installed (extra `yara`)")
    from coldframe.paging.yara import Rules

    rules = tmp_path / "rules.yar"
    rules.write_text(RULES)
    isf = isf_folder(tmp_path / "isf", frozen.symbols)
    words = ("windows.vadyarascan", "--yara-file", str(rules))
    told = {
        (row["PID"], row["Offset"], row["Component"])
        for row in vol("-p", str(PLUGINS), "-s", isf, "-f", str(frozen.image), *words)
    }
    compiled = Rules.load(rules)
    found = {
        (process.pid, hit.match.address, hit.pattern)
        for process in frozen.guest.processes
        for hit in compiled.search(process.memory)
    }
    assert len(found) > 10
    assert found == told


COMMON = ("pslist", "psscan", "pstree", "modules", "vadinfo", "dlllist", "handles", "memmap", "dumpfiles", "malfind")


@pytest.mark.parametrize("plugin", COMMON)
def test_common_plugins_run_through_the_layer(frozen: Frozen, plugin: str, tmp_path: Path) -> None:
    if frozen.guest.build != 19041:
        pytest.skip("one layout is enough")
    isf = isf_folder(tmp_path / "isf", frozen.symbols)
    notepad = frozen.guest.process("notepad.exe").pid
    words = ["--pid", str(notepad)] if plugin in {"memmap", "dumpfiles"} else []
    rows = vol("-o", str(tmp_path), "-p", str(PLUGINS), "-s", isf, "-f", str(frozen.image), f"windows.{plugin}", *words)
    assert rows or plugin in {
        "handles",
        "malfind",
    }  # of minint's handles volatility3 makes nothing with its layer either
