"""A census as bars: a line a process, each state's share of its pages."""

from __future__ import annotations

from collections.abc import Sequence

from coldframe.figures.canvas import INK, PAPER, QUIET, Canvas, Rectangle, Text, shorten
from coldframe.figures.states import COLOURS, legend
from coldframe.paging import Census, State

_MARGIN, _NAMES, _BARS, _NUMBERS, _LINE = 32.0, 200.0, 640.0, 190.0, 26.0


def census_figure(counted: Sequence[tuple[int | None, str, Census]], title: str) -> Canvas:
    """Draw (pid, name, counts) of each process, one bar a line; pid None is the kernel."""
    width = 2 * _MARGIN + _NAMES + _BARS + _NUMBERS
    canvas = Canvas(width, 0, title)
    canvas.add(Text(_MARGIN, 44, title, 20, bold=True))
    totals = {state: sum(counts.pages[state] for _, _, counts in counted) for state in State}
    y = legend(canvas, _MARGIN, 74, totals, width - 2 * _MARGIN) + 22
    right = width - _MARGIN
    canvas.add(Text(right - 84, y, "pages", 11, QUIET, "end"), Text(right, y, "readable", 11, QUIET, "end"))
    y += 10
    for pid, name, counts in counted:
        total = counts.readable + counts.unreadable
        middle = y + _LINE / 2 + 4
        number = "" if pid is None else str(pid)
        canvas.add(
            Text(_MARGIN + 44, middle, number, 12, QUIET, "end"),
            Text(_MARGIN + 56, middle, shorten(name, _NAMES - 60, 12), 12, bold=pid is None),
        )
        x = _MARGIN + _NAMES
        if not total:
            canvas.add(Text(x, middle, "no pages of its own", 11, QUIET))
        for state, colour in COLOURS.items():
            part = _BARS * counts.pages[state] / total if total else 0
            if part:
                shown = max(part, 1.5)
                canvas.add(Rectangle(x, y + 4, shown, _LINE - 8, colour))
                if part > 44:
                    ink = PAPER if state not in {State.DEMAND_ZERO, State.UNMAPPED, State.TRANSITION} else INK
                    canvas.add(Text(x + 6, middle - 0.5, f"{100 * part / _BARS:.0f}%", 10, ink))
                x += part
        share = f"{100 * counts.readable / total:.0f}%" if total else "-"
        canvas.add(Text(right - 84, middle, f"{total:,}", 12, INK, "end"), Text(right, middle, share, 12, QUIET, "end"))
        y += _LINE
    canvas.height = y + _MARGIN - 8
    return canvas
