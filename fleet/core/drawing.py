"""Pictures as SVG text: a canvas, scales with round ticks, and colours for light and dark.

Colours are classes of a style sheet and never attributes, so that a page in the dark is drawn in
other colours; the light ones come first, for viewers that know no media queries.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

_LIGHT = {
    "page": "#f4f5f7", "card": "#ffffff", "edge": "#e1e4e9", "grid": "#eceef2", "ink": "#18202b",
    "soft": "#566072", "labelled": "#1f5fd6", "golden": "#b06f00", "estimated": "#7a4fc0",
    "fast": "#0d8a7c", "middle": "#0b6e86", "slow": "#23416b", "bad": "#c22f2f",
    "good": "#1d7f45", "heat": "#d2490f", "bar": "#1f5fd6",
}  # fmt: skip
_DARK = {
    "page": "#12161c", "card": "#1b212a", "edge": "#2d3541", "grid": "#28303b", "ink": "#e8ecf2",
    "soft": "#9aa6b8", "labelled": "#74a7ff", "golden": "#f0b548", "estimated": "#bd9cf2",
    "fast": "#54d3c2", "middle": "#6cb9e0", "slow": "#a9bfec", "bad": "#ff8a80",
    "good": "#6fd39a", "heat": "#ff8f57", "bar": "#74a7ff",
}  # fmt: skip
Colour = Literal[
    "page", "card", "edge", "grid", "ink", "soft", "labelled", "golden", "estimated",
    "fast", "middle", "slow", "bad", "good", "heat", "bar",
]  # fmt: skip
Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Advance widths of a plain sans-serif, in parts of the font's size.
_NARROW, _WIDE = frozenset("iljtfr.,:;|'!()[] "), frozenset("mwMW@%")


def plain(text: str) -> str:
    """Return `text` as it may stand in XML: escaped, without what no document may hold."""
    return escape(_NOT_XML.sub("\ufffd", text), quote=True)


def width_of(text: str, size: float) -> float:
    """Return about how wide `text` is drawn."""
    parts = (0.33 if c in _NARROW else 0.88 if c in _WIDE else 0.68 if c.isupper() else 0.57
             for c in text)  # fmt: skip
    return size * sum(parts)


def fit(text: str, width: float, size: float) -> str:
    """Return `text`, cut where it is wider than `width`."""
    if width_of(text, size) <= width:
        return text
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the page."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Where it ends below."""
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values onto a stretch of the page."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return where `value` is, kept within the stretch."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values on it."""
        if self.logarithmic:
            return _log_ticks(self.low, self.high)
        return round_ticks(self.low, self.high, about)


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * place for place in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [10.0**power * each for power in powers for each in (1, 2, 5)]
    found = [each for each in every if low * 0.999 <= each <= high * 1.001]
    if len(found) > 7:
        found = [each for each in found if math.isclose(math.log10(each) % 1, 0, abs_tol=1e-9)]
    return found


@dataclass
class Canvas:
    """Collects the pieces of a picture."""

    width: float
    title: str
    description: str = ""
    _pieces: list[str] = field(default_factory=list)
    height: float = 0.0

    def rectangle(  # noqa: PLR0917
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: Colour | None,
        edge: Colour | None = None,
        *,
        radius: float = 0.0,
        opacity: float = 1.0,
        hint: str = "",
    ) -> None:
        """Draw a box."""
        self._shape(
            f'rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(0.0, width))}"'
            f' height="{_n(max(0.0, height))}"' + (f' rx="{_n(radius)}"' if radius else ""),
            fill, edge, opacity=opacity, hint=hint,
        )  # fmt: skip

    def line(self, points: Sequence[Point], colour: Colour, *, width: float = 1.0,
             dash: str = "", opacity: float = 1.0) -> None:  # fmt: skip
        """Draw a line through `points`."""
        if len(points) < 2:
            return
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        thin = f' stroke-width="{_n(width)}"' if width != 1.0 else ""
        self._shape(f'path d="{path}"{thin}{dashed}', None, colour, opacity=opacity)

    def area(self, points: Sequence[Point], colour: Colour, *, opacity: float) -> None:
        """Fill what `points` enclose."""
        if len(points) > 2:
            path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + "Z"
            self._shape(f'path d="{path}"', colour, None, opacity=opacity)

    def dot(self, x: float, y: float, colour: Colour, *, form: str = "circle", size: float = 3.5,
            hint: str = "") -> None:  # fmt: skip
        """Draw a mark; forms differ, so that nobody has to tell colours apart."""
        match form:
            case "square":
                side = 1.8 * size
                self.rectangle(x - side / 2, y - side / 2, side, side, colour, "card", hint=hint)
            case "diamond":
                r = 1.35 * size
                corners = ((x, y - r), (x + r, y), (x, y + r), (x - r, y))
                path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in corners) + "Z"
                self._shape(f'path d="{path}"', colour, "card", hint=hint)
            case _:
                shape = f'circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}"'
                self._shape(shape, colour, "card", hint=hint)

    def text(  # noqa: PLR0917
        self,
        x: float,
        y: float,
        words: str,
        colour: Colour = "ink",
        size: float = 12.0,
        anchor: Anchor = "start",
        *,
        bold: bool = False,
        upright: bool = True,
        halo: bool = False,
        hint: str = "",
    ) -> None:
        """Write words; `y` is their baseline. A halo keeps them apart from lines below."""
        more = "" if anchor == "start" else f' text-anchor="{anchor}"'
        more += ' font-weight="600"' if bold else ""
        more += "" if upright else f' transform="rotate(-90 {_n(x)} {_n(y)})"'
        inner = f"<title>{plain(hint)}</title>" if hint else ""
        names = f"f-{colour} halo s-card" if halo else f"f-{colour}"
        self._pieces.append(
            f'<text class="{names}" x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"{more}>'
            f"{inner}{plain(words)}</text>"
        )

    def open(self, name: str) -> None:
        """Begin a group that readers of the screen hear as one picture called `name`."""
        self._pieces.append(f'<g role="img" aria-label="{plain(name)}">')

    def close(self) -> None:
        """End the group."""
        self._pieces.append("</g>")

    def svg(self) -> str:
        """Return the whole picture as a document of its own."""
        wide, high = _n(self.width), _n(self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}"'
            f' viewBox="0 0 {wide} {high}" role="group" aria-labelledby="title about"'
            f' font-family="{plain(FONT)}">\n'
            f'<title id="title">{plain(self.title)}</title>\n'
            f'<desc id="about">{plain(self.description)}</desc>\n'
            f"<style>{_style()}</style>\n"
            f'<rect class="f-page" width="{wide}" height="{high}"/>\n'
            + "\n".join(self._pieces)
            + "\n</svg>\n"
        )

    def _shape(self, shape: str, fill: Colour | None, edge: Colour | None, *,
               opacity: float = 1.0, hint: str = "") -> None:  # fmt: skip
        names = " ".join((f"f-{fill}" if fill else "f-none", *([f"s-{edge}"] if edge else [])))
        faint = f' opacity="{_n(opacity)}"' if opacity < 1 else ""
        start = f'<{shape} class="{names}"{faint}'
        tag = shape.partition(" ")[0]
        self._pieces.append(
            f"{start}><title>{plain(hint)}</title></{tag}>" if hint else f"{start}/>"
        )


def _n(value: float) -> str:
    """Return a number as short as a tenth of a pixel needs it."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _style() -> str:
    dark = _rules(_DARK)
    # Tabular figures: columns of numbers stand straight.
    return (
        "text{font-variant-numeric:tabular-nums}.halo{paint-order:stroke;stroke-width:4px}"
        ".f-none{fill:none}path,rect,circle"
        "{stroke-linejoin:round;stroke-linecap:round}"
        f"{_rules(_LIGHT)}@media (prefers-color-scheme:dark){{{dark}}}"
    )


def _rules(colours: dict[str, str]) -> str:
    return "".join(
        f".f-{name}{{fill:{code}}}.s-{name}{{stroke:{code}}}" for name, code in colours.items()
    )


def runs(values: Iterable[tuple[float, float | None]]) -> list[list[Point]]:
    """Return the unbroken stretches of a series: a line does not pass over what is not known."""
    found: list[list[Point]] = [[]]
    for x, y in values:
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [each for each in found if each]
