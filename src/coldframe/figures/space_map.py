"""An address space as a map: one cell a page, in the colour of its state, ordered by VAD."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from coldframe.errors import UsageError
from coldframe.figures.canvas import (
    FAINT,
    INK,
    PAPER,
    QUIET,
    Canvas,
    Line,
    Rectangle,
    Text,
    ink_on,
    shorten,
)
from coldframe.figures.states import COLOURS, legend
from coldframe.paging import PageArrays, State, Via
from coldframe.paging.arrays import BIT, STATES
from coldframe.paging.formats import PAGE_SIZE

_ACROSS, _CELL = 64, 7.0
_ADDRESS, _KIND, _NAME = 112.0, 84.0, 128.0  # the columns before the cells
_LABELS = _ADDRESS + _NAME + _KIND
_WIDTH, _GUTTER, _MARGIN = _LABELS + _ACROSS * _CELL, 44.0, 32.0
_LINE, _BAND = 15.0, 14.0
_MOST_CELLS = 1 << 19
_SHAPE = 1.4  # width to height of the whole picture


@dataclass(frozen=True, slots=True)
class Area:
    """A range of addresses with a name: a VAD, a module, or what lies outside all of them."""

    start: int
    end: int
    name: str
    kind: str = ""


class Run(NamedTuple):
    """Pages beside each other that are alike; `state` None is nothing at all."""

    pages: int
    state: State
    shared: bool


class Row(NamedTuple):
    """One line of an area: a row of cells, or a band that stands for many rows that are alike; the first with the
    area's name."""

    height: float
    area: Area | None
    cells: tuple[Run, ...]
    band: str


def map_figure(
    pages: PageArrays,
    areas: Sequence[Area],
    title: str,
    says: str,
    *,
    rest: str | Callable[[int], str] = "",
    note: str = "",
) -> Canvas:
    """Draw `pages` area by area; pages outside every area are gathered into areas of their own, called `rest`, or what
    that says of their address. `note` goes with the legend.

    Raises `UsageError` for a space of more cells than a picture can show.
    """
    alike = (pages.state[1:] == pages.state[:-1]) & (pages.via[1:] == pages.via[:-1])
    if len(alike) - np.count_nonzero(alike) > _MOST_CELLS:
        raise UsageError(f"more than {_MOST_CELLS} pages that differ: too many for one picture")
    rows = [row for area in with_rest(pages, areas, rest) for row in _area_rows(pages, area)]
    total = sum(row.height for row in rows)
    columns = max(round((_SHAPE * total / (_WIDTH + _GUTTER)) ** 0.5), 1)
    filled = list(_columns(rows, total / columns))
    width = 2 * _MARGIN + max(len(filled), 1) * (_WIDTH + _GUTTER) - _GUTTER
    counts = {state: int((pages.size[pages.state == code] // PAGE_SIZE).sum()) for code, state in enumerate(STATES)}
    canvas = Canvas(width, 0, title)
    canvas.add(Text(_MARGIN, 44, title, 20, bold=True), Text(width - _MARGIN, 44, says, 12, QUIET, "end"))
    top = _legend(canvas, counts, note, shared=bool((pages.via & BIT[Via.PROTOTYPE]).any()))
    for number, column in enumerate(filled):
        x, y = _MARGIN + number * (_WIDTH + _GUTTER), top
        for row in column:
            _draw(canvas, x, y, row)
            y += row.height
        canvas.add(Line(((x, y), (x + _WIDTH, y)), _RULE, 1))
        canvas.height = max(canvas.height, y + _MARGIN)
    return canvas


_RULE = "#e9eef1"


def _legend(canvas: Canvas, counts: dict[State, int], note: str, *, shared: bool) -> float:
    top = legend(canvas, _MARGIN, 74, counts, canvas.width - 2 * _MARGIN) + 4
    if not (shared or note):
        return top + 8
    notes = [note] if note else []
    if shared:
        canvas.add(
            Rectangle(_MARGIN, top, 12, 12, COLOURS[State.VALID], "none", 2),
            Rectangle(_MARGIN + 4, top + 4, 4, 4, PAPER),
        )
        notes.insert(0, "with a dot: behind a prototype PTE, so it may be shared")
    canvas.add(Text(_MARGIN + (18 if shared else 0), top + 10, "; ".join(notes), 12, QUIET))
    return top + 32


def with_rest(pages: PageArrays, areas: Sequence[Area], rest: str | Callable[[int], str] = "") -> list[Area]:
    """`areas` by address, with those of pages outside of them; areas that overlap earlier ones are left out."""
    kept: list[Area] = []
    for area in sorted(areas, key=lambda area: area.start):
        if area.start < area.end and (not kept or area.start >= kept[-1].end):
            kept.append(area)
    starts = np.array([area.start for area in kept], np.uint64)
    ends = np.array([area.end - 1 for area in kept], np.uint64)
    inside = np.searchsorted(starts, pages.address, side="right").astype(np.int64) - 1
    outside = inside < 0 if not kept else (inside < 0) | (pages.address > ends[np.maximum(inside, 0)])
    loose = np.flatnonzero(outside)
    found: list[Area] = []
    for row in loose.tolist():
        start, end = int(pages.address[row]), int(pages.address[row]) + int(pages.size[row])
        near = found and start - found[-1].end <= 16 * PAGE_SIZE and not _between(starts, found[-1].end, start)
        if near:
            found[-1] = replace(found[-1], end=end)
        else:
            found.append(Area(start, end, "", rest if isinstance(rest, str) else rest(start)))
    return sorted(kept + found, key=lambda area: area.start)


def _between(starts: np.ndarray[tuple[int], np.dtype[np.uint64]], low: int, high: int) -> bool:
    return bool(np.searchsorted(starts, np.uint64(low)) != np.searchsorted(starts, np.uint64(high)))


def runs(pages: PageArrays, start: int, end: int) -> Iterator[Run]:
    """The pages from `start` to `end`, those that are alike together; what has no row is unmapped."""
    first = int(np.searchsorted(pages.address, np.uint64(start), side="right")) - 1
    last = int(np.searchsorted(pages.address, np.uint64(end - 1), side="right"))
    at, held = start, Run(0, State.UNMAPPED, False)
    for row in range(max(first, 0), last):
        low = max(int(pages.address[row]), start)
        high = min(int(pages.address[row]) + int(pages.size[row]), end)
        if high <= low:
            continue
        shared = bool(pages.via[row] & BIT[Via.PROTOTYPE])
        for run in (
            Run((low - at) // PAGE_SIZE, State.UNMAPPED, False),
            Run((high - low) // PAGE_SIZE, STATES[pages.state[row]], shared),
        ):
            if run[1:] == held[1:]:
                held = held._replace(pages=held.pages + run.pages)
            elif run.pages:
                if held.pages:
                    yield held
                held = run
        at = high
    rest = Run((end - at) // PAGE_SIZE, State.UNMAPPED, False)
    if rest[1:] == held[1:]:
        yield held._replace(pages=held.pages + rest.pages)
        return
    yield from (run for run in (held, rest) if run.pages)


def _area_rows(pages: PageArrays, area: Area) -> Iterator[Row]:
    lines = list(_lines(pages, area))
    for number, (cells, band) in enumerate(lines):
        height = _BAND if band else _CELL
        first, final = number == 0, number == len(lines) - 1
        padding = (4.0 if first else 0.0) + (4.0 if final else 0.0)
        yield Row(max(height + padding, _LINE if first and final else 0.0), area if first else None, cells, band)


def _lines(pages: PageArrays, area: Area) -> Iterator[tuple[tuple[Run, ...], str]]:
    """The rows of cells of an area, and bands (with words) for many rows that are alike."""
    line: list[Run] = []
    room = _ACROSS
    for run in runs(pages, area.start, area.end):
        left = run.pages
        while left:
            taken = min(left, room)
            line.append(run._replace(pages=taken))
            left, room = left - taken, room - taken
            if not room:
                yield tuple(line), ""
                line, room = [], _ACROSS
                if left >= 4 * _ACROSS:  # many rows that are alike: one band
                    many = left // _ACROSS * _ACROSS - _ACROSS
                    yield (run._replace(pages=many),), f"{many:,} pages more, {run.state}"
                    left -= many
    if line:
        yield tuple(line), ""


def _columns(rows: Iterable[Row], height: float) -> Iterator[list[Row]]:
    """Rows as columns of about that height."""
    column: list[Row] = []
    number, reached = 0, 0.0
    for row in rows:
        middle = reached + row.height * 0.5
        if middle > (number + 1) * height and column:
            yield column
            column, number = [], int(middle / height)
        column.append(row)
        reached += row.height
    if column:
        yield column


def _draw(canvas: Canvas, x: float, y: float, row: Row) -> None:
    if row.area is not None:
        _label(canvas, x, y, row.area)
        y += 4
    x += _LABELS
    if row.band:
        colour = COLOURS[row.cells[0].state]
        ground = Rectangle(x, y + 1, _ACROSS * _CELL - 1, _BAND - 3, colour, FAINT, 2)
        canvas.add(ground, Text(x + _ACROSS * _CELL / 2, y + 9.6, row.band, 9, ink_on(colour), "middle"))
        return
    for run in row.cells:
        for _ in range(run.pages):
            canvas.add(Rectangle(x, y, _CELL - 1, _CELL - 1, COLOURS[run.state]))
            if run.shared:
                canvas.add(Rectangle(x + 2, y + 2, 2, 2, PAPER))
            x += _CELL


def _label(canvas: Canvas, x: float, y: float, area: Area) -> None:
    """Where an area begins, what it is, its name; in columns. A nameless one has both columns for what it is."""
    canvas.add(
        Line(((x, y), (x + _WIDTH, y)), _RULE, 1),
        Text(x + _ADDRESS - 14, y + 11, f"{area.start:x}", 10, QUIET, "end", mono=True),
    )
    room = _KIND if area.name else _KIND + _NAME
    canvas.add(Text(x + _ADDRESS, y + 11, shorten(area.kind, room - 8, 10), 10, QUIET))
    if area.name:
        name = shorten(area.name, _NAME - 8, 11, bold=True)
        canvas.add(Text(x + _ADDRESS + _KIND, y + 11, name, 11, INK, bold=True))
