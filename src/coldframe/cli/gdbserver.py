"""`gdbserver`: gdb, LLDB and IDA on a process of the guest, live or in a memory image."""

from __future__ import annotations

import io
import os
import shlex
import signal
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import holding_open, open_target
from coldframe.cli.heldverbs import VERBS, call_of
from coldframe.cli.options import SymbolPaths, Target
from coldframe.cli.render import err, printable
from coldframe.cli.trace import process_of

if TYPE_CHECKING:
    from coldframe.gdbserver import GdbServer

_NOT_FOR_CLIENTS = ("read", "figure", "dump", "trace")
"""Verbs that write bytes or files, or let the guest run: a client has words of its own for these."""

_HOST_FILES = ("--symbols", "-s", "--yara", "--disk", "--pagefile")
"""Options that name files: who may debug the guest may not read this machine."""


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(gdbserver)


def gdbserver(
    target: Target,
    symbols: SymbolPaths,
    process: Annotated[
        str | None,
        typer.Option("--process", "-P", metavar="NAME|PID", help="This process (default: the machine and its vCPUs)."),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", "-l", metavar="PLACE", help="HOST:PORT, a Unix socket's path, or - for a pipe.")
    ] = "127.0.0.1:1234",
    once: Annotated[bool, typer.Option("--once", help="End when the first client has let go.")] = False,
    no_symbols: Annotated[bool, typer.Option("--no-symbols", help="Offer the client no symbols of modules.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell each packet and its answer.")] = False,
) -> None:
    """Serve gdb, LLDB or IDA: a process with its whole address space. Paged-out pages too; breakpoints of it alone.

    \b
    coldframe gdbserver win10.qmp --process notepad.exe
    coldframe gdbserver memory.dmp --process 812 --disk win10.qcow2 --listen :2345
    coldframe gdbserver win10.qmp --listen ./kernel.sock --once
    gdb -ex 'target remote 127.0.0.1:1234'
    gdb -ex 'target remote | coldframe gdbserver win10.qmp -P notepad.exe -l -'
    """
    from coldframe.gdbserver import GdbServer, Place, address_of  # noqa: PLC0415 - only this verb needs the server

    place = Place.parse(listen)

    def log(line: str) -> None:
        if verbose:
            err.print(f"[dim]{printable(line)}[/dim]")

    with ExitStack() as stack:
        listener = None if place.standard else stack.enter_context(place.listening())  # a place that is taken ends it
        guest = stack.enter_context(open_target(target, symbols=symbols))
        stack.enter_context(holding_open(guest))
        server = GdbServer(
            guest,
            process_of(process),
            lambda line, tid: _monitor(server, target, line, tid),
            log,
            symbols=not no_symbols,
        )
        if listener is None:
            _serve_pipe(server)
            return
        if place.reachable:
            err.print(f"[yellow]whoever reaches {printable(place.host)} may do anything to the guest[/yellow]")
        try:
            server.serve(listener, once=once, told=lambda: _announce(server, target, address_of(listener)))
        except KeyboardInterrupt:
            err.print("[dim]ended by Ctrl-C; the guest is as it was[/dim]")


def _serve_pipe(server: GdbServer) -> None:
    """Serve the debugger that has started this as the other end of a pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the debugger's, which sends it on
    sink = os.dup(1)
    os.dup2(2, 1)  # whatever is printed here is no packet
    server.serve_standard(sink=sink)


def _announce(server: GdbServer, target: str, where: str) -> None:
    inferior = server.inferior
    what = inferior.name if inferior.process is None else f"{inferior.name} ({inferior.pid})"
    err.print(f"serving {printable(f'{what} of {target}')}; in gdb: target remote {printable(where)}")


def _monitor(server: GdbServer, target: str, line: str, tid: int | None) -> str:
    """What a client's `monitor LINE` shows: a verb on the guest, of the process and the thread that it looks at."""
    from coldframe.cli.main import run  # noqa: PLC0415 - it is made of the verbs

    known = [verb for verb in VERBS if verb not in _NOT_FOR_CLIENTS]
    try:
        verb, *words = shlex.split(line) or ["help"]
    except ValueError as error:
        return f"coldframe: {error}\n"
    if verb not in known:
        return f"coldframe's verbs, without their target: {', '.join(known)}; VERB --help tells its words\n"
    if any(word.startswith(_HOST_FILES) for word in words):
        return f"coldframe: a debugger names no files of this machine, so without {', '.join(_HOST_FILES)}\n"
    if verb == "stack" and not words and tid is not None:
        words = ["--tid", str(tid)]
    process = server.inferior.process
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        run(call_of(verb, target, words, None if process is None else process.pid))
    return said.getvalue()
