"""How long it takes to attach to a running minint with warm caches, in the library and as a whole process.

- attach: `coldframe.attach` until the kernel and its symbols are found and the guest stands still.
- list: the names of all processes. close: breakpoints gone, the guest runs, the gdbstub is closed.
- `coldframe ps`: from the shell's call to its end; beside it, what Python and the imports take of that.

Run: `.venv/bin/python benchmarks/attach.py [--vcpus N] [--rounds N]`
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

from coldframe import attach
from coldframe.minint import Minint, start


def in_library(machine: Minint, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part, for each of `rounds`; the first attachment, which fills the caches, is left out."""
    parts: dict[str, list[float]] = {"attach": [], "list": [], "close": [], "all three": []}
    for number in range(rounds + 1):
        times = [time.perf_counter()]
        guest = attach(machine.qmp, symbols=[machine.symbols_folder])
        times.append(time.perf_counter())
        assert "notepad.exe" in [process.name for process in guest.processes]
        times.append(time.perf_counter())
        guest.close()
        times.append(time.perf_counter())
        for name, (begin, end) in zip(parts, [(0, 1), (1, 2), (2, 3), (0, 3)], strict=True):
            if number:
                parts[name].append(times[end] - times[begin])
    return parts


def run(words: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of processor time of a process."""
    began = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(words[0], words, os.environ, file_actions=quiet)
    _, status, used = os.wait4(child, 0)
    assert status == 0, words
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def row(name: str, seconds: list[float], processor: list[float] | None = None) -> str:
    used = f"{statistics.median(processor):10.3f}" if processor else ""
    return f"{name:<36}{statistics.median(seconds):8.3f}{min(seconds):8.3f}{used}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    python = sys.executable
    with start(vcpus=options.vcpus, options="PACE=500") as machine:
        ps = [python, "-m", "coldframe", "ps", str(machine.qmp), "--symbols", str(machine.symbols_folder)]
        calls: dict[str, Callable[[], tuple[float, float]]] = {
            "coldframe ps": lambda: run(ps),
            "coldframe ps --json": lambda: run([*ps, "--json"]),
            "  of that: Python alone": lambda: run([python, "-c", ""]),
            "  of that: import numpy": lambda: run([python, "-c", "import numpy"]),
            "  of that: import typer": lambda: run([python, "-c", "import typer, typer.main"]),
            "  of that: import coldframe.debug": lambda: run([python, "-c", "import coldframe.debug"]),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        library = in_library(machine, options.rounds)
        for _ in range(options.rounds):
            for name, call in calls.items():
                taken[name].append(call())
    print(f"{options.vcpus} vCPUs, {options.rounds} rounds, seconds\n{'':<36}{'median':>8}{'best':>8}{'processor':>10}")
    for name, seconds in library.items():
        print(row(name, seconds))
    for name, both in taken.items():
        print(row(name, [clock for clock, _ in both], [used for _, used in both]))


if __name__ == "__main__":
    main()
