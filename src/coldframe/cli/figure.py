"""`figure`: the picture of a path, of an address space, or of a census."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import SymbolPaths, Target
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.figures import Area, Canvas
    from coldframe.windows import Guest, Process

SUFFIXES = (".svg", ".png")


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(figure)


def figure(
    target: Target,
    symbols: SymbolPaths,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The picture: .svg or .png.")],
    address: Annotated[
        str | None, typer.Argument(metavar="[ADDRESS]", help="Draw the path of this address or symbol.")
    ] = None,
    as_map: Annotated[bool, typer.Option("--map", help="Draw an address space, a cell a page.")] = False,
    as_census: Annotated[bool, typer.Option("--census", help="Draw how many pages are in each state.")] = False,
    pid: Annotated[
        int | None, typer.Option("--pid", "-p", metavar="N", help="This process (default: the kernel).", min=0)
    ] = None,
) -> None:
    """Draw an address's path, a map of a space, or a census.

    \b
    coldframe figure memory.dmp 0x7ff743655000 --pid 812 -o path.svg
    coldframe figure memory.dmp --map --pid 812 -o notepad.png
    coldframe figure win10.qmp --census -o census.svg
    """
    if (address is not None) + as_map + as_census != 1:
        raise UsageError("expected one of ADDRESS, --map and --census")
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"expected a picture's name that ends in .svg or .png, found {output.name}")
    with open_target(target, symbols=symbols) as guest:
        if address is not None:
            canvas = _path(guest, address, pid)
        else:
            canvas = _map(guest, pid) if as_map else _census(guest, pid)
    canvas.save(output)


def _path(guest: Guest, address: str, pid: int | None) -> Canvas:
    from coldframe.cli.pages import Place  # noqa: PLC0415
    from coldframe.figures import path_figure  # noqa: PLC0415 - keeps the call's words from loading numpy

    place = Place.parse(address)
    process = None if pid is None else guest.process(pid)
    space = guest.memory if process is None else process.memory
    return path_figure(space.resolve(place.address(guest, pid)), guest.resolver.format, _name(process))


def _map(guest: Guest, pid: int | None) -> Canvas:
    from coldframe.figures import map_figure  # noqa: PLC0415
    from coldframe.paging.formats import PAGE_SIZE  # noqa: PLC0415

    process = None if pid is None else guest.process(pid)
    areas = _kernel_areas(guest) if process is None else _vad_areas(process)
    pages = (guest.memory if process is None else process.memory).pages()
    number = int(pages.size.sum()) // PAGE_SIZE
    what = "module" if process is None else "VAD"
    says = f"a cell is a page of 4 KB: {number:,} pages, {len(areas)} {what}{'' if len(areas) == 1 else 's'}"
    return map_figure(pages, areas, _name(process), says, rest=f"outside every {what}")


def _census(guest: Guest, pid: int | None) -> Canvas:
    from coldframe.cli.census import count  # noqa: PLC0415
    from coldframe.figures import census_figure  # noqa: PLC0415

    return census_figure(list(count(guest, pid)), "Where the pages are")


def _name(process: Process | None) -> str:
    return "the kernel's address space" if process is None else f"{process.name}, pid {process.pid}"


def _vad_areas(process: Process) -> list[Area]:
    from coldframe.figures import Area  # noqa: PLC0415

    return [
        Area(vad.start, vad.end, (vad.file or "").rpartition("\\")[2], f"{vad.kind} {vad.protection[5:].lower()}")
        for vad in process.vads
    ]


def _kernel_areas(guest: Guest) -> list[Area]:
    from coldframe.figures import Area  # noqa: PLC0415

    return [Area(module.base, module.base + module.size, module.name, "driver") for module in guest.drivers]
