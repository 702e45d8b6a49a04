"""The tutorial's sessions run on a minint as it says to start one, and its programs print what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldframe.minint import start
from docs.test_sessions import ROOT, Command, commands, run, shows

pytestmark = pytest.mark.minint

PAGE = ROOT / "docs" / "tutorial.md"
PROGRAM = re.compile(r"^```python\n(.*?)^```\n\n^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = PROGRAM.findall(PAGE.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as `folder` of the other pages' sessions has; the minint has the options of the page."""
    place = tmp_path_factory.mktemp("tutorial")
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith("coldframe minint"))
    words = shlex.split(line)
    with start(vcpus=2, qmp=place / "minint.qmp", options=words[words.index("--options") + 1]) as machine:
        machine.wait_for("process", accept=lambda event: event["name"] == "brief.exe", timeout=60)
        (place / "symbols").symlink_to(machine.symbols_folder)
        yield place


@pytest.mark.parametrize("command", commands([PAGE]), ids=lambda command: f"line {command.line}")
def test_a_session_of_the_tutorial_runs(command: Command, folder: Path) -> None:
    shows(run(command.words, folder), command.shown)


@pytest.mark.parametrize(("program", "shown"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_tutorial_prints_what_it_shows(program: str, shown: str, folder: Path) -> None:
    (folder / "program.py").write_text(program)
    shows(run("python program.py", folder), tuple(shown.splitlines()))


def test_every_program_is_run() -> None:
    assert len(PROGRAMS) == PAGE.read_text().count("```python") >= 4
