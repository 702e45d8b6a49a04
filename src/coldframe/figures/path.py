"""The path of one address: through the page tables, a VAD, a prototype PTE and a subsection, to its page."""

from __future__ import annotations

from coldframe.figures.canvas import FAINT, INK, PAPER, QUIET, Canvas, Line, Rectangle, Text, ink_on, wrap
from coldframe.figures.states import COLOURS
from coldframe.paging import Page, PageTableFormat, State, Step, Via

_MARGIN, _CARD, _GAP = 32.0, 196.0, 44.0
_TOP, _TABLE = 196.0, 168.0
_PATH, _SELECTS = "#2b5c8a", "#a9b7c0"
_TINTS = {"VAD": "#f7efdc", "prototype PTE": "#ece6f4", "subsection": "#e2ecf6"}


def path_figure(page: Page, page_format: PageTableFormat, title: str = "") -> Canvas:
    """Draw how `page` was found; `page_format` tells which bits of the address index which table."""
    says = [wrap(_meaning(step), _CARD - 8, 11)[:7] for step in page.steps]
    reason = wrap(page.reason, _CARD + 4, 11)
    height = _TOP + _TABLE + 64 + 15 * max([len(lines) for lines in says] + [len(reason) + 3]) + 24
    width = max(2 * _MARGIN + (len(page.steps) + 1) * (_CARD + _GAP) - _GAP, 860)
    canvas = Canvas(width, height, f"{title} {page.address:#x}: {page.state}".strip())
    canvas.add(Text(_MARGIN, 42, f"{page.address:#x}", 20, bold=True, mono=True))
    canvas.add(Text(width - _MARGIN, 42, title, 14, QUIET, "end"))
    _answer_line(canvas, page)
    hardware = {step.level for step in page.steps}
    leaf_bits = 12  # of the offset; more in a large page
    if Via.LARGE_PAGE in page.via:
        leaf_bits = min((level.shift for level in page_format.levels if level.name in hardware), default=12)
    indices = _address_bits(canvas, page.address, page_format, leaf_bits)
    for number, (step, lines) in enumerate(zip(page.steps, says, strict=True)):
        x = _MARGIN + number * (_CARD + _GAP)
        if step.level in indices:
            field_x, index, bits = indices[step.level]
            row = _table(canvas, x, index / (1 << bits), step)
            bend = 168.0 - 8 * number  # those that go further bend higher, so that none crosses another
            line = ((field_x, 132.0), (field_x, bend), (x + 30, bend), (x + 30, _TOP - 5))
            canvas.add(Line(line, _SELECTS, 1.5, True))
        else:
            row = _card(canvas, x, step)
        following = page.steps[number + 1].level if number + 1 < len(page.steps) else ""
        target = row if following in indices else _TOP + _TABLE / 2
        right, half = x + _CARD, x + _CARD + _GAP / 2 - 4
        canvas.add(Line(((right, row), (half, row), (half, target), (right + _GAP - 2, target)), _PATH, 2, True))
        _words(canvas, x, step, lines)
    _page(canvas, _MARGIN + len(page.steps) * (_CARD + _GAP), page, reason)
    return canvas


def _answer_line(canvas: Canvas, page: Page) -> None:
    words = str(page.state) + (f" via {', '.join(page.via)}" if page.via else "")
    canvas.add(
        Rectangle(_MARGIN, 57, 12, 12, COLOURS[page.state], QUIET if page.state is State.UNMAPPED else "none", 2),
        Text(_MARGIN + 22, 68, words, 14),
    )


def _address_bits(
    canvas: Canvas, address: int, page_format: PageTableFormat, leaf_bits: int
) -> dict[str, tuple[float, int, int]]:
    """The address cut into its indices; returns where the middle of each is drawn, its value and number of bits."""
    found: dict[str, tuple[float, int, int]] = {}
    x = _MARGIN
    levels = [level for level in page_format.levels if level.shift >= leaf_bits]
    fields = [(level.name, address >> level.shift & (1 << level.bits) - 1, level.bits) for level in levels]
    for name, value, bits in [*fields, ("offset", address & (1 << leaf_bits) - 1, leaf_bits)]:
        width = 14.0 * bits if bits > 4 else 56.0
        canvas.add(
            Rectangle(x, 104, width - 4, 28, "#eef3f6", "none", 4),
            Text(x + width / 2 - 2, 98, name, 11, QUIET, "middle"),
            Text(x + width / 2 - 2, 123, f"{value:#x}", 13, INK, "middle", mono=True),
        )
        found[name] = (x + width / 2 - 2, value, bits)
        x += width
    return found


def _table(canvas: Canvas, x: float, share: float, step: Step) -> float:
    """A page table as a stack of entries, the one that was read marked; returns the middle of its row."""
    rows = 14
    height = _TABLE / rows
    marked = min(int(share * rows), rows - 1)
    canvas.add(Rectangle(x, _TOP, _CARD, _TABLE, "#fafbfc", FAINT, 6))
    for row in range(1, rows):
        canvas.add(Line(((x, _TOP + row * height), (x + _CARD, _TOP + row * height)), "#e9eef1", 1))
    y = min(max(_TOP + marked * height, _TOP + 3), _TOP + _TABLE - height - 3)
    canvas.add(
        Rectangle(x, y - 3, _CARD, height + 6, _PATH, "none", 3),
        Text(x + _CARD / 2, y + height / 2 + 4, f"{step.value:016x}", 12, PAPER, "middle", mono=True),
    )
    return y + height / 2


def _card(canvas: Canvas, x: float, step: Step) -> float:
    """Something that is no page table: a VAD, a prototype PTE, a subsection."""
    y = _TOP + _TABLE / 2
    canvas.add(Rectangle(x, y - 34, _CARD, 68, _TINTS.get(step.level, "#eef3f6"), QUIET, 10))
    canvas.add(Text(x + _CARD / 2, y - 6, step.level, 14, INK, "middle", bold=True))
    value = f"{step.value:016x}" if step.level == "prototype PTE" else f"{step.entry_address:x}"
    canvas.add(Text(x + _CARD / 2, y + 16, value, 12, INK, "middle", mono=True))
    return y


def _words(canvas: Canvas, x: float, step: Step, lines: list[str]) -> None:
    y = _TOP + _TABLE + 24
    canvas.add(Text(x, y, step.level, 13, INK, bold=True))
    canvas.add(Text(x, y + 17, f"at {step.entry_address:#x}", 11, QUIET, mono=True))
    for number, line in enumerate(lines):
        canvas.add(Text(x, y + 36 + 15 * number, line, 11, INK))


def _page(canvas: Canvas, x: float, page: Page, reason: list[str]) -> None:
    """Where the path ends: the page in its state's colour, hollow where its bytes cannot be had."""
    colour, side = COLOURS[page.state], 112.0
    y = _TOP + (_TABLE - side) / 2
    ground = colour if page.readable else PAPER
    edge = QUIET if page.state is State.UNMAPPED else colour
    canvas.add(
        Rectangle(x, y, side * 0.9, side, ground, edge, 6),
        Text(x + side * 0.45, y + side / 2 + 5, str(page.state), 14, ink_on(ground), "middle", bold=True),
    )
    if not page.readable:
        canvas.add(
            Rectangle(x, y, side * 0.9, 12, colour, edge, 6), Rectangle(x + 0.5, y + 7, side * 0.9 - 1, 6, PAPER)
        )
    below = _TOP + _TABLE + 24
    if page.physical is not None:
        canvas.add(Text(x, below, "physical", 13, bold=True), Text(x, below + 17, f"{page.physical:#x}", 11, mono=True))
    elif page.readable:
        canvas.add(Text(x, below, "reads as zeros" if not page.supplied else "read from disk", 13, bold=True))
    else:
        canvas.add(Text(x, below, "cannot be read", 13, bold=True))
        for number, line in enumerate(reason):
            canvas.add(Text(x, below + 19 + 15 * number, line, 11, INK))


def _meaning(step: Step) -> str:
    """A step's words without the address and the value, which are drawn already."""
    _, found, rest = step.says.partition(f"{step.value:X}: ")
    if not found:
        _, found, rest = step.says.partition(f" at {step.entry_address:#x}: ")
    return rest if found else step.says
