"""Draws the pictures of the documentation, from a minint whose every random choice is fixed.

Run: `.venv/bin/python docs/figures/draw.py [FOLDER]` (default: where this file is)
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import coldframe
from coldframe.cli.main import run
from coldframe.minint import start

PATH = "0x20340003000"
"""In minint's states.exe: tables in transition, a PTE that says "look in the VAD", a prototype PTE in transition."""


def main() -> None:
    """Boot, dump, draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    with tempfile.TemporaryDirectory() as temporary, start(vcpus=1, options="SEED=1") as machine:
        image = Path(temporary) / "minint.elf"
        machine.write_dump(image)
        os.environ["_NT_SYMBOL_PATH"] = str(machine.symbols_folder)
        with coldframe.open(image) as guest:
            states = str(guest.process("states.exe").pid)
        for words in (
            [PATH, "--pid", states, "-o", str(folder / "path.svg")],
            ["--map", "--pid", states, "-o", str(folder / "map.svg")],
            ["--census", "-o", str(folder / "census.svg")],
        ):
            if run(["figure", str(image), "--no-disk", *words]):
                sys.exit(1)


if __name__ == "__main__":
    main()
