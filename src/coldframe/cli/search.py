"""`search`: bytes, text, a regular expression or YARA rules in memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from coldframe.cli.absent import open_target
from coldframe.cli.options import Json, SymbolPaths, Target
from coldframe.cli.render import Address, Value, err, print_rows
from coldframe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from coldframe.paging import AddressSpace
    from coldframe.paging.search import Match
    from coldframe.windows import Guest, Process

    Look: TypeAlias = Callable[[AddressSpace], Iterator[tuple[dict[str, Value], Match]]]
    """What is looked for: matches in an address space, each with what names it."""

SHOWN = 48
"""Bytes of a match that are shown."""


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(search)


def search(
    target: Target,
    symbols: SymbolPaths,
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Text, unless --hex or --regex says otherwise.")
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option("--pid", "-p", metavar="N", help="This process's user half (default: the kernel's half).", min=0),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All processes, then the kernel.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Text, in UTF-8 and in UTF-16: the default.")] = False,
    as_hex: Annotated[bool, typer.Option("--hex", help="Bytes such as '4d 5a ?? 00'; ?? is any byte.")] = False,
    regex: Annotated[bool, typer.Option("--regex", help="A regular expression over bytes, as Python's.")] = False,
    yara: Annotated[
        Path | None, typer.Option("--yara", metavar="FILE", help="YARA rules instead of a pattern (extra yara).")
    ] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Case does not matter.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="Stop after N matches.", min=1)] = 1000,
    as_json: Json = False,
) -> None:
    """Find bytes, text, a regular expression or YARA rules. In a process's memory, the kernel's, or all.

    Pages in RAM are looked through, also those in transition and behind prototype PTEs, and pages that left RAM where
    they can be read.

    \b
    coldframe search memory.dmp notepad --pid 812
    coldframe search win10.qmp --hex '4d 5a 90 00' --pid 812 --json
    coldframe search memory.dmp --regex 'https?://[\\w./-]+' --all
    coldframe search memory.dmp --yara rules.yar --all
    """
    if text + as_hex + regex + (yara is not None) > 1:
        raise UsageError("expected one of --text, --hex, --regex and --yara, found several")
    if (pattern is None) == (yara is None):
        raise UsageError("expected a PATTERN or --yara FILE, found " + ("neither" if yara is None else "both"))
    if everything and pid is not None:
        raise UsageError("expected one of --pid and --all, found both")
    with ExitStack() as stack:
        if yara is not None:
            look = _rules(yara)
        elif pattern is not None and regex:
            look = _expression(regular(pattern, ignore_case), stack)
        else:
            look = _literal(hex_pattern(pattern or "") if as_hex else words(pattern or "", ignore_case))
        guest = stack.enter_context(open_target(target, symbols=symbols))
        rows = _rows(guest, look, pid, everything)
        columns = ("pid", "process", "rule", "address", "data", "text", "state", "in")
        left_out = {"rule"} if yara is None else set()
        left_out |= set() if everything else {"pid", "process"}
        shown = [column for column in columns if column not in left_out]
        print_rows(islice(rows, limit), as_json=as_json, columns=shown)
        if next(rows, None) is not None:
            err.print(f"there are more than {limit} matches: --limit N shows more")


def words(pattern: str, ignore_case: bool = False) -> re.Pattern[bytes]:
    """`pattern` as text, in UTF-8 or UTF-16 (little-endian); raises `UsageError`."""
    try:
        forms = [re.escape(pattern.encode(encoding)) for encoding in ("utf-8", "utf-16-le")]
    except UnicodeEncodeError:
        raise UsageError("expected a pattern of valid text; --hex takes bytes") from None
    if not pattern:
        raise UsageError("expected a pattern, found an empty one")
    return re.compile(b"|".join(forms), re.DOTALL | (re.IGNORECASE if ignore_case else 0))


def regular(pattern: str, ignore_case: bool = False) -> re.Pattern[bytes]:
    """`pattern` as a regular expression over bytes; a `.` is any byte. Raises `UsageError`."""
    try:
        return re.compile(pattern.encode("utf-8"), re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    except (re.error, UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from None


def hex_pattern(pattern: str) -> re.Pattern[bytes]:
    """Hexadecimal bytes, with `??` for any byte; raises `UsageError`."""
    digits = "".join(pattern.split())
    pairs = [digits[at : at + 2] for at in range(0, len(digits), 2)]
    if not pairs or not all(re.fullmatch(r"[0-9A-Fa-f]{2}|\?\?", pair) for pair in pairs):
        raise UsageError(f"expected bytes such as '4d 5a ?? 00', found {pattern!r}")
    return re.compile(b"".join(b"." if pair == "??" else re.escape(bytes.fromhex(pair)) for pair in pairs), re.DOTALL)


# Loaded where they are needed: numpy and yara-x are slow to load.


def _literal(pattern: re.Pattern[bytes]) -> Look:
    from coldframe.paging.search import search as matches  # noqa: PLC0415

    return lambda space: (({}, match) for match in matches(space, pattern))


def _expression(pattern: re.Pattern[bytes], stack: ExitStack) -> Look:
    from coldframe.paging.regular import Regular  # noqa: PLC0415
    from coldframe.paging.search import search as matches  # noqa: PLC0415

    matcher = stack.enter_context(Regular(pattern))
    return lambda space: (({}, match) for match in matches(space, matcher))


def _rules(path: Path) -> Look:
    from coldframe.paging.yara import Rules  # noqa: PLC0415

    rules = Rules.load(path)
    return lambda space: (
        ({"rule": found.rule, "pattern": found.pattern or None}, found.match) for found in rules.search(space)
    )


def _rows(guest: Guest, look: Look, pid: int | None, everything: bool) -> Iterator[dict[str, Value]]:
    """The matches in the kernel's half, one process's or all, as `search --json` prints them."""
    if pid is not None:
        chosen: list[Process | None] = [guest.process(pid)]
    else:
        chosen = [*guest.processes, None] if everything else [None]
    for number, process in enumerate(chosen):
        if everything and sys.stderr.isatty():
            name = "the kernel" if process is None else f"{process.name} ({process.pid})"
            err.console.print(f"{number + 1} of {len(chosen)}: {name}\x1b[K", end="\r", markup=False)
        space = guest.memory if process is None else process.memory
        for named, match in look(space):
            yield {**_whose(process), **named, **_facts(guest, space, process, match)}


def _whose(process: Process | None) -> dict[str, Value]:
    return {"pid": None if process is None else process.pid, "process": "kernel" if process is None else process.name}


def _facts(guest: Guest, space: AddressSpace, process: Process | None, match: Match) -> dict[str, Value]:
    page = space.resolve(match.address)
    return {
        "address": Address(match.address),
        "size": match.size,
        "data": match.data[:SHOWN].hex(),
        "text": _text(match.data[:SHOWN]),
        "before": match.before.hex(),
        "after": match.after.hex(),
        "state": str(page.state),
        "via": [str(via) for via in page.via],
        "physical": None if page.physical is None else Address(page.physical),
        "in": _place(guest, process, match.address),
    }


def _text(data: bytes) -> str:
    """The bytes as a person would read them: UTF-16 where every other byte is zero, dots for what is no text."""
    if len(data) > 2 and not any(data[1::2]):
        data = data[::2]
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def _place(guest: Guest, process: Process | None, address: int) -> str | None:
    """What lies there, and how far into it: a module, or a VAD in words."""
    module = guest.module_at(address) if process is None else process.module_at(address)
    if module is not None:
        return f"{module.name}+{address - module.base:#x}"
    vad = None if process is None else process.vads.find(address)
    return None if vad is None else f"{vad.says} +{address - vad.start:#x}"
