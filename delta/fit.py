"""How to describe the residuals of one tensor in the fewest bytes; only who encodes needs this."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from delta.model import (
    BUCKET_EDGES,
    BUCKETS,
    CLASSES,
    DEAD,
    ESCAPE,
    FACTOR_UNIT,
    MAX_EXPONENT,
    REACH,
    TOP,
    UNIT,
    Floats,
    Width,
    buckets,
    contexts,
    prior,
    shifts,
    spread_classes,
)
from delta.rans import Ints
from delta.spans import Description, Factor, Predictor, Rows, Span, as_rows, prediction, shared_part

_ROW_BITS, _COLUMN_BITS = 3.0, 2.5
"""What a class costs, about."""

_FACTOR = Width(8, signed=True)
_RANKS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 255)
_PATIENCE = 2
_SMALLEST_WITH_RANK = 4096


@dataclass(frozen=True)
class Fit:
    """A span as it is best described, and about what it costs."""

    span: Span
    description: Description
    bits: float


_NEAR = 31
_BINS_AN_OCTAVE = 4
_BINS = 2 * _NEAR + 1 + 27 * _BINS_AN_OCTAVE
"""Residuals up to 31 are told apart, larger ones are put together by their magnitude."""


@dataclass(frozen=True)
class _Residuals:
    """Residuals (rows, columns), in the form in which their cost is looked up."""

    kinds: NDArray[np.int32]
    """Bucket of the prediction x bins + bin of the residual."""
    mean: Floats
    """Mean magnitude of each row; 0 for dead ones."""
    bits: int

    def cost(self, classes: Ints) -> NDArray[np.float32]:
        """Return the bits of every residual, were it of such a class, by the prior."""
        table = _costs(self.bits)
        found: NDArray[np.float32] = table[
            (classes * (BUCKETS * _BINS)).astype(np.int32) + self.kinds
        ]
        return found

    def of_rows(self, rows: NDArray[np.bool_]) -> "_Residuals":
        """Return some of the rows."""
        return _Residuals(self.kinds[rows], self.mean[rows], self.bits)


@cache
def _costs(bits: int) -> NDArray[np.float32]:
    """Return the bits of a residual by class, bucket and bin, flat."""
    far = np.exp2((np.arange(_BINS - 2 * _NEAR - 1) + 0.5) / _BINS_AN_OCTAVE) * (_NEAR + 1)
    values = np.concatenate([np.arange(-_NEAR, _NEAR + 1), far.astype(np.int64)])
    classes = np.arange(CLASSES)[:, None, None]
    low = shifts(classes)
    high = (values + (1 << low >> 1)) >> low
    escape = np.abs(high) > REACH
    middles = (np.concatenate([[0], BUCKET_EDGES]) / 512)[None, :, None]
    where = contexts(np.broadcast_to(classes, (CLASSES, BUCKETS, 1)), middles)
    found = -np.log2(prior())[where, np.where(escape, ESCAPE, high + REACH)]
    costs: NDArray[np.float32] = (found + np.where(escape, bits, low)).astype(np.float32).ravel()
    return costs


def _residuals(width: Width, guess: Floats, values: Rows) -> _Residuals:
    guess = width.clip(guess)
    rounded = np.rint(guess)
    away = guess - rounded
    found = Width(width.bits, signed=True).wrap(values.astype(np.int64) - rounded.astype(np.int64))
    found[away < 0] *= -1
    size = np.abs(found)
    bins = found + _NEAR
    far = size > _NEAR
    octaves = np.log2(size[far] / (_NEAR + 1)) * _BINS_AN_OCTAVE
    bins[far] = 2 * _NEAR + 1 + octaves.astype(np.int64)
    kinds = buckets(away) * _BINS + bins
    return _Residuals(kinds.astype(np.int32), size.mean(axis=1), width.bits)


def fit(candidates: list[Span], base: bytes, new: bytes) -> Fit:
    """Return the best description of a tensor, given the ways to predict it."""
    values = as_rows(new, candidates[0].new, candidates[0])
    best = min(
        (_plain(span, _guess(span, base, new), values) for span in candidates),
        key=lambda found: found.bits,
    )
    span = best.span
    wanted = span.predictor in (Predictor.SAME, Predictor.RESCALED) and span.width.bits == 8
    if not wanted or min(values.shape) < 8 or values.size < _SMALLEST_WITH_RANK:
        return best
    return _with_rank(best, _guess(span, base, new), values)


def _guess(span: Span, base: bytes, new: bytes) -> Floats:
    return prediction(span, base, new)(*_all(span))


def _all(span: Span) -> tuple[slice, slice]:
    return slice(0, span.rows), slice(0, span.columns)


def _plain(span: Span, guess: Floats, values: Rows) -> Fit:
    return _described(span, guess, values, _no_factor(span.rows), _no_factor(span.columns))


def _described(span: Span, guess: Floats, values: Rows, left: Factor, right: Factor) -> Fit:
    """Return the best classes for these predictions."""
    if span.exponents:
        guess = guess + shared_part(span, left.values, right.values)(*_all(span))
    residuals = _residuals(span.width, guess, values)
    rows, bits = _row_classes(residuals, None)
    columns = None
    if span.rows > 4 and span.columns > 4:
        offsets = _column_classes(residuals, rows)
        again, fewer = _row_classes(residuals, offsets)
        if fewer + _COLUMN_BITS * span.columns < bits:
            rows, bits, columns = again, fewer + _COLUMN_BITS * span.columns, offsets
    span = replace(span, middle=_middle(rows), has_columns=columns is not None)
    return Fit(span, Description(rows, columns, left, right), bits + _ROW_BITS * span.rows)


def _row_classes(residuals: _Residuals, columns: Ints | None) -> tuple[Ints, float]:
    """Return the cheapest class of every row, and the bits of all."""
    live = residuals.mean > 0
    part = residuals.of_rows(live)
    guess = np.rint(2 * np.log2(part.mean) + UNIT - 1).astype(np.int64)
    best, bits = np.ones(len(guess), np.int64), np.full(len(guess), np.inf)
    for offset in range(-4, 4):
        rows = np.clip(guess + offset, 1, TOP)
        total = part.cost(spread_classes(rows, columns)).sum(axis=1)
        best, bits = np.where(total < bits, rows, best), np.minimum(total, bits)
    found = np.full(len(live), DEAD)
    # The lowest symbol stands for dead rows.
    found[live] = np.maximum(best, _middle(best) - REACH + 1)
    return found, float(bits.sum())


def _column_classes(residuals: _Residuals, rows: Ints) -> Ints:
    """Return what to add to the classes of the rows, for every column."""
    live = rows != DEAD
    part = residuals.of_rows(live)
    best = np.zeros(part.kinds.shape[1], np.int64)
    bits = np.full(len(best), np.inf)
    for offset in (0, -1, 1, -2, 2, -3, 3, -4, 4):
        classes = np.clip(rows[live] + offset, 1, TOP)
        total = part.cost(classes[:, None]).sum(axis=0)
        best, bits = np.where(total < bits, offset, best), np.minimum(total, bits)
    return best


def _middle(rows: Ints) -> int:
    live = rows[rows != DEAD]
    return int(np.median(live)) if len(live) else UNIT


def _no_factor(length: int) -> Factor:
    return Factor(np.empty((0, length), np.int8), np.empty(0, np.int64))


def _with_rank(plain: Fit, guess: Floats, values: Rows) -> Fit:
    """Return the fit with as much of a low-rank part as pays: updates of layers have few ranks."""
    live = plain.description.rows != DEAD
    highest = min(_RANKS[-1], values.size // (4 * sum(values.shape)), np.count_nonzero(live))
    if highest < _RANKS[0]:
        return plain
    # Clipped, since scales may be anything, and no singular vector is found beside infinity.
    parts = _Parts.of((values - plain.span.width.clip(guess))[live], highest)
    best, misses = plain, 0
    for rank in (rank for rank in _RANKS if rank <= highest):
        left, right, exponents = parts.quantized(rank)
        everywhere = np.zeros((rank, len(live)), np.int8)
        everywhere[:, live] = left
        factors = _factor(everywhere), _factor(right)
        span = replace(
            plain.span,
            exponents=exponents,
            left_middle=_middle(factors[0].classes),
            right_middle=_middle(factors[1].classes),
        )
        found = _described(span, guess, values, *factors)
        found = replace(found, bits=found.bits + sum(map(_factor_bits, factors)))
        if found.bits < best.bits:
            best, misses = found, 0
        elif misses == _PATIENCE:
            break
        else:
            misses += 1
    return best


@dataclass(frozen=True)
class _Parts:
    """The strongest singular vectors of a matrix: left (rows, n), strengths, right (n, columns)."""

    left: Floats
    strengths: Floats
    right: Floats
    energy: float
    """Mean square of the matrix times its size."""
    size: int

    @staticmethod
    def of(matrix: Floats, count: int) -> "_Parts":
        """Return about the `count` strongest, by subspace iteration."""
        random = np.random.default_rng(0)
        basis = matrix @ random.standard_normal((matrix.shape[1], min(count + 8, *matrix.shape)))
        for _ in range(3):
            basis = np.linalg.qr(matrix @ (matrix.T @ np.linalg.qr(basis)[0]))[0]
        small, strengths, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        strengths = np.maximum(strengths, 1e-9)
        return _Parts(basis @ small, strengths, right, float(np.square(matrix).sum()), matrix.size)

    def quantized(self, rank: int) -> tuple[Rows, Rows, tuple[int, ...]]:
        """Return int8 (rank, rows), int8 (rank, columns) and the exponents of their steps."""
        left, strengths, right = self.left[:, :rank], self.strengths[:rank], self.right[:rank]
        noise = max(1e-4, (self.energy - float(np.square(strengths).sum())) / self.size)
        # Steps that add about as much error as is left anyway, and numbers that fit into int8.
        wanted = 16 * noise / strengths
        peaks = np.maximum(np.abs(left).max(axis=0), np.abs(right).max(axis=1))
        room = strengths * np.square(peaks / 127)
        exponents = np.ceil(np.log2(np.maximum(wanted, room) * FACTOR_UNIT))
        exponents = np.clip(exponents, 0, MAX_EXPONENT).astype(np.int64)
        scale = np.sqrt(strengths * FACTOR_UNIT / np.ldexp(1.0, exponents))
        return (
            _int8((left * scale).T),
            _int8(right * scale[:, None]),
            tuple(int(exponent) for exponent in exponents),
        )


def _int8(values: Floats) -> Rows:
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def _factor(values: Rows) -> Factor:
    return Factor(
        values, _row_classes(_residuals(_FACTOR, np.zeros(values.shape), values), None)[0]
    )


def _factor_bits(factor: Factor) -> float:
    residuals = _residuals(_FACTOR, np.zeros(factor.values.shape), factor.values)
    return _row_classes(residuals, None)[1] + _ROW_BITS * len(factor.classes)
