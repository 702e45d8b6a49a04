"""The colours of the page states, told apart by those who see few colours too, and the legend that explains them."""

from __future__ import annotations

from collections.abc import Mapping

from coldframe.figures.canvas import FAINT, INK, QUIET, Canvas, Rectangle, Text, text_width
from coldframe.paging import State

COLOURS: Mapping[State, str] = {
    State.VALID: "#0f6b57",
    State.TRANSITION: "#f2b134",
    State.PAGEFILE: "#d9542b",
    State.COMPRESSED: "#64418f",
    State.DEMAND_ZERO: "#bfcad1",
    State.SUBSECTION: "#58a4de",
    State.UNMAPPED: "#f4f6f7",
}
"""Green is in RAM, amber still is, red and violet left it, blue never was there, grey is yet to be."""

_SIZE = 12.0


def legend(canvas: Canvas, x: float, y: float, counts: Mapping[State, int], width: float) -> float:
    """Draw what the colours mean, with the number of pages of each state that there is; returns the y below it."""
    at = x
    for state, colour in COLOURS.items():
        if not counts.get(state):
            continue
        number = f"{counts[state]:,}"
        word = text_width(state, _SIZE, bold=True)
        needed = 18 + word + 6 + text_width(number, _SIZE)
        if at > x and at + needed > x + width:
            at, y = x, y + 20
        canvas.add(
            Rectangle(at, y - 10, 12, 12, colour, FAINT if state is State.UNMAPPED else "none", 2),
            Text(at + 18, y, state, _SIZE, INK, bold=True),
            Text(at + 24 + word, y, number, _SIZE, QUIET),
        )
        at += needed + 22
    return y + 12
