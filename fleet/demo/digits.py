"""Held-out digits as a camera would see them: never the same picture twice.

Images: 64 pixels, row by row, 8 x 8, 0 (paper) to 16 (ink). The standard library alone, since
the demo's apps stand for any program on a device.
"""

import csv
import gzip
import io
import random
from dataclasses import dataclass
from pathlib import Path

SIDE = 8
INK = 16.0

MAX_SHIFT = 0.25
"""Pixels that an image is moved by at most, in each direction."""

NOISE = 1.0
"""Standard deviation of what the camera adds to a pixel, of 16."""


@dataclass(frozen=True)
class Digit:
    """An image and what it shows."""

    label: int
    pixels: tuple[float, ...]


def read_digits(path: Path) -> list[Digit]:
    """Read `label,pixel,...` lines from a gzipped file.

    Raises:
        OSError: it is not there, or not gzipped.
        ValueError: a line is no digit.
    """
    text = gzip.decompress(path.read_bytes()).decode("ascii")
    digits = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
        if len(row) != 1 + SIDE * SIDE:
            raise ValueError(f"{path}:{number}: expected a label and 64 pixels, got {len(row)}")
        label, *pixels = map(int, row)
        digits.append(Digit(label, tuple(map(float, pixels))))
    return digits


class Stream:
    """What one device sees: picture `number` is the same whenever it is asked for.

    All held-out digits pass in a shuffled order, then in another one, and each time each of them
    is moved and noised anew.
    """

    def __init__(self, digits: list[Digit], seed: int, device: str) -> None:
        """Take the digits to pick from, and what makes this stream unlike any other."""
        self._digits = digits
        self._name = f"{seed}/{device}"
        self._round = -1
        self._order: list[int] = []

    def at(self, number: int) -> Digit:
        """Return picture `number`, counted from 0."""
        round_, place = divmod(number, len(self._digits))
        if round_ != self._round:
            self._round = round_
            self._order = list(range(len(self._digits)))
            _random(f"{self._name}/round {round_}").shuffle(self._order)
        return jittered(self._digits[self._order[place]], _random(f"{self._name}/{number}"))


def jittered(digit: Digit, draw: random.Random) -> Digit:
    """Return the digit moved by a part of a pixel, with noise on it; pixels stay in 0 to 16."""
    right, down = draw.uniform(-MAX_SHIFT, MAX_SHIFT), draw.uniform(-MAX_SHIFT, MAX_SHIFT)
    moved = _moved(digit.pixels, right, step=1, steps=SIDE)
    moved = _moved(moved, down, step=SIDE, steps=SIDE)
    noisy = (min(max(pixel + draw.gauss(0.0, NOISE), 0.0), INK) for pixel in moved)
    return Digit(digit.label, tuple(round(pixel, 2) for pixel in noisy))


def _moved(pixels: tuple[float, ...], by: float, *, step: int, steps: int) -> tuple[float, ...]:
    """Move an image along one axis by less than a pixel, mixing neighbours; paper flows in."""
    back = -step if by > 0 else step
    part = abs(by)

    def neighbour(place: int) -> float:
        along = (place // step) % steps + (-1 if by > 0 else 1)
        return pixels[place + back] if 0 <= along < steps else 0.0

    return tuple((1 - part) * pixel + part * neighbour(place) for place, pixel in enumerate(pixels))


def _random(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same pictures in every run, no secrets
