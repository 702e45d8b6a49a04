"""A census as bars: a line a process, each state's share of its pages."""

from __future__ import annotations

from collections.abc import Sequence

from coldframe.figures.canvas import FAINT, INK, QUIET, Canvas, Line, Rectangle, Text, ink_on, shorten, text_width
from coldframe.figures.states import COLOURS, legend
from coldframe.paging import Census, State

_MARGIN, _NAMES, _BARS, _NUMBERS, _LINE = 32.0, 180.0, 560.0, 168.0, 24.0

Counted = tuple[int | None, str, Census]
"""Process identifier (None: the kernel), name, counts."""


def census_figure(counted: Sequence[Counted], title: str, total: Census | None = None) -> Canvas:
    """Draw (pid, name, counts) of each process, one bar a line; pid None is the kernel. `total` is drawn below."""
    width = 2 * _MARGIN + _NAMES + _BARS + _NUMBERS
    canvas = Canvas(width, 0, title)
    canvas.add(Text(_MARGIN, 44, title, 20, bold=True))
    totals = {state: sum(counts.pages[state] for _, _, counts in counted) for state in State}
    y = legend(canvas, _MARGIN, 74, totals, width - 2 * _MARGIN) + 26
    right = width - _MARGIN
    canvas.add(
        Text(_MARGIN + 36, y, "pid", 11, QUIET, "end"),
        Text(_MARGIN + 48, y, "process", 11, QUIET),
        Text(_MARGIN + _NAMES, y, "share of its pages", 11, QUIET),
        Text(right - 72, y, "pages", 11, QUIET, "end"),
        Text(right, y, "readable", 11, QUIET, "end"),
    )
    y += 8
    for pid, name, counts in counted:
        _row(canvas, y, "" if pid is None else str(pid), name, counts, bold=pid is None)
        y += _LINE
    if total is not None:
        canvas.add(Line(((_MARGIN, y + 4), (right, y + 4)), FAINT, 1))
        y += 8
        _row(canvas, y, "", "all of them", total, bold=True)
        y += _LINE
    canvas.height = y + _MARGIN - 8
    return canvas


def _row(canvas: Canvas, y: float, pid: str, name: str, counts: Census, *, bold: bool) -> None:
    total = counts.readable + counts.unreadable
    middle, right = y + _LINE / 2 + 4, canvas.width - _MARGIN
    canvas.add(
        Text(_MARGIN + 36, middle, pid, 12, QUIET, "end"),
        Text(_MARGIN + 48, middle, shorten(name, _NAMES - 60, 12, bold=bold), 12, bold=bold),
        Text(right - 72, middle, f"{total:,}", 12, INK, "end"),
        Text(right, middle, share(counts.readable, total), 12, QUIET, "end"),
    )
    x = _MARGIN + _NAMES
    if not total:
        canvas.add(Text(x, middle, "no pages of its own", 11, QUIET))
        return
    for (state, start), end in _edges(counts, total):
        colour = COLOURS[state]
        canvas.add(Rectangle(x + start, y + 4, end - start, _LINE - 8, colour))
        says = share(counts.pages[state], total)
        if end - start > text_width(says, 10) + 12:
            canvas.add(Text(x + start + 6, middle - 0.5, says, 10, ink_on(colour)))


def _edges(counts: Census, total: int) -> list[tuple[tuple[State, float], float]]:
    """Where each state's part of the bar begins and ends; what is a little is still seen, at the others' cost."""
    parts = {state: _BARS * counts.pages[state] / total for state in COLOURS if counts.pages[state]}
    shown = {state: max(part, 2.0) for state, part in parts.items()}
    scale = _BARS / sum(shown.values())
    edges, at = [], 0.0
    for state, part in shown.items():
        edges.append(((state, at), at + part * scale))
        at += part * scale
    return edges


def share(number: int, total: int) -> str:
    """A percentage. What is a little is not called nothing, nor what is most all."""
    if not total:
        return "-"
    percent = round(100 * number / total)
    if number in (0, total) or 1 <= percent <= 99:
        return f"{percent}%"
    return "<1%" if percent < 1 else ">99%"
