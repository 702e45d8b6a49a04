"""volatility3 with coldframe as its memory layer reads the pages that its own layer loses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

import coldframe
from coldframe.minint import TruthPage, start
from coldframe.paging import State, Via
from coldframe.symbols import load_pdb, write_isf
from coldframe.volatility import PLUGINS
from outside.dump import Frozen

pytestmark = [
    pytest.mark.minint,
    pytest.mark.skipif(
        importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed (extra `volatility`)"
    ),
]

Row: TypeAlias = dict[str, object]
Key: TypeAlias = tuple[int, int]

PAGE = 4096
ADDRESS = (1 << 48) - 1
IN_RAM = {State.VALID, State.TRANSITION}

READ_PAGES = '''
import bisect, hashlib, json
from volatility3.framework import exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.plugins.windows import pslist

PAGE, END = 4096, 1 << 48

class ReadPages(interfaces.plugins.PluginInterface):
    """SHA-256 of pages: read each for itself, and found in the list of all that the layer maps."""

    _required_framework_version = (2, 0, 0)

    @classmethod
    def get_requirements(cls):
        return [
            requirements.ModuleRequirement(name="kernel", description="kernel", architectures=["Intel64"]),
            requirements.StringRequirement(name="pages", description="JSON file: pid to addresses"),
        ]

    def rows(self):
        wanted = json.load(open(self.config["pages"]))
        for process in pslist.PsList.list_processes(self.context, self.config["kernel"]):
            addresses = wanted.get(str(int(process.UniqueProcessId)), [])
            layer = self.context.layers[process.add_process_layer()]
            pieces = [(offset, size) for offset, size, *_ in layer.mapping(0, END, ignore_errors=True)]
            starts = [start for start, _ in pieces]
            for address in addresses:
                start, size = pieces[max(bisect.bisect_right(starts, address) - 1, 0)]
                listed = start <= address < start + size
                try:
                    own = hashlib.sha256(layer.read(address, PAGE)).hexdigest()
                except exceptions.InvalidAddressException:
                    own = ""
                yield 0, (int(process.UniqueProcessId), str(address), own, listed)

    def run(self):
        return renderers.TreeGrid([("PID", int), ("Address", str), ("Read", str), ("Listed", bool)], self.rows())
'''


def vol(*words: str) -> list[Row]:
    """What volatility3 prints."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "vol"), "-q", "--offline", "-r", "json", *words],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[Row] = json.loads(done.stdout)
    return rows


def isf_folder(folder: Path, symbols: Path) -> str:
    """A folder of symbols as volatility3 wants it, with minint's kernel."""
    kernel = load_pdb(symbols / "ntkrnlmp.pdb")
    path = folder / "windows" / "ntkrnlmp.pdb" / f"{kernel.identity.guid}-{kernel.identity.age}.json.xz"
    path.parent.mkdir(parents=True)
    write_isf(kernel, path)
    return str(folder)


@pytest.fixture(scope="module")
def pages(frozen: Frozen) -> dict[Key, TruthPage]:
    """The pages whose content the guest told."""
    return {(page.pid, page.address & ADDRESS): page for page in frozen.truth.pages if page.sha256}


@pytest.fixture(scope="module")
def read(
    frozen: Frozen, pages: dict[Key, TruthPage], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[Key, Row]]:
    """`read(ours)`: what volatility3 reads of these pages, through coldframe's layer or through its own."""
    folder = tmp_path_factory.mktemp("layer")
    plugin = folder / "plugins" / "windows" / "readpages.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(READ_PAGES)
    wanted: dict[int, list[int]] = {}
    for pid, address in pages:
        wanted.setdefault(pid, []).append(address)
    listed = folder / "pages.json"
    listed.write_text(json.dumps(wanted))
    symbols = isf_folder(folder / "isf", frozen.symbols)
    answers: dict[bool, dict[Key, Row]] = {}

    def run(ours: bool) -> dict[Key, Row]:
        if ours not in answers:
            folders = f"{folder / 'plugins'};{PLUGINS}" if ours else str(folder / "plugins")
            rows = vol("-p", folders, "-s", symbols, "-f", str(frozen.image),
                       "windows.readpages.ReadPages", "--pages", str(listed))  # fmt: skip
            answers[ours] = {(int(str(row["PID"])), int(str(row["Address"]))): row for row in rows}
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
