"""The colours of the page states, told apart by those who see few colours too, and the legend that explains them."""

from __future__ import annotations

from collections.abc import Mapping

from coldframe.figures.canvas import INK, QUIET, Canvas, Rectangle, Text
from coldframe.paging import State

COLOURS: Mapping[State, str] = {
    State.VALID: "#2a7f62",
    State.TRANSITION: "#edae2f",
    State.PAGEFILE: "#c4473a",
    State.COMPRESSED: "#8a56a3",
    State.DEMAND_ZERO: "#cfd9de",
    State.SUBSECTION: "#3c78b4",
    State.UNMAPPED: "#f1f3f4",
}
"""Green is in RAM, amber still is, red and violet left it, blue never was there, grey is yet to be."""


def legend(canvas: Canvas, x: float, y: float, counts: Mapping[State, int], width: float) -> float:
    """Draw what the colours mean, with the number of pages of each state that there is; returns the y below it."""
    at = x
    for state, colour in COLOURS.items():
        if not counts.get(state):
            continue
        number = f"{counts[state]:,}"
        needed = 20 + 7.2 * len(state) + 7.2 * len(number) + 22
        if at > x and at + needed > x + width:
            at, y = x, y + 20
        canvas.add(
            Rectangle(at, y - 10, 12, 12, colour, QUIET if state is State.UNMAPPED else "none", 2),
            Text(at + 18, y, state, 12, INK, bold=True),
            Text(at + 24 + 7.2 * len(state), y, number, 12, QUIET),
        )
        at += needed
    return y + 12
