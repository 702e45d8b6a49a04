"""The pictures: what is drawn is what was found."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from coldframe.errors import UsageError
from coldframe.figures import Area, Canvas, census_figure, map_figure, path_figure
from coldframe.figures.canvas import Rectangle, Text, shorten, text_width, wrap
from coldframe.figures.space_map import Run, runs
from coldframe.figures.states import COLOURS
from coldframe.paging import FORMATS, Census, Page, PageArrays, State, Step, SubsectionPage, Via
from coldframe.paging.arrays import BIT, Rows

PAGE = 4096


def listed(*parts: tuple[int, int, State, int]) -> PageArrays:
    """Pages from (page number, how many, state, via)."""
    rows = Rows()
    for first, count, state, via in parts:
        rows.add(np.arange(first, first + count, dtype=np.uint64) * np.uint64(PAGE), PAGE, state, via)
    return rows.arrays()


def words(canvas: Canvas) -> str:
    return " ".join(shape.text for shape in canvas.shapes if isinstance(shape, Text))


def test_a_map_has_a_cell_for_each_page_in_its_states_colour():
    pages = listed((16, 70, State.VALID, 0), (86, 3, State.PAGEFILE, 0), (100, 5, State.SUBSECTION, BIT[Via.PROTOTYPE]))
    areas = [Area(16 * PAGE, 96 * PAGE, "", "Private"), Area(100 * PAGE, 105 * PAGE, "a.dll", "Image")]
    canvas = map_figure(pages, areas, "a map", "")
    cells = Counter(shape.fill for shape in canvas.shapes if isinstance(shape, Rectangle) and shape.width == 6)
    assert cells == {
        COLOURS[State.VALID]: 70,
        COLOURS[State.PAGEFILE]: 3,
        COLOURS[State.SUBSECTION]: 5,
        COLOURS[State.UNMAPPED]: 7,
    }
    assert "a.dll" in words(canvas)


def test_runs_cover_every_page_once():
    pages = listed((3, 4, State.VALID, 0), (9, 2, State.VALID, BIT[Via.PROTOTYPE]), (11, 1, State.TRANSITION, 0))
    assert list(runs(pages, 0, 20 * PAGE)) == [
        Run(3, State.UNMAPPED, False),
        Run(4, State.VALID, False),
        Run(2, State.UNMAPPED, False),
        Run(2, State.VALID, True),
        Run(1, State.TRANSITION, False),
        Run(8, State.UNMAPPED, False),
    ]
    assert list(runs(pages, 4 * PAGE, 6 * PAGE)) == [Run(2, State.VALID, False)]


def test_terabytes_that_are_alike_are_a_band_with_their_number():
    rows = Rows()
    rows.add(np.array([PAGE], np.uint64), 1 << 41, State.DEMAND_ZERO, BIT[Via.VAD])
    canvas = map_figure(rows.arrays(), [Area(PAGE, PAGE + (1 << 41), "", "Private")], "a reservation", "")
    assert len(canvas.shapes) < 300
    assert f"{(1 << 41) // PAGE - 128:,} pages more, demand-zero" in words(canvas)


def test_more_cells_than_a_picture_shows_are_refused():
    code = np.tile(np.array([0, 1], np.uint8), 1 << 19)
    count = len(code)
    zero = np.zeros(count, np.uint64)
    small = np.zeros(count, np.uint8)
    address = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(PAGE)
    size = np.full(count, PAGE, np.uint64)
    pages = PageArrays(address, size, code, small, zero, small, zero, zero, zero, small.astype(np.bool_))
    with pytest.raises(UsageError, match="too many"):
        map_figure(pages, [], "", "")


def test_pages_outside_every_vad_are_drawn_too():
    canvas = map_figure(listed((5, 2, State.VALID, 0)), [], "", "", rest="outside every VAD")
    assert "outside every VAD" in words(canvas)


def test_a_path_shows_each_entry_and_what_stopped_it():
    steps = (
        Step("PML4E", 0x1000, 0x2067, "PML4E at 0x1000 contains 0x0000000000002067: pfn 2 ---DA--UWEV"),
        Step("PTE", 0x2008, 0, "PTE at 0x2008 contains 0x0000000000000000: zero, look in the VADs"),
        Step("VAD", 0xFFFF800000001000, 0, "VAD at 0xffff800000001000: Image <&> \\a\x1b.dll"),
    )
    page = Page(
        0x7FF612345678, State.SUBSECTION, via=(Via.VAD,), steps=steps, reason="page is in a.dll: give --disk",
        subsection=SubsectionPage(0, None, None),
    )  # fmt: skip
    canvas = path_figure(page, FORMATS["4-level"], "pid 4")
    said = words(canvas)
    for expected in (
        "0x7ff612345678",
        "pfn 2 ---DA--UWEV",
        "look in the VADs",
        "give --disk",
        "cannot be read",
        "0xff",
    ):
        assert expected in said
    ET.fromstring(canvas.svg())


def test_a_large_pages_offset_is_the_rest_of_the_address():
    step = Step("PDE", 0x1000, 0x200083, "PDE at 0x1000 contains 0x0000000000200083: pfn 200")
    page = Page(0x345678, State.VALID, physical=0x345678, via=(Via.LARGE_PAGE,), steps=(step,))
    assert "0x145678" in words(path_figure(page, FORMATS["4-level"]))


def test_bars_are_as_long_as_their_shares():
    counts = dict.fromkeys(State, 0) | {State.VALID: 30, State.PAGEFILE: 10}
    row = (4, "<System>", Census(counts, dict.fromkeys(Via, 0), 30, 10))
    empty = (8, "exited.exe", Census(dict.fromkeys(State, 0), dict.fromkeys(Via, 0), 0, 0))
    canvas = census_figure([row, empty], "census")
    bars = [shape for shape in canvas.shapes if isinstance(shape, Rectangle) and shape.width > 20]
    assert [(bar.fill, bar.width) for bar in bars] == [(COLOURS[State.VALID], 420), (COLOURS[State.PAGEFILE], 140)]
    ET.fromstring(canvas.svg())


def test_svg_and_png_are_what_their_names_say(tmp_path):
    canvas = map_figure(listed((5, 2, State.VALID, 0)), [], "\x00 & <b>", "")
    canvas.save(tmp_path / "a.svg")
    canvas.save(tmp_path / "a.png")
    ET.parse(tmp_path / "a.svg")
    image = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    assert image.size == (round(canvas.width) * 2, round(canvas.height) * 2)
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        canvas.save(tmp_path / "a.jpg")


# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009),
# severity 1.0, for linear RGB.
SIGHTS = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def lab(colour: str, sight: str) -> np.ndarray:
    """A colour as it is seen, in CIE L*a*b* (D65)."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.array(SIGHTS[sight]) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ np.clip(linear, 0, 1) / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_states_are_told_apart_by_everybody(sight):
    seen = {state: lab(colour, sight) for state, colour in COLOURS.items()}
    nearest = min((float(np.linalg.norm(seen[a] - seen[b])), a, b) for a, b in combinations(seen, 2))
    assert nearest[0] > 15, nearest  # 2.3 is just noticeable


def test_text_is_cut_to_the_room_there_is():
    for text in ("states.dat", "a" * 400, "W" * 40, "\\Windows\\System32\\ntdll.dll"):
        assert text_width(shorten(text, 100, 11, bold=True), 11, bold=True) <= 100
        assert all(text_width(line, 11) <= 100 for line in wrap(text, 100, 11))
        assert "".join(wrap(text, 100, 11)) == text.replace(" ", "")


def test_the_bars_of_all_fill_their_room_however_little_a_part_is():
    counts = dict.fromkeys(State, 1) | {State.PAGEFILE: 1 << 30}
    census = Census(counts, dict.fromkeys(Via, 0), 0, sum(counts.values()))
    canvas = census_figure([(4, "a", census)], "census", census)
    bars = [shape for shape in canvas.shapes if isinstance(shape, Rectangle) and shape.height == 16]
    assert len(bars) == 2 * len(State)
    assert sum(bar.width for bar in bars) == pytest.approx(2 * 560)
    assert all(bar.width > 1 for bar in bars)
    assert "all of them" in words(canvas)
    assert ">99%" in words(canvas)
