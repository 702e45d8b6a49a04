"""An address space as a map: one cell a page, in the colour of its state, ordered by VAD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from coldframe.errors import UsageError
from coldframe.figures.canvas import FAINT, INK, PAPER, QUIET, Canvas, Rectangle, Text, shorten
from coldframe.figures.states import COLOURS, legend
from coldframe.paging import PageArrays, State, Via
from coldframe.paging.arrays import BIT, STATES
from coldframe.paging.formats import PAGE_SIZE

_ACROSS, _CELL = 64, 7.0
_WIDTH, _GUTTER, _MARGIN = _ACROSS * _CELL, 36.0, 32.0
_HEAD, _AFTER, _BAND = 17.0, 9.0, 13.0
_MOST_CELLS = 1 << 19
_SHAPE = 1.5  # width to height of the whole picture


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
    """One line of an area: its heading, a row of cells, or a band that stands for many rows that are alike."""

    height: float
    area: Area | None
    cells: tuple[Run, ...]
    band: str


def map_figure(pages: PageArrays, areas: Sequence[Area], title: str, says: str, rest: str = "") -> Canvas:
    """Draw `pages` area by area; pages outside every area are gathered into areas of their own,
    called `rest`.

    Raises `UsageError` for a space of more cells than a picture can show.
    """
    alike = (pages.state[1:] == pages.state[:-1]) & (pages.via[1:] == pages.via[:-1])
    if len(alike) - np.count_nonzero(alike) > _MOST_CELLS:
        raise UsageError(f"more than {_MOST_CELLS} pages that differ: too many for one picture")
    rows = [row for area in with_rest(pages, areas, rest) for row in _area_rows(pages, area)]
    total = sum(row.height for row in rows)
    columns = max(round((_SHAPE * total / (_WIDTH + _GUTTER)) ** 0.5), 2)
    filled = list(_columns(rows, total / columns))
    width = max(2 * _MARGIN + len(filled) * (_WIDTH + _GUTTER) - _GUTTER, 900)
    counts = {state: int((pages.size[pages.state == code] // PAGE_SIZE).sum()) for code, state in enumerate(STATES)}
    canvas = Canvas(width, 0, title)
    canvas.add(Text(_MARGIN, 44, title, 20, bold=True), Text(width - _MARGIN, 44, says, 13, QUIET, "end"))
    top = legend(canvas, _MARGIN, 72, counts, width - 2 * _MARGIN)
    canvas.add(
        Rectangle(_MARGIN, top, 12, 12, COLOURS[State.VALID], "none", 2),
        Rectangle(_MARGIN + 4.5, top + 4.5, 3, 3, PAPER),
        Text(_MARGIN + 18, top + 10, "with a dot: behind a prototype PTE, so it may be shared", 12, QUIET),
    )
    top += 36
    for number, column in enumerate(filled):
        y = top
        for row in column:
            _draw(canvas, _MARGIN + number * (_WIDTH + _GUTTER), y, row)
            y += row.height
        canvas.height = max(canvas.height, y + _MARGIN)
    return canvas


def with_rest(pages: PageArrays, areas: Sequence[Area], name: str = "") -> list[Area]:
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
            found[-1] = Area(found[-1].start, end, "", name)
        else:
            found.append(Area(start, end, "", name))
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
    yield Row(_HEAD, area, (), "")
    line: list[Run] = []
    room = _ACROSS
    for run in runs(pages, area.start, area.end):
        left = run.pages
        while left:
            taken = min(left, room)
            line.append(run._replace(pages=taken))
            left, room = left - taken, room - taken
            if not room:
                yield Row(_CELL, None, tuple(line), "")
                line, room = [], _ACROSS
                if left >= 4 * _ACROSS:  # many rows that are alike: one band
                    many = left // _ACROSS * _ACROSS - _ACROSS
                    yield Row(_BAND, None, (run._replace(pages=many),), f"{many:,} pages more, {run.state}")
                    left -= many
    if line:
        yield Row(_CELL, None, tuple(line), "")
    yield Row(_AFTER, None, (), "")


def _columns(rows: Iterable[Row], height: float) -> Iterator[list[Row]]:
    """Rows as columns of about that height; a heading goes with the row below it."""
    column: list[Row] = []
    number, reached = 0, 0.0
    for row in rows:
        middle = reached + row.height * (1.0 if row.area else 0.5)
        if middle > (number + 1) * height and column and (row.area or not column[-1].area):
            yield column
            column, number = [], int(middle / height)
        column.append(row)
        reached += row.height
    if column:
        yield column


def _draw(canvas: Canvas, x: float, y: float, row: Row) -> None:
    if row.area is not None:
        range_says = f"{row.area.start:x}"
        room = _WIDTH - 7.0 * len(range_says) - 12
        name = row.area.name or row.area.kind
        kind = row.area.kind if row.area.name else ""
        room_for_name = room - 6.4 * len(kind) - 8
        name = shorten(name, room_for_name * 1.1, 11)
        canvas.add(
            Text(x, y + 12, name, 11, INK if row.area.name else QUIET, bold=bool(row.area.name)),
            Text(x + _WIDTH, y + 12, f"{kind}  {range_says}".strip(), 10, QUIET, "end"),
        )
    elif row.band:
        colour = COLOURS[row.cells[0].state]
        dark = row.cells[0].state not in {State.DEMAND_ZERO, State.UNMAPPED, State.TRANSITION}
        canvas.add(
            Rectangle(x, y + 1, _WIDTH - 1, _BAND - 3, colour, FAINT, 2),
            Text(x + _WIDTH / 2, y + 9.5, row.band, 9, PAPER if dark else INK, "middle"),
        )
    else:
        for run in row.cells:
            for _ in range(run.pages):
                canvas.add(Rectangle(x, y, _CELL - 1, _CELL - 1, COLOURS[run.state]))
                if run.shared:
                    canvas.add(Rectangle(x + 2, y + 2, 2, 2, PAPER))
                x += _CELL
