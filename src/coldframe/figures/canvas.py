"""A small drawing board: rectangles, lines and text, kept as data and written as SVG, or as PNG through Pillow.

Coordinates are in pixels from the upper left corner; a text's `y` is its baseline.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from coldframe.errors import CapabilityError, UsageError

INK, QUIET, FAINT, PAPER = "#1f2d36", "#6b7a84", "#d7dee2", "#ffffff"
_SANS = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
_MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
MONO_WIDTH = 0.602
"""How wide a character of monospaced text is, in font sizes."""
_WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278"
    " 584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944"
    " 667 667 611 278 278 278 469 556 333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500"
    " 278 556 500 722 500 500 500"
)
_WIDTH_OF = dict(zip(map(chr, range(32, 127)), map(int, _WIDTHS.split()), strict=False))
"""Thousandths of the font size, of Helvetica's letters (Adobe's Core 14 font metrics); other sans fonts are near."""
_WIDER = 1.06


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = "none"
    radius: float = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points, with an arrow's head at its end if wanted."""

    points: tuple[tuple[float, float], ...]
    colour: str = QUIET
    width: float = 1.5
    arrow: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """One line of text."""

    x: float
    y: float
    text: str
    size: float = 12
    colour: str = INK
    anchor: str = "start"
    bold: bool = False
    mono: bool = False


Shape = Rectangle | Line | Text


@dataclass
class Canvas:
    """What is drawn, in order; later shapes lie over earlier ones."""

    width: float
    height: float
    title: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Draw shapes."""
        self.shapes.extend(shapes)

    def save(self, path: Path) -> None:
        """Write an SVG or a PNG, told by the name's end; raises `UsageError` for any other, `CapabilityError` where
        PNG needs the `figures` extra."""
        match path.suffix.lower():
            case ".svg":
                path.write_text(self.svg(), encoding="utf-8")
            case ".png":
                path.write_bytes(self.png())
            case _:
                raise UsageError(f"expected a picture's name that ends in .svg or .png, found {path.name}")

    def svg(self) -> str:
        """The drawing as an SVG document."""
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" height="{self.height:g}"'
            f' viewBox="0 0 {self.width:g} {self.height:g}" role="img">',
            f"<title>{escape(printable(self.title))}</title>",
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        ]
        plain: dict[str, list[str]] = {}  # rectangles without a border: one path a colour
        for shape in self.shapes:
            if isinstance(shape, Rectangle) and shape.stroke == "none" and not shape.radius:
                where = f"M{shape.x:g} {shape.y:g}h{shape.width:g}v{shape.height:g}h-{shape.width:g}z"
                plain.setdefault(shape.fill, []).append(where)
                continue
            lines += _paths(plain)
            lines.append(_svg_shape(shape))
        return "\n".join([*lines, *_paths(plain), "</svg>", ""])

    def png(self, scale: int = 2) -> bytes:
        """The drawing as a PNG of `scale` pixels a pixel; raises `CapabilityError` without Pillow."""
        try:
            from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - an extra
        except ImportError:
            raise CapabilityError("PNG needs Pillow: pip install 'coldframe[figures]', or write an .svg") from None
        image = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), PAPER)
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            match shape:
                case Rectangle():
                    right, below = (shape.x + shape.width) * scale - 1, (shape.y + shape.height) * scale - 1
                    draw.rounded_rectangle(
                        (shape.x * scale, shape.y * scale, max(right, shape.x * scale), max(below, shape.y * scale)),
                        shape.radius * scale,
                        shape.fill,
                        None if shape.stroke == "none" else shape.stroke,
                        scale,
                    )
                case Line():
                    points = [(x * scale, y * scale) for x, y in shape.points]
                    draw.line(points, shape.colour, round(shape.width * scale), joint="curve")
                    if shape.arrow:
                        draw.polygon([(x * scale, y * scale) for x, y in _head(shape)], shape.colour)
                case Text():
                    font = ImageFont.load_default(shape.size * scale)
                    draw.text(
                        (shape.x * scale, shape.y * scale),
                        printable(shape.text),
                        shape.colour,
                        font,
                        _ANCHORS[shape.anchor],
                        stroke_width=0.25 * scale if shape.bold else 0,
                    )
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return out.getvalue()


def printable(text: str) -> str:
    """`text` without what no picture shows: a guest's names may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in text)


def text_width(text: str, size: float, *, bold: bool = False, mono: bool = False) -> float:
    """About how wide `text` is, in pixels: no viewer has quite the same fonts."""
    if mono:
        return MONO_WIDTH * size * len(text)
    return sum(_WIDTH_OF.get(c, 1000) for c in text) * size / 1000 * _WIDER * (1.06 if bold else 1)


def ink_on(colour: str) -> str:
    """Dark or light text for a ground of that colour, by its luminance (WCAG 2.1's relative luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.22 else PAPER


def shorten(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """`text` cut in its middle so as to fit in `width` pixels; the name of a file stays to be read at its end."""
    most, shown = len(text), text
    while most > 4 and text_width(shown, size, bold=bold) > width:
        most -= 1
        shown = text[: most // 3] + "…" + text[len(text) - (most - most // 3 - 1) :]
    return shown


def wrap(text: str, width: float, size: float) -> list[str]:
    """`text` in lines of at most `width` pixels, broken between words, long words where they must be."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(longer, size) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _paths(plain: dict[str, list[str]]) -> list[str]:
    lines = [f'<path fill={quoteattr(fill)} d="{"".join(where)}"/>' for fill, where in plain.items()]
    plain.clear()
    return lines


def _svg_shape(shape: Shape) -> str:
    match shape:
        case Rectangle():
            return (
                f'<rect x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" height="{shape.height:g}"'
                f' rx="{shape.radius:g}" fill={quoteattr(shape.fill)} stroke={quoteattr(shape.stroke)}/>'
            )
        case Line():
            points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
            head = " ".join(f"{x:g},{y:g}" for x, y in _head(shape)) if shape.arrow else ""
            return (
                f'<polyline points="{points}" fill="none" stroke={quoteattr(shape.colour)}'
                f' stroke-width="{shape.width:g}" stroke-linejoin="round"/>'
                + (f'<polygon points="{head}" fill={quoteattr(shape.colour)}/>' if head else "")
            )
        case Text():
            weight = 600 if shape.bold else 400
            return (
                f'<text x="{shape.x:g}" y="{shape.y:g}" font-size="{shape.size:g}" fill={quoteattr(shape.colour)}'
                f' font-family={quoteattr(_MONO if shape.mono else _SANS)} text-anchor="{shape.anchor}"'
                f' font-weight="{weight}">{escape(printable(shape.text))}</text>'
            )


def _head(line: Line) -> list[tuple[float, float]]:
    """The three corners of the arrow's head at the end of a line that ends upright or level."""
    (x0, y0), (x, y) = line.points[-2:]
    length, half = 4 + 2 * line.width, 2 + line.width
    if abs(x - x0) >= abs(y - y0):
        back = x - length if x > x0 else x + length
        return [(x, y), (back, y - half), (back, y + half)]
    back = y - length if y > y0 else y + length
    return [(x, y), (x - half, back), (x + half, back)]
