"""`shell`: IPython with the guest open, every verb as a magic, and kd's short words for what one does all the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.absent import holding_open, open_target
from coldframe.cli.options import SymbolPaths, Target
from coldframe.errors import CapabilityError

if TYPE_CHECKING:
    from coldframe.windows import Guest

_BANNER = """coldframe: `guest` is {guest}; it is {state}.
Verbs are magics without their target: %ps, %pte ADDRESS, %dt TYPE ADDRESS; %process PID|NAME chooses a process.
kd's words: %k %lm %x %ln %db %dq %u; in a running guest %bp %bl %bc %g %t %r. %coldframe tells what each does."""


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(shell)


def shell(
    target: Target,
    symbols: SymbolPaths,
    command: Annotated[
        list[str] | None, typer.Option("--command", "-c", metavar="LINE", help="Run this line, then end; repeatable.")
    ] = None,
) -> None:
    """An interactive Python shell with the guest open. Verbs and kd's words are magics, names complete with Tab.

    \b
    coldframe shell win10.qmp
    coldframe shell memory.dmp -c "%process notepad.exe" -c "%vads" -c "process.peb"
    """
    try:
        from coldframe.cli.magics import make_shell  # noqa: PLC0415 - IPython takes a while
    except ModuleNotFoundError as error:
        raise CapabilityError(f"the shell needs {error.name}: pip install 'coldframe[shell]'") from None
    with open_target(target, symbols=symbols) as guest, holding_open(guest):
        session = make_shell(guest, target)
        if command:
            for line in command:
                if not session.run_cell(line, store_history=False).success:
                    raise typer.Exit(1)
            return
        session.banner2 = _BANNER.format(guest=_what(guest), state=_state(guest))
        session.show_banner()
        session.mainloop()


def _what(guest: Guest) -> str:
    return f"{guest.build_lab or guest.location.identity}, {len(guest.processes)} processes"


def _state(guest: Guest) -> str:
    return (
        "paused while you look, and runs again when you leave" if guest.vcpus and hasattr(guest, "vm") else "an image"
    )
