"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from coldframe.errors import UsageError

Target: TypeAlias = Annotated[
    str, typer.Argument(metavar="TARGET", help="A memory image, a QMP socket, or a libvirt domain.", show_default=False)
]
SymbolPaths: TypeAlias = Annotated[
    list[Path],
    typer.Option(
        "--symbols",
        "-s",
        metavar="PATH",
        default_factory=list,
        show_default=False,
        help="PDB, ISF file, folder or symbol store; repeatable. _NT_SYMBOL_PATH is searched too.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
JsonLines: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Pid: TypeAlias = Annotated[
    int | None, typer.Option("--pid", "-p", metavar="N", help="The process whose addresses are meant.", min=0)
]


def number(text: str) -> int:
    """A number as users write it: `0x...` or, as kd prints addresses, hexadecimal with a backquote; else decimal."""
    cleaned = text.replace("`", "").replace("_", "")
    try:
        return int(cleaned, 16) if "`" in text else int(cleaned, 0)
    except ValueError:
        raise UsageError(f"expected a number such as 0x7ff743655000 or 4096, found {text!r}") from None
