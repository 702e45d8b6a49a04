"""`figure`: the picture of a path, of an address space, or of a census."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import SymbolPaths, Target
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from coldframe.figures import Area, Canvas
    from coldframe.windows import Guest, Process

SUFFIXES = (".svg", ".png")
_SHARED_DATA = 0xFFFFF78000000000
"""Where every 64-bit Windows maps its KUSER_SHARED_DATA in the kernel's half."""


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
    pages = (guest.memory if process is None else process.memory).mapped_pages()
    number = int(pages.size.sum()) // PAGE_SIZE
    what = "module" if process is None else "VAD"
    named = sum(area.start != _SHARED_DATA for area in areas)
    readable = int(pages.size[pages.readable].sum()) // PAGE_SIZE
    says = f"a cell is a page of 4 KB: {number:,} pages, {readable:,} readable; {named} {what}{'s' * (named != 1)}"
    if process is not None:
        return map_figure(pages, areas, _name(process), says, rest=f"outside every {what}", note=_RIGHTS_NOTE)
    return map_figure(pages, areas, _name(process), says, rest=_kernel_rest(guest))


def _census(guest: Guest, pid: int | None) -> Canvas:
    from coldframe.cli.census import count, total  # noqa: PLC0415
    from coldframe.figures import census_figure  # noqa: PLC0415

    counted = list(count(guest, pid))
    return census_figure(counted, "Where the pages are", None if len(counted) < 2 else total(counted))


def _name(process: Process | None) -> str:
    return "the kernel's address space" if process is None else f"{process.name}, pid {process.pid}"


_RIGHTS = {
    "NOACCESS": "---",
    "READONLY": "r--",
    "READWRITE": "rw-",
    "WRITECOPY": "rc-",
    "EXECUTE": "--x",
    "EXECUTE_READ": "r-x",
    "EXECUTE_READWRITE": "rwx",
    "EXECUTE_WRITECOPY": "rcx",
}
"""A VAD's protection in three letters."""
_RIGHTS_NOTE = "r read, w write, x execute, c copy-on-write"


def _vad_areas(process: Process) -> list[Area]:
    from coldframe.figures import Area  # noqa: PLC0415

    return [
        Area(vad.start, vad.end, (vad.file or "").rpartition("\\")[2], f"{vad.kind} {_rights(vad.protection)}")
        for vad in process.vads
    ]


def _rights(protection: str) -> str:
    name = protection.removeprefix("PAGE_")
    return _RIGHTS.get(name, name.lower())


def _kernel_areas(guest: Guest) -> list[Area]:
    """The modules, and what else in the kernel's half has a place of its own."""
    from coldframe.figures import Area  # noqa: PLC0415

    areas = [Area(module.base, module.base + module.size, module.name, "module") for module in guest.drivers]
    if guest.resolver.format.canonical:
        areas.append(Area(_SHARED_DATA, _SHARED_DATA + 0x1000, "", "KUSER_SHARED_DATA"))
    return areas


def _kernel_rest(guest: Guest) -> Callable[[int], str]:
    """What is to be said of addresses outside every module."""
    from coldframe.paging.selfmap import self_map  # noqa: PLC0415

    page_format = guest.resolver.format
    base = self_map(guest.physical, page_format, guest.dtb)
    size = 1 << page_format.levels[0].shift if page_format.canonical else 0x800000

    def says(address: int) -> str:
        return "page tables" if base is not None and base <= address < base + size else "outside every module"

    return says
