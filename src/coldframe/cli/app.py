"""The verbs, gathered: each module of the command line registers its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module

import typer

from coldframe.cli import absent

MODULES: Mapping[str, tuple[str, ...]] = {
    "lists": ("info", "ps", "threads", "modules", "drivers", "vads", "sections"),
    "handles": ("handles", "objects"),
    "pages": ("pte", "read"),
    "census": ("census",),
    "search": ("search",),
    "figure": ("figure",),
    "dump": ("dump",),
    "trace": ("trace",),
    "stack": ("stack",),
    "gdbserver": ("gdbserver",),
    "boot": ("boot",),
    "types": ("dt",),
    "shell": ("shell",),
    "practice": ("minint", "demo"),
}
"""The verbs of each module. A call loads its verb's module alone: all of them take as long as listing processes."""


def app_for(words: Sequence[str]) -> typer.Typer:
    """The command line for a call of these words: of its verb's module, or of all where they begin with no verb."""
    return _app(tuple(name for name, verbs in MODULES.items() if words and words[0] in verbs) or tuple(MODULES))


@cache
def _app(modules: tuple[str, ...]) -> typer.Typer:
    app = typer.Typer(
        name="coldframe",
        help="Look into a Windows guest from outside: memory images, running QEMU/KVM machines, libvirt domains.",
        callback=_verbs_follow,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    for name in modules:
        import_module(f"coldframe.cli.{name}").register(app)
    absent.add_options(app)
    return app


def _verbs_follow() -> None:
    """Does nothing: with it typer reads a verb first, also where there is but one."""
