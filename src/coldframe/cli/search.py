"""`search`: bytes, text or a regular expression in an address space."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.cli.options import Json, SymbolPaths, Target
from coldframe.cli.render import Address, Value, err, print_rows
from coldframe.errors import UsageError
from coldframe.target import open_target

if TYPE_CHECKING:
    from coldframe.paging.search import Match
    from coldframe.windows import Guest, Process

SHOWN = 48
"""Bytes of a match that are shown."""


def register(app: typer.Typer) -> None:
    """Add this module's verb to `app`."""
    app.command()(search)


def search(
    target: Target,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Text, unless --hex or --regex says otherwise.")],
    symbols: SymbolPaths,
    pid: Annotated[
        int | None,
        typer.Option("--pid", "-p", metavar="N", help="This process's user half (default: the kernel's half).", min=0),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Text, in UTF-8 and in UTF-16: the default.")] = False,
    as_hex: Annotated[bool, typer.Option("--hex", help="Bytes such as '4d 5a ?? 00'; ?? is any byte.")] = False,
    regex: Annotated[bool, typer.Option("--regex", help="A regular expression over bytes, as Python's.")] = False,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Case does not matter.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="Stop after N matches.", min=1)] = 1000,
    as_json: Json = False,
) -> None:
    """Find bytes, text or a regular expression in memory. In a process's, or in the kernel's.

    Every page in RAM is looked through, also those in transition and behind prototype PTEs.

    \b
    coldframe search memory.dmp notepad --pid 812
    coldframe search win10.qmp --hex '4d 5a 90 00' --pid 812 --json
    coldframe search memory.dmp --regex 'https?://[\\w./-]+' --pid 812
    """
    if text + as_hex + regex > 1:
        raise UsageError("expected one of --text, --hex and --regex, found several")
    wanted = hex_pattern(pattern) if as_hex else regular(pattern, ignore_case) if regex else words(pattern, ignore_case)
    with open_target(target, symbols=symbols) as guest:
        rows = _rows(guest, wanted, pid)
        print_rows(islice(rows, limit), as_json=as_json, columns=("address", "data", "text", "in"))
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


def _rows(guest: Guest, pattern: re.Pattern[bytes], pid: int | None) -> Iterator[dict[str, Value]]:
    from coldframe.paging.search import search as matches  # noqa: PLC0415 - keeps the call's words from loading numpy

    process = None if pid is None else guest.process(pid)
    space = guest.memory if process is None else process.memory
    for match in matches(space, pattern):
        yield {
            "address": Address(match.address),
            "size": len(match.data),
            "data": match.data[:SHOWN].hex(),
            "text": _text(match.data[:SHOWN]),
            "in": _place(guest, process, match),
        }


def _text(data: bytes) -> str:
    """The bytes as a person would read them: UTF-16 where every other byte is zero, dots for what is no text."""
    if len(data) > 2 and not any(data[1::2]):
        data = data[::2]
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def _place(guest: Guest, process: Process | None, match: Match) -> str | None:
    """What lies there: a symbol, or the VAD in words."""
    module = guest.module_at(match.address) if process is None else process.module_at(match.address)
    if module is not None:
        return guest.symbolize(match.address, process)
    vad = None if process is None else process.vads.find(match.address)
    return None if vad is None else vad.says
