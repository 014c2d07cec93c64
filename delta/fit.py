"""How to describe the residuals of one tensor in the fewest bytes; only who encodes needs this."""

from dataclasses import dataclass, replace

import numpy as np

from delta.model import (
    DEAD,
    ESCAPE,
    FACTOR_UNIT,
    REACH,
    TOP,
    UNIT,
    Floats,
    Width,
    contexts,
    prior,
    shifts,
    spread_classes,
)
from delta.rans import Ints
from delta.spans import Description, Factor, Predictor, Rows, Span, as_rows, prediction, shared_part

_LOWEST_CLASS_BELOW_MIDDLE = REACH - 1
_ROW_BITS, _COLUMN_BITS = 3.0, 2.5
"""What a class costs, about."""

_FACTOR = Width(8, signed=True)
_RANKS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 255)
_SMALLEST_WITH_RANK = 4096


@dataclass(frozen=True)
class Fit:
    """A span as it is best described, and about what it costs."""

    span: Span
    description: Description
    bits: float


@dataclass(frozen=True)
class _Residuals:
    """Residuals (rows, columns), turned so that predictions were rounded down to them."""

    values: Ints
    away: Floats
    bits: int

    def cost(self, classes: Ints) -> Floats:
        """Return the bits of every residual under the given classes, by the prior."""
        low = shifts(classes)
        high = (self.values + (1 << low >> 1)) >> low
        far = np.abs(high) > REACH
        symbols = np.where(far, ESCAPE, high + REACH)
        bits = _prior_bits()[contexts(classes, self.away), symbols]
        return bits + np.where(far, self.bits, low)


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
    return prediction(span, base, new)(slice(0, span.rows), slice(0, span.columns))


def _plain(span: Span, guess: Floats, values: Rows) -> Fit:
    return _described(span, guess, values, _no_factor(span.rows), _no_factor(span.columns))


def _described(span: Span, guess: Floats, values: Rows, left: Factor, right: Factor) -> Fit:
    """Return the best classes for these predictions."""
    if span.exponents:
        guess = guess + shared_part(
            span, left.values, right.values, slice(0, span.rows), slice(0, span.columns)
        )
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


def _residuals(width: Width, guess: Floats, values: Rows) -> _Residuals:
    guess = width.clip(guess)
    rounded = np.rint(guess)
    away = guess - rounded
    found = Width(width.bits, signed=True).wrap(values.astype(np.int64) - rounded.astype(np.int64))
    return _Residuals(np.where(away < 0, -found, found), away, width.bits)


def _row_classes(residuals: _Residuals, columns: Ints | None) -> tuple[Ints, float]:
    """Return the cheapest class of every row, and the bits of all."""
    mean = np.abs(residuals.values).mean(axis=1)
    dead = ~residuals.values.any(axis=1)
    with np.errstate(divide="ignore"):
        guess = np.where(dead, UNIT, np.rint(2 * np.log2(mean) + UNIT - 1)).astype(np.int64)
    best = np.zeros(len(mean), np.int64)
    bits = np.full(len(mean), np.inf)
    for offset in range(-5, 4):
        rows = np.clip(guess + offset, 1, TOP)
        cost = residuals.cost(
            np.broadcast_to(spread_classes(rows, columns), residuals.values.shape)
        )
        total = cost.sum(axis=1)
        best = np.where(total < bits, rows, best)
        bits = np.minimum(total, bits)
    best = np.where(dead, DEAD, best)
    best = np.where(dead, DEAD, np.maximum(best, _middle(best) - _LOWEST_CLASS_BELOW_MIDDLE))
    return best, float(bits[~dead].sum())


def _column_classes(residuals: _Residuals, rows: Ints) -> Ints:
    """Return what to add to the classes of the rows, for every column."""
    live = rows != DEAD
    part = _Residuals(residuals.values[live], residuals.away[live], residuals.bits)
    best = np.zeros(residuals.values.shape[1], np.int64)
    bits = np.full(len(best), np.inf)
    for offset in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, -6):
        classes = np.clip(rows[live][:, None] + offset, 1, TOP)
        total = part.cost(np.broadcast_to(classes, part.values.shape)).sum(axis=0)
        best = np.where(total < bits, offset, best)
        bits = np.minimum(total, bits)
    return best


def _middle(rows: Ints) -> int:
    live = rows[rows != DEAD]
    return int(np.median(live)) if len(live) else UNIT


def _prior_bits() -> Floats:
    return -np.log2(prior())


def _no_factor(length: int) -> Factor:
    return Factor(np.empty((0, length), np.int8), np.empty(0, np.int64))


def _with_rank(plain: Fit, guess: Floats, values: Rows) -> Fit:
    """Return the fit with as much of a low-rank part as pays; updates of layers have few ranks."""
    rest = values - guess
    live = plain.description.rows != DEAD
    if np.count_nonzero(live) < 8:
        return plain
    highest = min(_RANKS[-1], values.size // (4 * sum(values.shape)), np.count_nonzero(live))
    vectors = _singular(rest[live], highest)
    best = plain
    for rank in (rank for rank in _RANKS if rank <= highest):
        found = _ranked(plain.span, guess, values, live, vectors, rank)
        if found.bits > best.bits:
            break
        best = found
    return best


def _singular(rest: Floats, rank: int) -> tuple[Floats, Floats, Floats]:
    """Return left (rows, rank), strengths and right (rank, columns), by subspace iteration."""
    random = np.random.default_rng(0)
    basis = rest @ random.standard_normal((rest.shape[1], min(rank + 8, *rest.shape)))
    for _ in range(3):
        basis = np.linalg.qr(rest @ (rest.T @ np.linalg.qr(basis)[0]))[0]
    small, strengths, right = np.linalg.svd(basis.T @ rest, full_matrices=False)
    return basis @ small, strengths, right


def _ranked(
    span: Span,
    guess: Floats,
    values: Rows,
    live: Ints,
    vectors: tuple[Floats, Floats, Floats],
    rank: int,
) -> Fit:
    left, strengths, right = vectors[0][:, :rank], vectors[1][:rank], vectors[2][:rank]
    rest = (values - guess)[live]
    noise = max(1e-4, (np.square(rest).sum() - np.square(strengths).sum()) / rest.size)
    # Steps that add about as much error as is left anyway, and numbers that fit into int8.
    wanted = 12 * noise / strengths
    peaks = np.abs(left).max(axis=0), np.abs(right).max(axis=1)
    room = strengths * np.square(np.maximum(*peaks)) / 127**2
    exponents = np.ceil(np.log2(np.maximum(wanted / 1.4, room) * FACTOR_UNIT)).astype(np.int64)
    exponents = np.clip(exponents, 0, 20)
    step = np.ldexp(1.0, exponents) / FACTOR_UNIT
    scale = np.sqrt(strengths / step)
    all_left = np.zeros((rank, span.rows), np.int8)
    all_left[:, live] = _int8((left * scale).T)
    factors = _factor(all_left), _factor(_int8(right * scale[:, None]))
    span = replace(
        span,
        exponents=tuple(int(exponent) for exponent in exponents),
        left_middle=_middle(factors[0].classes),
        right_middle=_middle(factors[1].classes),
    )
    found = _described(span, guess, values, *factors)
    return replace(found, bits=found.bits + sum(_factor_bits(factor) for factor in factors))


def _int8(values: Floats) -> Rows:
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def _factor(values: Rows) -> Factor:
    return Factor(
        values, _row_classes(_residuals(_FACTOR, np.zeros(values.shape), values), None)[0]
    )


def _factor_bits(factor: Factor) -> float:
    residuals = _residuals(_FACTOR, np.zeros(factor.values.shape), factor.values)
    return _row_classes(residuals, None)[1] + _ROW_BITS * len(factor.classes)
