"""`minint` and `demo`: for people without a Windows VM at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coldframe.cli.options import JsonLines
from coldframe.cli.pages import page_lines
from coldframe.cli.render import err, out, print_json, print_rows, printable
from coldframe.cli.trace import print_event
from coldframe.errors import GuestGoneError, UsageError

Layout = Annotated[str, typer.Option("--layout", metavar="BUILD", help="Whose kernel's structures: 19041, 22000, ...")]
Vcpus = Annotated[int, typer.Option("--vcpus", metavar="N", help="How many vCPUs.", min=1, max=16)]
Memory = Annotated[str, typer.Option("--memory", metavar="SIZE", help="How much RAM, as QEMU writes it: 512M, 2G.")]
Accelerator = Annotated[str, typer.Option("--accel", metavar="NAME", help="QEMU's accelerator: tcg or kvm.")]
KvaShadow = Annotated[bool, typer.Option("--kva-shadow", help="User mode runs on page tables of its own.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to `app`."""
    app.command()(minint)
    app.command()(demo)


def minint(
    vcpus: Vcpus = 2,
    layout: Layout = "19041",
    memory: Memory = "512M",
    accelerator: Accelerator = "tcg",
    kva_shadow: KvaShadow = False,
    qmp: Annotated[
        Path | None, typer.Option("--qmp", metavar="PATH", help="Where to leave the QMP socket; stays until Ctrl-C.")
    ] = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", metavar="FILE", help="Run to a steady state, write memory to FILE, end.")
    ] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", metavar="FILE", help="With --dump: a copy of the disk.")
    ] = None,
    resident: Annotated[
        bool, typer.Option("--resident", help="Watch its boot, so that no page leaves RAM (see `coldframe boot`).")
    ] = False,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="With --dump: the guest's own log, its ground truth.")
    ] = None,
    options: Annotated[
        str, typer.Option("--options", metavar="WORDS", help="Its boot options: 'PACE=5 SPAWN=100 STATES=0'.")
    ] = "",
) -> None:
    """Start minint, the miniature NT guest: for practice and for tests.

    \b
    coldframe minint --qmp minint.qmp --vcpus 4
    coldframe minint --qmp minint.qmp --options "STATES=0 SPAWN=1000 SPAWNPACE=500"
    coldframe minint --layout 22000 --dump minint.elf --disk minint.qcow2 --log minint.jsonl
    """
    from coldframe.minint import start  # noqa: PLC0415 - only these verbs need the guest

    if (disk or log) and not dump:
        raise UsageError("--disk and --log go with --dump FILE")
    if dump and qmp:
        raise UsageError("expected one of --qmp and --dump, found both")
    err.print(f"[dim]building and starting minint {printable(layout)}: {vcpus} vCPUs, {memory}, {accelerator}[/dim]")
    with start(
        layout=layout, vcpus=vcpus, memory=memory, accelerator=accelerator, kva_shadow=kva_shadow, qmp=qmp,
        resident=resident, options=options,
    ) as guest:  # fmt: skip
        if guest.report is not None:
            from coldframe.cli.boot import print_report  # noqa: PLC0415

            print_report(guest.report)
        if dump:
            guest.write_dump(dump, disk=disk, log=log)
            err.print("[dim]" + ", ".join(str(path) for path in (dump, disk, log) if path) + "[/dim]")
            return
        err.print(
            f"minint runs; look into it with:\n  coldframe ps {guest.qmp} --symbols {guest.symbols_folder}",
            markup=False,
        )
        try:
            guest.wait()
        except KeyboardInterrupt:
            err.print("[dim]minint ended[/dim]")
            return
        raise GuestGoneError("QEMU has ended; minint is gone")


def demo(
    vcpus: Vcpus = 2,
    layout: Layout = "19041",
    memory: Memory = "512M",
    writes: Annotated[int, typer.Option("--writes", metavar="N", help="How many file writes to trace.", min=1)] = 24,
    as_json: JsonLines = False,
) -> None:
    """The main job on minint: attach, trace, explain, let go. Traces every file write of notepad.exe.

    \b
    coldframe demo
    coldframe demo --vcpus 4 --writes 200 --json
    """
    from coldframe.minint.demo import Demonstration  # noqa: PLC0415 - only these verbs need the guest

    with Demonstration(layout=layout, vcpus=vcpus, memory=memory, say=_say) as run:
        if not as_json:
            print_rows(run.processes(), as_json=False, columns=("pid", "ppid", "name", "dtb"))
        for event in run.writes(writes):
            if as_json:
                print_json(event, one_line=True)
            else:
                print_event(event)
        page = run.explain_one()
        if page is not None and not as_json:
            out.print(*page_lines(page), sep="\n")
        summary = run.summary()
    if as_json:
        print_json({"summary": summary}, one_line=True)
    else:
        out.print(
            f"[bold]{summary['writes']} writes seen, {summary['matched']} equal to the files on the guest's disk, "
            f"{summary['processes']} processes, {summary['seconds']:.1f} s; the guest ran on unharmed[/bold]"
        )


def _say(line: str) -> None:
    err.print(f"[dim]{printable(line)}[/dim]")
