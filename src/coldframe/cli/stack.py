"""`stack`: the call stack of a thread or of a vCPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, SymbolPaths, Target
from coldframe.cli.render import Address, Value, print_rows
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from coldframe.debug import Frame


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(stack)


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


def _frame_row(frame: Frame) -> Mapping[str, Value]:
    return {
        "stack": Address(frame.stack_pointer),
        "address": Address(frame.address),
        "frame": str(frame),
        "how": frame.how,
    }
