"""The verbs, gathered: each module of the command line registers its own on `app`."""

from __future__ import annotations

import typer

from coldframe.cli import (
    absent,
    boot,
    census,
    dump,
    figure,
    gdbserver,
    handles,
    lists,
    pages,
    practice,
    search,
    shell,
    stack,
    trace,
    types,
)

app = typer.Typer(
    name="coldframe",
    help="Look into a Windows guest from outside: memory images, running QEMU/KVM machines, libvirt domains.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

for room in (
    lists,
    handles,
    pages,
    census,
    search,
    figure,
    dump,
    trace,
    stack,
    gdbserver,
    boot,
    types,
    shell,
    practice,
):
    room.register(app)
absent.add_options(app)
