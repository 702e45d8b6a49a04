"""A minint before its first instruction, a coldframe that steers its boot, and the machine's own command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coldframe.minint import Minint, start
from coldframe.minint.machine import GUEST, build
from coldframe.qemu import VirtualMachine
from coldframe.resident import BootEvent, BootOptions, Machine, Report, ResidentBoot, verify
from coldframe.target import symbol_store

MEMORY = "256M"
QUICK = BootOptions(timeout=60.0, until="notepad.exe", until_timeout=60.0, settle=0.0)


@dataclass
class Steered:
    """What a watched boot told, and what was found afterwards."""

    machine: Minint
    boot: ResidentBoot
    report: Report
    events: list[BootEvent] = field(default_factory=list)

    def told(self, kind: str) -> list[BootEvent]:
        return [event for event in self.events if event.kind == kind]


@contextmanager
def paused(options: str = "", layout: str = "19041", vcpus: int = 2, **words: object) -> Iterator[Minint]:
    """A minint that has not run its first instruction."""
    with start(layout=layout, vcpus=vcpus, memory=MEMORY, options=options, paused=True, **words) as machine:  # type: ignore[arg-type]
        yield machine


@contextmanager
def steered(
    options: str = "", *, boot: BootOptions = QUICK, layout: str = "19041", vcpus: int = 2, **words: object
) -> Iterator[Steered]:
    """A minint that has booted residently, and runs."""
    with paused(options, layout, vcpus, **words) as machine:
        events: list[BootEvent] = []
        with VirtualMachine.attach(machine.qmp, leave_running=True) as vm:
            watched = ResidentBoot(vm, symbol_store([machine.symbols_folder]), boot, events.append)
            report = verify(watched.run(), watched)
        yield Steered(machine, watched, report, events)


def make_disk(folder: Path, layout: str = "19041") -> tuple[Path, Path]:
    """A disk of minint's in `folder`, and the folder of what was built."""
    built = build(layout)
    disk = folder / "minint.qcow2"
    subprocess.run(
        [sys.executable, str(GUEST / "disk.py"), "--built", str(built), "--output", str(disk)],
        check=True, capture_output=True,
    )  # fmt: skip
    return disk, built


def kernel_words(built: Path, options: str = "") -> tuple[str, ...]:
    """minint has no boot loader on its disk: QEMU loads its kernel."""
    return ("-kernel", str(built / "loader.elf"), "-initrd", str(built / "ntoskrnl.exe"), "-append", options)


def minint_machine(built: Path, options: str = "", *extra: str) -> Machine:
    return Machine(MEMORY, 2, "tcg", "virtio", (*kernel_words(built, options), *extra))


def coldframe(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "coldframe", *map(str, words)]
