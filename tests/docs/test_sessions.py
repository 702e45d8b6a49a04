"""Every console session in the README and in docs/ runs, on a minint, and prints what it shows.

A session is a fenced `console` block with lines `$ coldframe ...`, or `$ gdb ...`. Numbers, addresses and times differ
from run to run, so any number stands for any other; a line of three dots stands for any lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from coldframe.minint import start

pytestmark = pytest.mark.minint

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ELLIPSIS = {"...", "…"}
WALK = ROOT / "docs" / "tutorial.md"
"""Has a guest of its own: see test_tutorial."""
NUMBER = re.compile(r"(?:0x)?[0-9a-fA-F]*\d[0-9a-fA-F`.:-]*|-+|(?<= )\s+")


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    words: str
    shown: tuple[str, ...]


def commands(pages: Sequence[Path] = tuple(page for page in PAGES if page != WALK)) -> list[Command]:
    """Each `$ coldframe ...` and `$ gdb ...` of each console block, with the lines under it."""
    found = []
    for page in pages:
        lines = page.read_text().splitlines()
        inside = False
        current: tuple[int, str] | None = None
        shown: list[str] = []
        for number, line in enumerate([*lines, "```"], 1):
            if inside and (line.startswith(("$ ", "```"))):
                if current and current[1].startswith(("coldframe ", "gdb ")) and "…" not in current[1]:
                    found.append(Command(page.name, current[0], current[1], tuple(shown)))
                current, shown = None, []
            if line.startswith("```"):
                inside = line == "```console" and not inside
            elif inside and line.startswith("$ "):
                current = (number, line[2:].partition("  #")[0].strip())
            elif inside and current:
                shown.append(line)
    return found


def pattern(line: str) -> re.Pattern[str]:
    """What `line` stands for: the same words, any numbers, any spacing."""
    words = (re.escape(NUMBER.sub("\0", word)).replace("\\\0", "\0").replace("\0", r"\S*?") for word in line.split())
    return re.compile(r"\s*" + r"\s+".join(words) + r"\s*$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the socket `minint.qmp` of a running minint and its PDBs in `symbols`."""
    place = tmp_path_factory.mktemp("sessions")
    with start(vcpus=2, qmp=place / "minint.qmp") as machine:
        machine.wait_until_steady()
        (place / "symbols").symlink_to(machine.symbols_folder)
        yield place


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.page}:{command.line}")
def test_a_session_runs_and_prints_what_it_shows(command: Command, folder: Path) -> None:
    shows(run(command.words, folder), command.shown)


def run(words: str, folder: Path) -> str:
    """What a line of the shell prints, in `folder`."""
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "_NT_SYMBOL_PATH": "symbols"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shows(text: str, lines: Sequence[str]) -> None:
    """`lines` are in `text`, in that order."""
    printed = iter(text.splitlines())
    for line in lines:
        if line.strip() and line.strip() not in ELLIPSIS:
            wanted = pattern(line)
            assert any(wanted.match(other) for other in printed), f"{line!r} is not in:\n{text}"


def test_there_are_sessions() -> None:
    assert len(commands()) >= 4
    assert any(command.page == "README.md" for command in commands())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
