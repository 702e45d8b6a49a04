"""Verbs on a guest that is open already: for the shell's magics, and for what a debugger's `monitor` asks."""

from __future__ import annotations

from collections.abc import Sequence

VERBS = {
    "info": False, "ps": False, "threads": True, "modules": True, "drivers": False, "vads": True, "handles": True,
    "objects": False, "sections": True, "pte": True, "read": True, "dt": True, "census": True, "search": True,
    "figure": True, "dump": True, "stack": False, "trace": False,
}  # fmt: skip
"""The verbs that need nothing but a guest; whether a chosen process is meant where the line names none (`--pid`)."""


def call_of(verb: str, target: str, words: Sequence[str], pid: int | None) -> list[str]:
    """The command line of `verb` with `words`, on the process `pid` where the verb is about one and names none."""
    own = {"--pid", "-p", "-h", "--help"} & set(words)
    chosen = ["--pid", str(pid)] if VERBS[verb] and pid is not None and not own else []
    return [verb, target, *words, *chosen]
