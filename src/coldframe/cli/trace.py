"""`trace`: calls of functions in a running guest, or what one of the ready tracers follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import attach
from coldframe.cli.options import JsonLines, SymbolPaths, Target
from coldframe.cli.render import err, out, print_json, printable
from coldframe.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from coldframe.debug import LiveGuest
    from coldframe.trace import Tracer
    from coldframe.trace import Value as Traced
    from coldframe.windows import Process

TRACERS = {
    "files": "what is written to files; --save FOLDER puts it together there",
    "heap": "allocations and frees of one process; what it keeps, and frees twice",
    "modules": "images and drivers that are loaded, drivers that are unloaded",
    "network": "what is sent and received through NDIS; -o FILE keeps it as pcapng",
    "processes": "processes and threads that begin and end",
    "syscalls": "every system call, with arguments and result",
}
"""The ready tracers and what each follows."""
_COMINGS = ("modules", "processes")
"""Those that follow every process of a name, also ones that start later, and which know no condition."""


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(trace)


@dataclass(frozen=True)
class Wanted:
    """What the call asked for, tracers' options too."""

    functions: list[str]
    process: str | int | None
    wait: bool
    condition: str | None
    results: bool
    limit: int | None
    duration: float | None
    save: Path | None
    output: Path | None

    @property
    def tracer(self) -> str | None:
        """The ready tracer that is meant, if one is."""
        named = [name for name in self.functions if name in TRACERS]
        if named and len(self.functions) > 1:
            raise UsageError(f"expected functions or one tracer, found {' '.join(self.functions)}")
        return named[0] if named else None

    def check(self) -> None:
        """Raise `UsageError` for words that do not belong together."""
        if self.tracer != "files" and self.save is not None:
            raise UsageError("--save belongs to the tracer files: coldframe trace TARGET files --save FOLDER")
        if self.tracer != "network" and self.output is not None:
            raise UsageError("--output belongs to the tracer network: coldframe trace TARGET network -o FILE")
        if self.tracer is not None and self.results:
            raise UsageError(f"--results is for functions; the tracer {self.tracer} tells what it tells")
        if self.wait and (not isinstance(self.process, str) or self.tracer in _COMINGS):
            raise UsageError("--wait is for a process that starts later: name it with --process NAME")


def trace(
    target: Target,
    functions: Annotated[
        list[str],
        typer.Argument(
            metavar="FUNCTION...",
            help="Functions (NtWriteFile, nt!NtReadFile, ntdll!RtlFoo), or one tracer: files, heap, modules, "
            "network, processes, syscalls.",
        ),
    ],
    symbols: SymbolPaths,
    process: Annotated[
        str | None, typer.Option("--process", "-P", metavar="NAME|PID", help="Only calls of this process.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for a process of that name to start, and follow it from there.")
    ] = False,
    condition: Annotated[
        str | None,
        typer.Option("--if", metavar="EXPRESSION", help="Only calls for which it holds: 'Length > 100 and vcpu == 0'."),
    ] = None,
    results: Annotated[
        bool, typer.Option("--results", "-r", help="Print a call when it has returned, and what.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="files: put what is written together there.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="network: keep the packets there, as pcapng.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="N", help="End after N calls.", min=1)] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", metavar="SECONDS", help="End after this long.", min=0.0)
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Break on functions of a running guest; print each call. With process, arguments and call stack; Ctrl-C ends it.

    \b
    coldframe trace win10.qmp NtWriteFile --process notepad.exe
    coldframe trace win10.qmp nt!NtCreateFile nt!NtReadFile --limit 100 --json
    coldframe trace win10.qmp NtCreateFile --results --if "DesiredAccess & 0x40000000 and process.pid != 4"
    coldframe trace win10.qmp files --process notepad.exe --save written/
    coldframe trace win10.qmp syscalls --process 812 --duration 5 --json
    coldframe trace win10.qmp heap --process notepad.exe --wait
    coldframe trace win10.qmp network -o capture.pcapng --duration 60
    coldframe trace win10.qmp processes --duration 60
    coldframe trace win10.qmp modules --process notepad.exe --limit 20 --json
    """
    wanted = Wanted(functions, process_of(process), wait, condition, results, limit, duration, save, output)
    wanted.check()
    with attach(target, symbols=symbols) as guest, _until_interrupted():
        if wanted.tracer in _COMINGS:
            _run(guest, wanted.process, wanted, as_json=as_json)
            return
        only = _started(guest, wanted) if wait else None if wanted.process is None else guest.process(wanted.process)
        if wanted.tracer is None:
            _trace_functions(guest, only, wanted, as_json=as_json)
        else:
            _run(guest, only, wanted, as_json=as_json)


@contextmanager
def _until_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        err.print("[dim]ended by Ctrl-C; the guest runs on[/dim]")


def _started(guest: LiveGuest, wanted: Wanted) -> Process:
    """The process of that name that starts next, before its first instruction."""
    name = str(wanted.process)
    err.print(f"[dim]waiting for {printable(name)} to start; Ctrl-C ends[/dim]")
    process = guest.wait_for_process(name, timeout=wanted.duration)
    if process is None:
        raise NotFoundError("process", name, hint=f"none has started within {wanted.duration} s")
    return process


def _trace_functions(guest: LiveGuest, only: Process | None, wanted: Wanted, *, as_json: bool) -> None:
    from coldframe.trace import trace as events  # noqa: PLC0415 - only a trace needs the tracers

    named = wanted.functions if wanted.wait else [guest.locate(function, only)[1] for function in wanted.functions]
    _announce(", ".join(named), only)
    found = events(
        guest,
        wanted.functions,
        process=only,
        limit=wanted.limit,
        duration=wanted.duration,
        condition=wanted.condition,
        results=wanted.results,
        pending=wanted.wait,
    )
    count = 0
    try:
        for event in found:
            count += 1
            _show(event, as_json=as_json)
    finally:
        err.print(f"[dim]{count} calls[/dim]")


def _run(guest: LiveGuest, only: Process | str | int | None, wanted: Wanted, *, as_json: bool) -> None:
    """Run a ready tracer; its summary ends the output, however the trace ends."""
    tracer = _tracer(guest, only, wanted)
    _announce(", ".join(wanted.functions), only)
    try:
        for event in tracer.events(limit=wanted.limit, duration=wanted.duration):
            _show(event, as_json=as_json)
    finally:
        summary = tracer.summary()
        if as_json:
            print_json({"summary": summary}, one_line=True)
        else:
            _show_summary(summary)


def _tracer(guest: LiveGuest, only: Process | str | int | None, wanted: Wanted) -> Tracer:
    from coldframe.trace import (  # noqa: PLC0415
        FileWriteTracer,
        HeapTracer,
        ModuleTracer,
        NetworkTracer,
        ProcessTracer,
        Syscalls,
    )

    if wanted.tracer in (*_COMINGS, "heap") and wanted.condition is not None:
        raise UsageError(f"--if chooses calls of functions, files or syscalls; the tracer {wanted.tracer} takes none")
    if wanted.tracer == "processes":
        return ProcessTracer(guest, only)
    if wanted.tracer == "modules":
        return ModuleTracer(guest, only)
    if wanted.tracer == "network":
        return NetworkTracer(guest, only, condition=wanted.condition, save=wanted.output)
    if wanted.tracer == "files":
        return FileWriteTracer(guest, only, condition=wanted.condition, save=wanted.save)
    if wanted.tracer == "heap":
        if only is None:
            raise UsageError("the tracer heap follows one process: name it with --process")
        return HeapTracer(guest, only)
    return Syscalls(guest, only, condition=wanted.condition)


def _announce(what: str, only: Process | str | int | None) -> None:
    name = only if isinstance(only, str | int | None) else f"{only.name} ({only.pid})"
    who = "" if name is None else f" of {name}"
    err.print(f"[dim]tracing {printable(what + who)}; Ctrl-C ends[/dim]")


def process_of(text: str | None) -> str | int | None:
    """A process as the user named it: a pid when it is a number, else a name."""
    return int(text) if text is not None and text.isdecimal() else text


def _show(event: Mapping[str, Traced], *, as_json: bool) -> None:
    if as_json:
        print_json(event, one_line=True)
    elif "kind" in event:
        _print_happening(event)
    else:
        print_event(event)


_ASIDE = ("time", "vcpu", "kind", "pid", "process", "tid", "by", "data", "stack")


def _print_happening(event: Mapping[str, Traced]) -> None:
    """What a tracer tells that is no call: a line, and who did it, or the stack that led there."""
    whose = ".".join(str(event[key]) for key in ("pid", "tid") if event.get(key) is not None)
    name = f"{event['process'] or ''} ({whose})" if whose else ""
    told = "  ".join(f"{key} {value}" for key, value in event.items() if key not in _ASIDE and value is not None)
    line = "  ".join(printable(part) for part in (name, told) if part)
    out.print(f"[bold]{printable(str(event['kind']))}[/bold]  {line}  [dim]{str(event['time'])[11:23]}[/dim]")
    by = event.get("by")
    if isinstance(by, dict) and (by["pid"], by["tid"]) != (event["pid"], event.get("tid")):
        out.print(f"    [dim]by {printable(str(by['process']))} ({by['pid']}.{by['tid']})[/dim]")
    stack = event.get("stack")
    for frame in stack if isinstance(stack, list) else ():
        out.print(f"        [dim]{printable(str(frame))}[/dim]")


def print_event(event: Mapping[str, Traced]) -> None:
    """One call for people: a headline, its arguments (those that are zero in one line), its stack."""
    from coldframe.trace import argument_lines  # noqa: PLC0415 - only a trace needs the tracers

    result = f" = {event['result']}" if "result" in event else ""
    out.print(
        f"[bold]{printable(str(event['function']))}{result}[/bold]  {printable(str(event['process']))} "
        f"({event['pid']}.{event['tid']})  [dim]vCPU {event['vcpu']}  {str(event['time'])[11:23]}[/dim]"
    )
    arguments, stack = event["arguments"], event["stack"]
    named = arguments if isinstance(arguments, dict) else {}
    zeros = [name for name, value in named.items() if value in ("0x0", 0)]
    for name, value in named.items():
        if name not in zeros:
            first, *more = argument_lines(value)
            out.print(f"    {name:<14} {printable(first)}")
            for line in more:
                out.print(f"    {'':<14} {printable(line)}")
    if zeros:
        out.print(f"    [dim]{'zero':<14} {', '.join(zeros)}[/dim]")
    for frame in stack if isinstance(stack, list) else ():
        out.print(f"        [dim]{printable(str(frame))}[/dim]")
    out.print("")


def _show_summary(summary: Mapping[str, Traced]) -> None:
    for name, value in summary.items():
        if isinstance(value, list):
            out.print(f"[bold]{printable(name)}[/bold] {len(value)}")
            for item in value:
                _show_found(item if isinstance(item, dict) else {"": item})
        elif isinstance(value, Mapping):
            out.print(f"[bold]{printable(name)}[/bold]")
            for key, inner in value.items():
                text = ", ".join(f"{part} {what}" for what, part in inner.items()) if isinstance(inner, dict) else inner
                out.print(f"    {printable(str(key)):<40} {printable(str(text))}")
        else:
            out.print(f"[bold]{printable(name)}[/bold] {printable(str(value))}")


def _show_found(found: Mapping[str, Traced]) -> None:
    """One thing that a summary lists: its numbers on a line, its stacks below."""
    stacks = {name: value for name, value in found.items() if name != "addresses" and isinstance(value, list)}
    out.print("    " + printable("  ".join(f"{name} {value}" for name, value in found.items() if name not in stacks)))
    for name, frames in stacks.items():
        out.print(f"        [dim]{printable(name)}[/dim]")
        for frame in frames:
            out.print(f"            [dim]{printable(str(frame))}[/dim]")
