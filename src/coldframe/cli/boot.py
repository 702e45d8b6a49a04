"""`boot`: a boot after which every page of the guest is in RAM."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.options import Json, SymbolPaths
from coldframe.cli.render import err, print_facts, print_json, printable
from coldframe.errors import CapabilityError, UsageError

if TYPE_CHECKING:
    from coldframe.resident import BootEvent, Report, ResidentGuest
    from coldframe.resident.verification import PageCounts

_NAMED = {
    "firmware": "firmware and boot loader",
    "kernel": "the NT kernel starts",
    "system": "the System process is there; drivers start",
    "smss": "smss.exe runs; paging files would be created now",
    "csrss": "csrss.exe runs; no paging file any more",
    "done": "done",
}


class Bus(StrEnum):
    """Where the disk is attached."""

    SATA = "sata"
    VIRTIO = "virtio"
    NVME = "nvme"


class Images(StrEnum):
    """How image pages are kept in RAM."""

    WINPE = "winpe"
    DEVICE = "device"
    OFF = "off"


class NotResidentError(CapabilityError):
    """The guest runs, but the promise does not hold."""


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(boot)


def boot(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DISK | DOMAIN | SOCKET | -- QEMU...",
            help="A disk image (what follows -- is added to QEMU's command line), a libvirt domain, the QMP socket of "
            "a QEMU that was started with -S, or, behind --, a QEMU command line of your own.",
            show_default=False,
        ),
    ],
    symbols: SymbolPaths,
    memory: Annotated[
        str, typer.Option("--memory", "-m", metavar="SIZE", help="For a disk: RAM, as QEMU has it.")
    ] = "4G",
    vcpus: Annotated[int, typer.Option("--vcpus", metavar="N", help="For a disk: how many vCPUs.", min=1, max=255)] = 2,
    accelerator: Annotated[
        str | None, typer.Option("--accel", metavar="NAME", help="For a disk: kvm or tcg.", show_default=False)
    ] = None,
    bus: Annotated[Bus, typer.Option("--bus", help="For a disk: what the guest has a driver for.")] = Bus.SATA,
    qmp: Annotated[
        Path | None,
        typer.Option(
            "--qmp",
            metavar="PATH",
            help="Where to leave the QMP socket (default: DISK's name.qmp).",
            show_default=False,
        ),
    ] = None,
    images: Annotated[Images, typer.Option("--images-in-ram", help="How images are kept in RAM.")] = Images.WINPE,
    stealth: Annotated[
        bool, typer.Option("--stealth", help="Put back what that changed once the boot is done.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="NAME", help="The boot lasts until this process starts.", show_default=False),
    ] = None,
    settle: Annotated[float, typer.Option("--settle", metavar="SECONDS", help="And so much longer.", min=0.0)] = 5.0,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long csrss.exe may take to start.", min=0.1)
    ] = 900.0,
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", metavar="NAME", help="Save RAM and disks (qcow2) under this name.")
    ] = None,
    from_snapshot: Annotated[
        str | None, typer.Option("--from-snapshot", metavar="NAME", help="Start from this snapshot of DISK instead.")
    ] = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", metavar="FILE", help="Write a crash dump with all pages and registers.")
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End the machine in the end, instead of letting it run.")] = False,
    as_json: Json = False,
) -> None:
    """Boot a guest so that no page ever leaves RAM. Nothing in its configuration or on its disk is changed.

    Paging files are not created, images live in RAM, memory is not compressed. The machine runs on in the background;
    look into it through its QMP socket. Ctrl-C lets it boot on as it is.

    \b
    coldframe boot win10.qcow2 --memory 8G --snapshot resident
    coldframe boot -- qemu-system-x86_64 -machine q35 -m 8G -drive file=win10.qcow2 ...
    coldframe boot win10 --until explorer.exe --json
    """
    from coldframe.resident import BootOptions, Machine, restore  # noqa: PLC0415 - only this verb boots
    from coldframe.resident import boot as boot_residently  # noqa: PLC0415
    from coldframe.resident.watching import BootTimeoutError  # noqa: PLC0415
    from coldframe.target import symbol_store  # noqa: PLC0415

    is_command = Path(words[0]).name.startswith("qemu") and shutil.which(words[0]) is not None
    machine = Machine(memory, vcpus, accelerator, bus.value, () if is_command else tuple(words[1:]))
    store = symbol_store(symbols)
    with _progress() as tell:
        try:
            if from_snapshot is not None:
                guest = restore(words[0], from_snapshot, store=store, machine=machine, qmp=qmp, keep=not end)
            else:
                options = BootOptions(images.value, stealth, timeout, until, settle=settle)
                target = words if is_command else words[0]
                guest = boot_residently(
                    target, store=store, machine=machine, options=options, qmp=qmp, keep=not end, tell=tell
                )
        except (KeyboardInterrupt, BootTimeoutError) as error:
            if not end or isinstance(error, KeyboardInterrupt):
                err.print("[dim]the guest boots on without coldframe[/dim]")
            raise
    with guest:
        report = guest.report
        facts = {**report.facts(), "qmp": guest.qmp, "snapshot": snapshot, "dump": None if dump is None else str(dump)}
        _save(guest, snapshot, dump)
    if as_json:
        print_json(facts)
    else:
        print_report(report)
        if not end:
            err.print(f"the guest runs; look into it with:\n  coldframe ps {guest.qmp}", markup=False)
    if not report.resident:
        raise NotResidentError(f"not every page is in RAM: {'; '.join((*report.problems, *report.lost))}")


def _save(guest: ResidentGuest, snapshot: str | None, dump: Path | None) -> None:
    if snapshot is not None:
        guest.snapshot(snapshot)
        err.print(f"[dim]saved the snapshot {printable(snapshot)}[/dim]")
    if dump is not None:
        from coldframe.dumping import write_guest  # noqa: PLC0415

        if dump.suffix.lower() != ".dmp":
            raise UsageError(f"expected a file name that ends in .dmp, found {dump}")
        for warning in write_guest(guest, dump):
            err.print(f"[yellow]{printable(warning)}[/yellow]")


def print_report(report: Report) -> None:
    """What was found, for people."""
    pages = report.pages
    off = report.compression_process is None and report.store is None
    compression = "off" if off else f"on (process {report.compression_process})"
    commit = "not known"
    if report.committed is not None and report.commit_limit:
        share = report.committed / report.commit_limit
        commit = f"{report.committed >> 20:,} of {report.commit_limit >> 20:,} MB ({share:.0%})"
    facts = {
        "resident": "yes: nothing has left RAM" if report.resident else "no",
        "problems": list(report.problems),
        "lost": list(report.lost),
        "paging files": list(report.paging_files) or "none",
        "prevented": list(report.prevented) or "none",
        "let through": list(report.let_through),
        "WinPE mode": "not known" if report.winpe_mode is None else f"{report.winpe_mode:#x}",
        "compression": compression,
        "commit": commit,
        "pages": _counted(pages),
        "at csrss.exe": "not counted" if report.before is None else _counted(report.before),
        "notes": list(report.notes),
    }
    print_facts({name: value for name, value in facts.items() if value})


def _counted(pages: PageCounts) -> str:
    """One line: each state with its count, images and data files apart."""
    parts = [f"{count:,} {state}" for state, count in pages.states.items() if state != "subsection"]
    parts += [f"{count:,} in {what} files" for count, what in ((pages.images, "image"), (pages.data, "data")) if count]
    return f"{', '.join(parts)}; {pages.not_in_ram:,} not in RAM, {pages.unreadable:,} not readable"


@contextmanager
def _progress() -> Iterator[Callable[[BootEvent], None]]:
    """Lines on standard error for what matters; on a terminal also a line that shows phase, newest process and time."""
    if not sys.stderr.isatty():
        yield _say
        return
    from rich.status import Status  # noqa: PLC0415 - slow to load

    with Status(_NAMED["firmware"], console=err.console) as status:

        def tell(event: BootEvent) -> None:
            newest = f" · {printable(event.text)}" if event.kind == "process" else ""
            status.update(f"{event.seconds:.0f} s · {_NAMED[event.phase]}{newest}")
            _say(event)

        yield tell


def _say(event: BootEvent) -> None:
    if event.kind in ("tick", "process"):
        return
    text = event.text
    if event.kind == "phase":
        detail = f": {text}" if text != event.phase.value else ""
        text = _NAMED[event.phase] + detail
    colour = {"late": "yellow", "restart": "yellow", "phase": "bold"}.get(event.kind, "dim")
    if event.prevented is False:
        colour = "yellow"
    err.print(f"[dim]{event.seconds:8.2f}[/dim]  [{colour}]{printable(text)}[/{colour}]")
