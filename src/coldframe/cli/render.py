"""Rendering of rows: a table for people, one JSON document for scripts. Rows come from generators."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

Value: TypeAlias = "str | int | float | bool | datetime | Sequence[Value] | Mapping[str, Value] | None"

_PIPED_WIDTH = 1000  # where no terminal limits the line: a row stays one line for grep and awk


class Printer:
    """Prints rich's markup to standard output or standard error; rich is loaded when there is something to print."""

    def __init__(self, *, stderr: bool) -> None:
        self._stderr = stderr

    @cached_property
    def console(self) -> Console:
        """The console itself, for progress bars."""
        from rich.console import Console  # noqa: PLC0415 - slow to load; JSON does without

        if self._stderr:
            return Console(stderr=True, highlight=False, soft_wrap=True)
        return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPED_WIDTH)

    def print(self, *objects: object, sep: str = " ", markup: bool = True) -> None:
        """Print objects, separated by `sep`, with a line's end; without `markup`, brackets are text."""
        self.console.print(*objects, sep=sep, markup=markup)


out = Printer(stderr=False)
err = Printer(stderr=True)


class Address(int):
    """A number that is an address, a mask or a raw entry: rendered as `0x...`."""

    def __str__(self) -> str:
        return hex(self)


def plain(value: Value) -> object:
    """`value` as JSON has it: addresses as `0x...` strings, times in ISO 8601."""
    match value:
        case Address():
            return str(value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return {key: plain(inner) for key, inner in value.items()}
        case str() | int() | float() | None:
            return value
        case Sequence():
            return [plain(inner) for inner in value]


def print_json(value: Value, *, one_line: bool = False) -> None:
    """Write one JSON document to standard output."""
    json.dump(plain(value), sys.stdout, indent=None if one_line else 2, ensure_ascii=False)
    sys.stdout.write("\n")
    if one_line:  # a stream: each object as soon as it is there
        sys.stdout.flush()


def print_rows(rows: Iterable[Mapping[str, Value]], *, as_json: bool, columns: Sequence[str]) -> None:
    """Print rows as one JSON list, or as a table of `columns` (titles are the field names)."""
    if as_json:
        print_json([dict(row) for row in rows])
        return
    from rich.table import Table  # noqa: PLC0415 - slow to load; JSON does without

    table = Table(box=None, pad_edge=False, header_style="bold")
    first = True
    for row in rows:
        if first:
            for column in columns:
                number = _is_number(row.get(column))
                table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
            first = False
        table.add_row(*(_cell(row.get(column)) for column in columns))
    if first:
        err.print("none")
        return
    out.print(table)


def _is_number(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cell(value: Value) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case str():
            return printable(value)
        case Mapping():
            return ", ".join(f"{_title(key)}: {_cell(inner)}" for key, inner in value.items())
        case Sequence():
            return "; ".join(_cell(inner) for inner in value) or "none"
        case _:
            return str(value)


def printable(text: str) -> str:
    """`text` with what a terminal would obey (escape sequences in a guest's names) made visible; markup stays text."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return visible.replace("[", r"\[")


def hex_dump(data: bytes, address: int, holes: Sequence[tuple[int, int]] = ()) -> Iterable[str]:
    """Lines of sixteen bytes: address, hexadecimal, text. Bytes inside a hole (start, size) are shown as `??`."""
    for offset in range(0, len(data), 16):
        cells, text = [], []
        for position in range(offset, min(offset + 16, len(data))):
            if any(start <= address + position < start + size for start, size in holes):
                cells.append("??")
                text.append(" ")
            else:
                byte = data[position]
                cells.append(f"{byte:02x}")
                text.append(chr(byte) if 32 <= byte < 127 else ".")
        left, right = " ".join(cells[:8]), " ".join(cells[8:])
        yield f"{address + offset:016x}  {left:<23}  {right:<23}  {''.join(text)}"


def print_facts(facts: Mapping[str, Value]) -> None:
    """Print named facts, one a line; a fact of several parts takes a line for each."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines = [f"{_title(part)}: {_cell(inner)}" for part, inner in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines = [_cell(part) for part in value] or ["none"]
        else:
            lines = [_cell(value)]
        for position, line in enumerate(lines):
            title = _title(name) if position == 0 else ""
            out.print(f"[bold]{title:<{width}}[/bold]  {line}")


def _title(name: str) -> str:
    """A field's name in words."""
    return name.replace("_", " ")
