"""`census`: how many pages of each process and of the kernel are in each state."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, SymbolPaths, Target
from coldframe.cli.render import Value, err, out, print_json, printable

if TYPE_CHECKING:
    from rich.table import Table

    from coldframe.paging import Census, State, Via
    from coldframe.windows import Guest

KERNEL = "kernel"


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(census)


def census(
    target: Target,
    symbols: SymbolPaths,
    pid: Annotated[
        int | None, typer.Option("--pid", "-p", metavar="N", help="Only this process (default: all, and the kernel).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count pages by state. Each process's user half, and the kernel's half (pid null).

    \b
    coldframe census memory.dmp
    coldframe census win10.qmp --pid 812 --json
    """
    with open_target(target, symbols=symbols) as guest:
        counted = list(count(guest, pid))
    if as_json:
        print_json([_facts(*row) for row in counted])
        return
    out.print(_table(counted))


def count(guest: Guest, pid: int | None = None) -> Iterator[tuple[int | None, str, Census]]:
    """(pid, name, counts) of each process and then of the kernel (pid None), or of one process."""
    from rich.progress import track  # noqa: PLC0415 - slow to load

    processes = list(guest.processes) if pid is None else [guest.process(pid)]
    quiet = not sys.stderr.isatty() or len(processes) < 8
    for process in track(processes, "counting", console=err.console, transient=True, disable=quiet):
        yield process.pid, process.name, process.memory.mapped_pages().census()
    if pid is None:
        yield None, KERNEL, guest.memory.mapped_pages().census()


def total(counted: Sequence[tuple[int | None, str, Census]]) -> Census:
    """All of them together. A page that several processes share counts for each, as in their rows."""
    from coldframe.paging import Census, State, Via  # noqa: PLC0415

    return Census(
        {state: sum(counts.pages[state] for _, _, counts in counted) for state in State},
        {via: sum(counts.via[via] for _, _, counts in counted) for via in Via},
        sum(counts.readable for _, _, counts in counted),
        sum(counts.unreadable for _, _, counts in counted),
    )


def _facts(pid: int | None, name: str, census: Census) -> dict[str, Value]:
    return {
        "pid": pid,
        "name": name,
        "pages": {str(state): number for state, number in census.pages.items()},
        "via": {str(via): number for via, number in census.via.items()},
        "readable": census.readable,
        "unreadable": census.unreadable,
    }


def _table(counted: list[tuple[int | None, str, Census]]) -> Table:
    """A line a process and one for all: counts with their share of its pages; columns that are empty for all are left
    out. The states have the colours of the pictures."""
    from rich.table import Table  # noqa: PLC0415 - slow to load

    from coldframe.figures.states import COLOURS  # noqa: PLC0415
    from coldframe.paging import State, Via  # noqa: PLC0415

    states = [state for state in State if any(counts.pages[state] for _, _, counts in counted)]
    ways = [via for via in Via if any(counts.via[via] for _, _, counts in counted)]
    several = len(counted) > 1
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=several, footer_style="bold")
    rows = [*counted, (None, "all", total(counted))] if several else counted
    cells = [_cells(counts, states, ways) for _, _, counts in rows]
    footers = [f"{cell}" for cell in cells[-1]]
    table.add_column("pid", justify="right")
    table.add_column("name", footer="all")
    titles = [f"[{COLOURS[state]}]\u25a0[/] {state}" for state in states]
    for title, footer in zip(["pages", *titles, *(f"via {via}" for via in ways), "readable"], footers, strict=True):
        table.add_column(title, footer=footer, justify="right", no_wrap=True)
    for (pid, name, _), row in zip(counted, cells, strict=False):
        table.add_row("-" if pid is None else str(pid), printable(name), *row)
    return table


def _cells(counts: Census, states: Sequence[State], ways: Sequence[Via]) -> list[str]:
    pages = counts.readable + counts.unreadable
    numbers = (*(counts.pages[state] for state in states), *(counts.via[via] for via in ways), counts.readable)
    return [f"{pages:,}", *(_share(number, pages) for number in numbers)]


def _share(number: int, pages: int) -> str:
    """A count with its percentage: `1,204   8%`."""
    from coldframe.figures.census import share  # noqa: PLC0415

    return f"{number:,} [dim]{share(number, pages):>4}[/dim]" if number else "-"
