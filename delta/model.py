"""What a weight is likely to be, given the old one: the part that both directions share.

A residual is what is left of a value when its rounded prediction is taken off. Its distribution
depends on its *class*, how far residuals of its row and column go, and on how far the prediction
was from the integer it was rounded to: one near a half says where the residual goes. Every such
context starts from a prior and counts on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from delta.rans import PRECISION_BITS, SYMBOLS, Ints

Floats = NDArray[np.float64]

REACH = 7
"""Residuals from -7 to 7 are symbols 0 to 14; the last symbol announces raw bits."""

ESCAPE = SYMBOLS - 1

DEAD = 0
"""The class of a row with no residual at all; nothing of it is coded."""

UNIT = 17
"""Class c from 1 to 75: half of the residuals within 0.58 * 2^((c - 17) / 2)."""

TOP = 75
OF_ROWS, OF_COLUMNS = 76, 77
"""The classes in which the classes of rows and columns are themselves coded."""

CLASSES = 78

BUCKET_EDGES = np.array([1, 3, 6, 12, 24, 48, 80, 112, 144, 176, 208, 240])
"""How far, in 512ths, a prediction is from an integer: bucket 0 is below the first edge."""

_BUCKET = np.searchsorted(BUCKET_EDGES, np.arange(257), side="right")

_MIDDLES = np.array([0, 2, 4.5, 9, 18, 36, 64, 96, 128, 160, 192, 224, 248]) / 512
BUCKETS = len(_MIDDLES)

BLOCK = 1 << 14
"""About as many values are coded between two looks at the counts."""

FACTOR_UNIT = 1 << 16
MAX_EXPONENT = 20
"""A component of the low-rank part counts 2^exponent / 2^16 times."""


class Coder(Protocol):
    """Either direction: given values are noted and returned, for None they are read."""

    def symbols(self, bounds: Ints, contexts: Ints, symbols: Ints | None) -> Ints:
        """Code symbols by the distributions of their contexts."""
        ...

    def raw(self, widths: Ints, values: Ints | None) -> Ints:
        """Code bits as they are."""
        ...


def shifts(classes: Ints) -> Ints:
    """Return how many low bits of a residual of such a class are raw."""
    found: Ints = np.where(classes <= TOP, np.maximum(classes - UNIT, 0) // 2, 0)
    return found


def contexts(classes: Ints, away: Floats) -> Ints:
    """Return the context of each residual, whose prediction was `away` from an integer."""
    found: Ints = classes * BUCKETS + np.where(classes > UNIT + 1, 0, buckets(away))
    return found


def buckets(away: Floats) -> Ints:
    """Return the bucket of each distance from an integer, -0.5 to 0.5."""
    return _BUCKET[(np.abs(away) * 512).astype(np.int64)]


@cache
def prior() -> Floats:
    """Return P(symbol) before anything was seen, (contexts, 16).

    The old weight was rounded, so it lies anywhere within a half; the change is taken to follow
    Student's t with 2 degrees of freedom. Its tails are heavy, as those of changes are, and the
    two together have an integral of nothing but square roots, equal on every machine.
    """
    classes = np.arange(CLASSES)
    scaled = np.where(classes <= TOP, classes - UNIT - 2 * shifts(classes), 0)
    spread = np.sqrt(np.ldexp(1.0, scaled))[:, None, None]
    middle = np.where(shifts(classes)[:, None] > 0, 0.0, _MIDDLES)[:, :, None]

    def area(t: Floats) -> Floats:
        found: Floats = (t + np.sqrt(t * t + spread * spread)) / 2
        return found

    edges = np.arange(-REACH, REACH + 2) - 0.5 - middle
    below = area(edges + 0.5) - area(edges - 0.5)
    escape = 1 - (below[..., -1:] - below[..., :1])
    shares: Floats = np.concatenate([below[..., 1:] - below[..., :-1], escape], axis=-1)
    return shares.reshape(CLASSES * BUCKETS, SYMBOLS)


class Counts:
    """How often each context saw each symbol, and the distributions that follow."""

    _PRIOR_WEIGHT = 24
    _ONE = 256
    """Counts are in 256ths, so that they stay integers: equal on every machine."""

    def __init__(self) -> None:
        first = np.rint(prior() * (self._PRIOR_WEIGHT * self._ONE)).astype(np.int64)
        self._counts = np.maximum(first, 1)
        self.bounds = np.zeros((len(first), SYMBOLS + 1), np.int64)
        self._rebuild(np.arange(len(first)))

    def learn(self, seen: Ints, symbols: Ints) -> None:
        """Count what a block held and make the next distributions."""
        counts = np.bincount(seen * SYMBOLS + symbols, minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape) * self._ONE
        self._rebuild(np.flatnonzero(np.bincount(seen)))

    def _rebuild(self, rows: Ints) -> None:
        counts = self._counts[rows]
        room = (1 << PRECISION_BITS) - SYMBOLS
        shares = 1 + counts * room // counts.sum(axis=1, keepdims=True)
        shares[np.arange(len(rows)), counts.argmax(axis=1)] += (1 << PRECISION_BITS) - shares.sum(
            axis=1
        )
        self.bounds[rows, 1:] = np.cumsum(shares, axis=1)


@dataclass(frozen=True)
class Width:
    """The integers that a tensor holds: `bits` of them, with or without a sign."""

    bits: int
    signed: bool

    @property
    def lowest(self) -> int:
        """The smallest value."""
        return -(1 << self.bits - 1) if self.signed else 0

    def wrap(self, values: Ints) -> Ints:
        """Return the values modulo 2^bits, within the range."""
        return (values - self.lowest & (1 << self.bits) - 1) + self.lowest

    def clip(self, values: Floats) -> Floats:
        """Return the values, moved into the range; 0 for what is not a number."""
        highest = self.lowest + (1 << self.bits) - 1
        return np.clip(np.nan_to_num(values, posinf=highest), self.lowest, highest)


@dataclass(frozen=True)
class Stream:
    """What is coded into, or read from, and what was learned on the way."""

    coder: Coder
    counts: Counts


def code(
    stream: Stream, width: Width, classes: Ints, predicted: Floats, values: Ints | None
) -> Ints:
    """Code integers by their predictions; all arrays are flat and of one length."""
    rounded = np.rint(predicted)
    away = predicted - rounded
    rounded_int = rounded.astype(np.int64)
    live = np.flatnonzero(classes != DEAD)
    result = rounded_int.copy() if values is None else values
    if not len(live):
        return result
    classes, away = classes[live], away[live]
    sign = np.where(away < 0, -1, 1)
    where = contexts(classes, away)
    low = shifts(classes)
    half = (1 << low) >> 1
    symbols = bits = None
    if values is not None:
        residuals = Width(width.bits, signed=True).wrap(values[live] - rounded_int[live])
        high = (residuals * sign + half) >> low
        far = np.abs(high) > REACH
        symbols = np.where(far, ESCAPE, high + REACH)
        bits = np.where(
            far, residuals & (1 << width.bits) - 1, (residuals * sign + half) & (1 << low) - 1
        )
    symbols = stream.coder.symbols(stream.counts.bounds, where, symbols)
    far = symbols == ESCAPE
    bits = stream.coder.raw(np.where(far, width.bits, low), bits)
    stream.counts.learn(where, symbols)
    if values is None:
        near = ((symbols - REACH << low) + bits - half) * sign
        result[live] = width.wrap(rounded_int[live] + np.where(far, bits, near))
    return result


def code_classes(stream: Stream, kind: int, middle: int, count: int, classes: Ints | None) -> Ints:
    """Code the classes of rows or columns, `middle` being what most of them are near."""
    found = np.empty(count, np.int64)
    for first in range(0, count, BLOCK):
        part = slice(first, min(first + BLOCK, count))
        length = part.stop - first
        found[part] = code(
            stream,
            Width(8, signed=True),
            np.full(length, kind),
            np.full(length, float(middle)),
            None if classes is None else classes[part],
        )
    return found


def blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Cut a matrix into blocks of whole rows, or into parts of a row where one is too long."""
    height = max(1, BLOCK // columns)
    for top in range(0, rows, height):
        for left in range(0, columns, BLOCK):
            yield (
                slice(top, min(top + height, rows)),
                slice(left, min(left + BLOCK, columns)),
            )


def spread_classes(rows: Ints, columns: Ints | None) -> Ints:
    """Return the class of every weight, (rows, columns)."""
    if columns is None:
        return rows[:, None]
    return np.where(rows[:, None] == DEAD, DEAD, np.clip(rows[:, None] + columns, 1, TOP))
