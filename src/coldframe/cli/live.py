"""Verbs on a running guest: `trace` and `stack`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import attach, open_target
from coldframe.cli.options import Json, JsonLines, SymbolPaths, Target
from coldframe.cli.render import Address, Value, err, out, print_json, print_rows, printable
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.debug import Frame
    from coldframe.trace import Value as Traced


def register(app: typer.Typer) -> None:
    """Add this module's verbs to `app`."""
    app.command()(trace)
    app.command()(stack)


def trace(
    target: Target,
    functions: Annotated[
        list[str], typer.Argument(metavar="FUNCTION...", help="Functions: NtWriteFile, nt!NtReadFile, ntdll!RtlFoo.")
    ],
    symbols: SymbolPaths,
    process: Annotated[
        str | None, typer.Option("--process", "-P", metavar="NAME|PID", help="Only calls of this process.")
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option("--if", metavar="EXPRESSION", help="Only calls for which it holds: 'Length > 100 and vcpu == 0'."),
    ] = None,
    results: Annotated[
        bool, typer.Option("--results", "-r", help="Print a call when it has returned, and what.")
    ] = False,
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
    """
    from coldframe.trace import trace as events  # noqa: PLC0415 - only a trace needs the tracers

    count = 0
    with attach(target, symbols=symbols) as guest:
        wanted = process_of(process)
        only = None if wanted is None else guest.process(wanted)
        names = ", ".join(guest.locate(function, only)[1] for function in functions)
        who = f" of {only.name} ({only.pid})" if only else ""
        err.print(f"[dim]tracing {printable(names + who)}; Ctrl-C ends[/dim]")
        try:
            found = events(
                guest,
                functions,
                process=only,
                limit=limit,
                duration=duration,
                condition=condition,
                results=results,
            )
            for event in found:
                count += 1
                if as_json:
                    print_json(event, one_line=True)
                else:
                    print_event(event)
        except KeyboardInterrupt:
            err.print("[dim]ended by Ctrl-C; the guest runs on[/dim]")
    err.print(f"[dim]{count} calls[/dim]")


def stack(
    target: Target,
    symbols: SymbolPaths,
    tid: Annotated[int | None, typer.Option("--tid", "-t", metavar="N", help="This thread.", min=0)] = None,
    vcpu: Annotated[int | None, typer.Option("--vcpu", metavar="N", help="What this vCPU runs now.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Call stack of a thread, or of what a vCPU runs now.

    \b
    coldframe stack win10.qmp --vcpu 0
    coldframe stack win10.qmp --tid 1204 --json
    """
    from coldframe.debug import thread_callstack, vcpu_callstack  # noqa: PLC0415 - only stacks need the unwinder

    if (tid is None) == (vcpu is None):
        raise UsageError("expected one of --tid N and --vcpu N")
    with open_target(target, symbols=symbols) as guest:
        if tid is not None:
            frames = thread_callstack(guest, guest.thread(tid))
        else:
            assert vcpu is not None
            frames = vcpu_callstack(guest, vcpu)
        print_rows(
            (_frame_row(frame) for frame in frames), as_json=as_json, columns=("stack", "address", "frame", "how")
        )


def process_of(text: str | None) -> str | int | None:
    """A process as the user named it: a pid when it is a number, else a name."""
    return int(text) if text is not None and text.isdecimal() else text


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


def _frame_row(frame: Frame) -> Mapping[str, Value]:
    return {
        "stack": Address(frame.stack_pointer),
        "address": Address(frame.address),
        "frame": str(frame),
        "how": frame.how,
    }
