"""The pictures of the demo: seeded, jittered, never the same twice."""

import gzip
import random
from pathlib import Path

import pytest

from fleet.demo.digits import INK, MAX_SHIFT, Digit, Stream, jittered, read_digits
from fleet.demo.world import find_samples

HELD_OUT = find_samples() / "heldout.csv.gz"
ROUNDS = 3


@pytest.fixture(scope="module")
def digits() -> list[Digit]:
    return read_digits(HELD_OUT)


def test_no_picture_is_shown_twice_on_any_device(digits: list[Digit]) -> None:
    streams = [Stream(digits, 1, f"cam-{number}") for number in range(1, 4)]

    shown = [
        stream.at(number).pixels for stream in streams for number in range(ROUNDS * len(digits))
    ]

    assert len(set(shown)) == len(shown) == 3 * ROUNDS * len(digits)


def test_the_same_seed_shows_the_same_pictures_in_whatever_order_they_are_asked_for(
    digits: list[Digit],
) -> None:
    numbers = [0, 1, 539, 540, 1081]

    forwards = [Stream(digits, 7, "cam-1").at(number) for number in numbers]
    stream = Stream(digits, 7, "cam-1")
    backwards = [stream.at(number) for number in reversed(numbers)]

    assert forwards == backwards[::-1]
    assert forwards != [Stream(digits, 8, "cam-1").at(number) for number in numbers]


def test_every_round_shows_every_held_out_digit_once(digits: list[Digit]) -> None:
    stream = Stream(digits, 1, "cam-1")
    labels = sorted(digit.label for digit in digits)

    for round_ in range(ROUNDS):
        first = round_ * len(digits)
        seen = [stream.at(number).label for number in range(first, first + len(digits))]

        assert sorted(seen) == labels


def test_jitter_keeps_a_digit_what_it_is(digits: list[Digit]) -> None:
    draw = random.Random(3)

    for digit in digits:
        moved = jittered(digit, draw)

        assert moved.label == digit.label
        assert all(0.0 <= pixel <= INK for pixel in moved.pixels)
        off = sum(abs(a - b) for a, b in zip(moved.pixels, digit.pixels, strict=True)) / 64
        assert 0.1 < off < 4.0


@pytest.mark.parametrize(
    ("right", "down", "expected"),
    [
        (MAX_SHIFT, 0.0, {(3, 3): 12.0, (4, 3): 4.0}),
        (-MAX_SHIFT, 0.0, {(3, 3): 12.0, (2, 3): 4.0}),
        (0.0, MAX_SHIFT, {(3, 3): 12.0, (3, 4): 4.0}),
        (0.0, -MAX_SHIFT, {(3, 3): 12.0, (3, 2): 4.0}),
    ],
)
def test_a_shift_moves_ink_to_the_neighbour_on_that_side(
    right: float, down: float, expected: dict[tuple[int, int], float]
) -> None:
    class NoNoise(random.Random):
        shifts = iter((right, down))

        def uniform(self, a: float, b: float) -> float:
            return next(self.shifts)

        def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
            return 0.0

    dot = Digit(1, tuple(INK if place == 3 * 8 + 3 else 0.0 for place in range(64)))

    moved = jittered(dot, NoNoise())

    inked = {(n % 8, n // 8): pixel for n, pixel in enumerate(moved.pixels) if pixel}
    assert inked == expected


def test_ink_that_leaves_one_side_does_not_come_back_on_the_other() -> None:
    class RightAndDown(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

        def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
            return 0.0

    edge = Digit(1, tuple(INK if place % 8 == 7 else 0.0 for place in range(64)))

    moved = jittered(edge, RightAndDown())

    assert all(pixel == 0.0 for place, pixel in enumerate(moved.pixels) if place % 8 != 7)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress(b"5,1,2\n"))

    with pytest.raises(ValueError, match=r"digits.csv.gz:1: expected a label and 64 pixels, got 3"):
        read_digits(path)
