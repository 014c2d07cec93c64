"""A digit in the terminal: 8 x 8 pixels as blocks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fleet.demo.digits import INK, SIDE

if TYPE_CHECKING:
    from rich.text import Text

SCALE = 2
"""Half blocks are square, and 8 of them too small to read: a pixel is 2 by 2 of them."""

_SHADES = " ░▒▓█"
_PLAIN = " .+#@"
_BLACK, _WHITE = 232, 255
"""The ends of the greys among a terminal's 256 colours."""


def half_blocks(pixels: Sequence[float]) -> "list[Text]":
    """Return a picture of 8 lines of 16 half blocks: two pixels a character, in greys."""
    from rich.style import Style
    from rich.text import Text

    size = SIDE * SCALE
    lines = []
    for y in range(0, size, 2):
        line = Text()
        for x in range(size):
            upper, lower = _grey(_pixel(pixels, x, y)), _grey(_pixel(pixels, x, y + 1))
            line.append("▀", Style(color=f"color({upper})", bgcolor=f"color({lower})"))
        lines.append(line)
    return lines


def shades(pixels: Sequence[float], encoding: str = "utf-8") -> list[str]:
    """Return a picture without colours: 8 lines of 16 characters, darker for more ink."""
    try:
        _SHADES.encode(encoding)
        scale = _SHADES
    except UnicodeEncodeError:
        scale = _PLAIN
    rows = (pixels[y * SIDE : (y + 1) * SIDE] for y in range(SIDE))
    return ["".join(2 * scale[_level(pixel, len(scale))] for pixel in row) for row in rows]


def _pixel(pixels: Sequence[float], x: int, y: int) -> float:
    return pixels[(y // SCALE) * SIDE + x // SCALE]


def _grey(pixel: float) -> int:
    """Return ink as light on dark, as most terminals are."""
    return _BLACK + _level(pixel, _WHITE - _BLACK + 1)


def _level(pixel: float, levels: int) -> int:
    return min(levels - 1, int(levels * pixel / INK))
