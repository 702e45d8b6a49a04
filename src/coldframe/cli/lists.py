"""`info` and the lists: `ps`, `threads`, `modules`, `drivers`, `vads`, `sections`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, SymbolPaths, Target
from coldframe.cli.render import Address, Value, err, print_facts, print_json, print_rows, printable

if TYPE_CHECKING:
    from coldframe.windows import Guest, Module, Process
    from coldframe.windows.controlarea import ControlArea

Row = Mapping[str, Value]

OnlyPid = Annotated[
    int | None, typer.Option("--pid", "-p", metavar="N", help="Only this process (default: all).", min=0)
]
Everywhere = Annotated[
    bool, typer.Option("--all", "-a", help="Also unlinked and exited ones that the list lacks; says what found each.")
]
Scan = Annotated[bool, typer.Option("--scan", help="As --all, and search all RAM for them: about 1 s a gigabyte.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to `app`."""
    for verb in (info, ps, threads, modules, drivers, vads, sections):
        app.command()(verb)


def info(target: Target, symbols: SymbolPaths, as_json: Json = False) -> None:
    """What the target is: kernel, page tables, RAM, vCPUs. Also its symbols, paging files, and how its RAM is read.

    \b
    coldframe info win10.qmp
    coldframe info memory.dmp --symbols ./symbols --json
    """
    with open_target(target, symbols=symbols) as guest:
        facts = guest.facts()
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


def ps(
    target: Target, symbols: SymbolPaths, everywhere: Everywhere = False, scan: Scan = False, as_json: Json = False
) -> None:
    """Processes, in the order of the kernel's list.

    \b
    coldframe ps win10.qmp
    coldframe ps memory.dmp --json | jq -r '.[].name'
    coldframe ps memory.dmp --all --scan
    """
    columns = ("pid", "ppid", "name", "eprocess", "dtb", "user_dtb", "wow64", "created", "exited")
    with open_target(target, symbols=symbols) as guest:
        if everywhere or scan:
            found = guest.sightings(scan=scan)
            rows = ({**_process_row(seen.process), "found_by": ", ".join(seen.found_by)} for seen in found)
            print_rows(rows, as_json=as_json, columns=(*columns, "found_by"))
            for warning in guest.warnings:
                err.print(f"[yellow]{printable(warning)}[/yellow]")
        else:
            print_rows((_process_row(process) for process in guest.processes), as_json=as_json, columns=columns)


def threads(target: Target, symbols: SymbolPaths, pid: OnlyPid = None, as_json: Json = False) -> None:
    """Threads of all processes, or of one.

    \b
    coldframe threads win10.qmp --pid 812
    """
    with open_target(target, symbols=symbols) as guest:
        print_rows(
            (
                {
                    "pid": process.pid,
                    "process": process.name,
                    "tid": thread.tid,
                    "ethread": Address(thread.ethread.address),
                    "state": thread.state,
                    "start": Address(thread.start_address),
                    "start_symbol": guest.symbolize(thread.start_address, process),
                }
                for process in _chosen(guest, pid)
                for thread in process.threads
            ),
            as_json=as_json,
            columns=("pid", "process", "tid", "ethread", "state", "start", "start_symbol"),
        )


def modules(target: Target, symbols: SymbolPaths, pid: OnlyPid = None, as_json: Json = False) -> None:
    """User-mode modules of all processes, or of one.

    \b
    coldframe modules win10.qmp --pid 812
    """
    with open_target(target, symbols=symbols) as guest:
        print_rows(
            (
                {"pid": process.pid, "process": process.name, **_module_row(module)}
                for process in _chosen(guest, pid)
                for module in process.modules
            ),
            as_json=as_json,
            columns=("pid", "process", "base", "size", "name", "path", "pdb"),
        )


def drivers(target: Target, symbols: SymbolPaths, as_json: Json = False) -> None:
    """Kernel modules: the kernel and the drivers that it has loaded.

    \b
    coldframe drivers win10.qmp
    """
    with open_target(target, symbols=symbols) as guest:
        print_rows(
            (_module_row(module) for module in guest.drivers),
            as_json=as_json,
            columns=("base", "size", "name", "path", "pdb"),
        )


def vads(target: Target, symbols: SymbolPaths, pid: OnlyPid = None, as_json: Json = False) -> None:
    """Ranges of a process's address space (VADs), and what each is.

    \b
    coldframe vads win10.qmp --pid 812
    """
    with open_target(target, symbols=symbols) as guest:
        print_rows(
            (
                {
                    "pid": process.pid,
                    "process": process.name,
                    "vad": Address(vad.address),
                    "start": Address(vad.start),
                    "end": Address(vad.end),
                    "kind": vad.kind,
                    "protection": vad.protection,
                    "file": vad.file,
                }
                for process in _chosen(guest, pid)
                for vad in process.vads
            ),
            as_json=as_json,
            columns=("pid", "process", "vad", "start", "end", "kind", "protection", "file"),
        )


def sections(target: Target, symbols: SymbolPaths, pid: OnlyPid = None, as_json: Json = False) -> None:
    """Sections: files, images and shared memory that processes map or hold open, and named ones.

    \b
    coldframe sections win10.qmp --pid 812
    coldframe sections memory.dmp --json | jq '.[] | select(.kind == "image") | .file'
    """
    with open_target(target, symbols=symbols) as guest:
        found = guest.sections.listed(_chosen(guest, pid), named=pid is None)
        print_rows(
            (_section_row(area, whole=as_json) for area in found),
            as_json=as_json,
            columns=("control_area", "kind", "size", "views", "subsections", "names", "file", "pids"),
        )


def _section_row(area: ControlArea, *, whole: bool) -> Row:
    """A section; in a table its subsections are counted, in JSON told."""
    told: list[Row] = [
        {
            "address": Address(subsection.address),
            "first_pte": Address(subsection.first_pte),
            "pages": subsection.pages,
            "file_offset": None if subsection.file_offset is None else Address(subsection.file_offset),
        }
        for subsection in area.subsections
    ]
    return {
        "control_area": Address(area.address),
        "kind": area.kind,
        "size": Address(area.size),
        "views": area.views,
        "flags": area.flags,
        "subsections": told if whole else len(told),
        "objects": [Address(body) for body in area.objects],
        "names": area.names,
        "file": area.file,
        "pids": area.pids,
    }


def _chosen(guest: Guest, pid: int | None) -> Iterator[Process]:
    if pid is None:
        yield from guest.processes
    else:
        yield guest.process(pid)


def _process_row(process: Process) -> Row:
    return {
        "pid": process.pid,
        "ppid": process.ppid,
        "name": process.name,
        "eprocess": Address(process.eprocess.address),
        "dtb": Address(process.dtb),
        "user_dtb": None if process.user_dtb is None else Address(process.user_dtb),
        "wow64": process.wow64,
        "created": process.created,
        "exited": process.exited,
    }


def _module_row(module: Module) -> Row:
    identity = module.pdb
    return {
        "base": Address(module.base),
        "size": Address(module.size),
        "name": module.name,
        "path": module.path,
        "pdb": None if identity is None else str(identity),
    }
