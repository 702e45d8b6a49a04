"""`handles` and `objects`: what processes hold open, and the object manager's namespace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, SymbolPaths, Target
from coldframe.cli.render import Address, Value, print_rows
from coldframe.errors import UnreadableMemoryError

if TYPE_CHECKING:
    from coldframe.windows import Guest
    from coldframe.windows.handle import Handle

Row = Mapping[str, Value]

OnlyPid = Annotated[
    int | None, typer.Option("--pid", "-p", metavar="N", help="Only this process (default: all).", min=0)
]
OnlyType = Annotated[
    str | None, typer.Option("--type", "-t", metavar="TYPE", help="Only objects of this type: File, Section, Process.")
]
Below = Annotated[str, typer.Option("--path", metavar="PATH", help="Only what lies in this directory.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to `app`."""
    for verb in (handles, objects):
        app.command()(verb)


def handles(
    target: Target, symbols: SymbolPaths, pid: OnlyPid = None, kind: OnlyType = None, as_json: Json = False
) -> None:
    """Open handles of all processes, or of one.

    \b
    coldframe handles win10.qmp --pid 812
    coldframe handles memory.dmp --type File --json | jq -r '.[].path'
    """
    with open_target(target, symbols=symbols) as guest:
        print_rows(
            _handle_rows(guest, pid, kind),
            as_json=as_json,
            columns=("pid", "process", "handle", "object", "type", "access", "path"),
        )


def objects(target: Target, symbols: SymbolPaths, path: Below = "\\", as_json: Json = False) -> None:
    """Named objects: the object manager's tree.

    \b
    coldframe objects win10.qmp
    coldframe objects memory.dmp --path '\\Device'
    """
    with open_target(target, symbols=symbols) as guest:
        print_rows(
            (
                {"path": found.path, "type": found.type, "object": Address(found.address), "target": found.target}
                for found in guest.objects.directory(path)
            ),
            as_json=as_json,
            columns=("path", "type", "object", "target"),
        )


def _handle_rows(guest: Guest, pid: int | None, kind: str | None) -> Iterator[Row]:
    for process in guest.processes if pid is None else (guest.process(pid),):
        for handle in process.handles:
            if kind is None or handle.object.type.lower() == kind.lower():
                name = _name(guest, handle)
                yield {
                    "pid": process.pid,
                    "process": process.name,
                    "handle": Address(handle.value),
                    "object": Address(handle.object.address),
                    "type": handle.object.type,
                    "access": Address(handle.access),
                    "name": name,
                    "path": handle.object.path or name,
                }


def _name(guest: Guest, handle: Handle) -> str | None:
    """The object's name; for a handle to a process or a thread, which one it is."""
    from coldframe.windows import Process, Thread  # noqa: PLC0415 - keeps `--help` quick

    try:
        if handle.object.type == "Process":
            process = Process(guest, guest.struct("_EPROCESS", handle.object.address))
            return f"{process.name} ({process.pid})"
        if handle.object.type == "Thread":
            thread = Thread(guest, guest.struct("_ETHREAD", handle.object.address))
            return f"{thread.tid} of {thread.process.name} ({thread.process.pid})"
    except UnreadableMemoryError:
        return None
    return handle.object.name
