"""Digits drawn in the terminal."""

from rich.text import Text

from fleet.demo.digits import INK
from fleet.demo.drawing import half_blocks, shades

RAMP = tuple(INK * (place % 8) / 7 for place in range(64))
CORNER = tuple(INK if place == 0 else 0.0 for place in range(64))


def colours(line: Text, place: int) -> tuple[int | None, int | None]:
    """Return the greys of the upper and the lower half of one character."""
    style = line.spans[place].style
    assert not isinstance(style, str) and style.color is not None and style.bgcolor is not None
    return style.color.number, style.bgcolor.number


def test_a_picture_without_colours_is_darker_where_there_is_more_ink() -> None:
    lines = shades(RAMP)

    assert lines == ["    ░░▒▒▒▒▓▓████"] * 8


def test_a_terminal_without_block_characters_gets_plain_ones() -> None:
    lines = shades(RAMP, "ascii")

    assert lines == ["    ..++++##@@@@"] * 8
    assert "".join(lines).isascii()


def test_half_blocks_show_every_pixel_as_a_square() -> None:
    lines = half_blocks(CORNER)

    assert [line.plain for line in lines] == ["▀" * 16] * 8
    assert [colours(lines[0], place) for place in range(3)] == [(255, 255), (255, 255), (232, 232)]
    assert all(colours(line, place) == (232, 232) for line in lines[1:] for place in range(16))


def test_half_blocks_go_from_black_to_white() -> None:
    greys = [colours(half_blocks(RAMP)[0], place)[0] for place in range(0, 16, 2)]

    assert greys[0] == 232
    assert greys[-1] == 255
    assert greys == sorted(set(greys), key=lambda grey: grey or 0)
