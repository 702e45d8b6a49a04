"""`dump`: the memory of an image, of a running guest or of one process, written in another format."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import said
from coldframe.cli.options import SymbolPaths, Target
from coldframe.cli.render import err, printable
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.images.output import Progress as Report

_QUIET_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(dump)


def dump(
    target: Target,
    symbols: SymbolPaths,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write.", show_default=False)
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option(
            "--format",
            metavar="raw|elf|dmp|minidump",
            help="Default: by FILE's suffix (.raw .bin .vmem, .elf .core, .dmp; of a process .elf .core, .dmp .mdmp).",
            show_default=False,
        ),
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option(
            "--pid", "-p", metavar="N", help="This process: an ELF core or a minidump, and a manifest.", min=0
        ),
    ] = None,
    wtf: Annotated[
        Path | None,
        typer.Option("--wtf", metavar="FOLDER", help="For the fuzzer wtf: mem.dmp and regs.json.", show_default=False),
    ] = None,
    vcpu: Annotated[int, typer.Option("--vcpu", metavar="N", help="With --wtf: whose registers.", min=0)] = 0,
) -> None:
    """Write memory to a dump. A raw image, an ELF core or a crash dump; a running guest is paused meanwhile.

    With --pid the address space of a process, and in FILE.manifest.json what of it could not be read, and why.

    \b
    coldframe dump win10.qmp -o win10.dmp
    coldframe dump memory.dmp -o memory.elf
    coldframe dump win10.qmp --pid 812 -o notepad.mdmp
    coldframe dump win10.qmp --wtf snapshot
    """
    if (output is None) == (wtf is None) or (wtf and (format or pid is not None)):
        raise UsageError("expected --output FILE, or --wtf FOLDER without --format and --pid")
    if wtf is not None:
        _dump_for_wtf(target, wtf, symbols, vcpu)
    elif output is not None:
        _dump(target, output, symbols, format, pid)


def _dump_for_wtf(target: str, folder: Path, symbols: list[Path], vcpu: int) -> None:
    from coldframe.wtfdump import dump_wtf  # noqa: PLC0415 - only this verb writes images

    with _progress() as report:
        warnings = dump_wtf(target, folder, symbols=symbols, vcpu=vcpu, progress=report)
    for warning in warnings:
        err.print(f"[yellow]{printable(warning)}[/yellow]")


def _dump(target: str, output: Path, symbols: list[Path], chosen: str | None, pid: int | None) -> None:
    from coldframe.dumping import dump as write  # noqa: PLC0415 - only this verb writes images

    with _progress() as report:
        warnings = write(target, output, format=chosen, symbols=symbols, progress=report, pid=pid, **said())
    for warning in warnings:
        err.print(f"[yellow]{printable(warning)}[/yellow]")


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on standard error that appears after a second; none where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import (  # noqa: PLC0415 - slow to load
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), TaskProgressColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    bar = Progress(*columns, console=err.console, transient=True)
    task = bar.add_task("")
    started, shown = time.monotonic(), False

    def report(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > _QUIET_SECONDS:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()
