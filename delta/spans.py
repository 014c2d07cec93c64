"""One tensor's bytes: how they are laid out, predicted and coded, in either direction."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from delta.errors import DeltaError
from delta.formats import Place
from delta.model import (
    DEAD,
    FACTOR_UNIT,
    OF_COLUMNS,
    OF_ROWS,
    REACH,
    TOP,
    Floats,
    Stream,
    Width,
    blocks,
    code,
    code_classes,
    spread_classes,
)
from delta.rans import Ints

Bytes: TypeAlias = bytes | bytearray | memoryview
Rows: TypeAlias = NDArray[np.integer[Any]]

ELEMENTS = ("i1", "u1", "i2", "u2", "i4", "f4")
"""By number. Floats are taken as the integers that their bits are."""


def width_of(element: str) -> Width:
    """Return the range of an element's integers."""
    return Width(8 * int(element[1]), element[0] != "u")


def _integers(element: str) -> str:
    return "<" + element.replace("f", "i")


class Predictor(IntEnum):
    """What a value is predicted from."""

    NOTHING = 0
    SAME = 1
    """The old value."""
    RESCALED = 2
    """The old value, times old scale over new scale."""
    PRODUCT = 3
    """A product of two floats in the new file."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Where `count` float32 scales lie in both files, and the zero points."""

    new: int
    base: int
    count: int
    new_zero: int
    base_zero: int


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor's bytes in the new file, and what they are predicted from.

    They are `outer` x `rows` x `inner` elements; one row is one channel, `columns` = outer x inner
    elements of it.
    """

    element: str
    predictor: Predictor
    new: int
    base: int
    outer: int
    rows: int
    inner: int
    scales: Scales | None = None
    factors: tuple[int, int] | None = None
    """Offsets in the new file of as many floats as there are columns, and of one float."""
    middle: int = 0
    """The class that those of most rows are near."""
    has_columns: bool = False
    exponents: tuple[int, ...] = ()
    """Of the low-rank part: one a component."""
    left_middle: int = 0
    right_middle: int = 0

    @property
    def columns(self) -> int:
        """Elements of one row."""
        return self.outer * self.inner

    @property
    def width(self) -> Width:
        """The integers that the elements are."""
        return width_of(self.element)

    @property
    def length(self) -> int:
        """Bytes."""
        return self.rows * self.columns * int(self.element[1])

    @property
    def place(self) -> Place:
        """In the new file."""
        return Place(self.new, self.length)

    @property
    def base_place(self) -> Place:
        """In the base; empty when nothing is predicted from there."""
        wanted = self.predictor in (Predictor.SAME, Predictor.RESCALED)
        return Place(self.base, self.length if wanted else 0)


@dataclass(frozen=True)
class Description:
    """What is coded before the residuals of a span; a decoder finds it there."""

    rows: Ints
    columns: Ints | None
    left: "Factor"
    right: "Factor"


@dataclass(frozen=True)
class Factor:
    """One side of the low-rank part: int8 (rank, rows or columns), and the classes of its rows."""

    values: Rows
    classes: Ints


def as_rows(content: Bytes, offset: int, span: Span) -> Rows:
    """Return the elements at `offset`, (rows, columns); no copy where one row lies in one piece."""
    flat = np.frombuffer(content, _integers(span.element), span.rows * span.columns, offset)
    if span.outer == 1:
        return flat.reshape(span.rows, span.inner)
    cube = flat.reshape(span.outer, span.rows, span.inner)
    return cube.transpose(1, 0, 2).reshape(span.rows, span.columns)


def place_rows(content: bytearray, span: Span, values: Rows) -> None:
    """Write what `as_rows` would read."""
    flat = np.frombuffer(content, _integers(span.element), span.rows * span.columns, span.new)
    cube = flat.reshape(span.outer, span.rows, span.inner)
    cube.transpose(1, 0, 2)[:] = values.reshape(span.rows, span.outer, span.inner)


Prediction: TypeAlias = Callable[[slice, slice], Floats]


def prediction(span: Span, base: Bytes, new: Bytes) -> Prediction:
    """Return what predicts a block of `span` without its low-rank part, (rows, columns)."""
    if span.predictor is Predictor.NOTHING:
        return nothing
    if span.predictor is Predictor.PRODUCT:
        product = _product(span, new)
        return lambda rows, columns: product[:, columns].astype(np.float64)
    old = as_rows(base, span.base, span)
    if span.scales is None:
        return lambda rows, columns: old[rows, columns].astype(np.float64)
    ratio, base_zero, new_zero = (
        ratios(span, base, new),
        span.scales.base_zero,
        span.scales.new_zero,
    )

    def rescaled(rows: slice, columns: slice) -> Floats:
        part = ratio[rows if len(ratio) > 1 else slice(None)]
        part = part[:, columns if part.shape[1] > 1 else slice(None)]
        before: Floats = old[rows, columns].astype(np.float64)
        # Scales may be anything; what is no number is clipped away.
        with np.errstate(all="ignore"):
            found: Floats = np.asarray((before - base_zero) * part + new_zero)
        return found

    return rescaled


def _product(span: Span, new: Bytes) -> NDArray[np.int32]:
    assert span.factors is not None
    many = np.frombuffer(new, "<f4", span.columns, span.factors[0])
    with np.errstate(all="ignore"):
        product = many * np.frombuffer(new, "<f4", 1, span.factors[1])
    bits: NDArray[np.int32] = product.view("<i4").reshape(1, -1)
    return bits


def ratios(span: Span, base: Bytes, new: Bytes) -> Floats:
    """Return old scale over new scale: (1, 1), (rows, 1) or (1, columns)."""
    assert span.scales is not None
    old = np.frombuffer(base, "<f4", span.scales.count, span.scales.base).astype(np.float64)
    now = np.frombuffer(new, "<f4", span.scales.count, span.scales.new).astype(np.float64)
    with np.errstate(all="ignore"):
        ratio = old / now
    return ratio.reshape((-1, 1) if span.scales.count in (1, span.rows) else (1, -1))


def shared_part(span: Span, left: Rows, right: Rows) -> Prediction:
    """Return the low-rank part: sums of small integers in float64, exact in any order."""
    weights = np.ldexp(1.0 / FACTOR_UNIT, np.array(span.exponents, np.int32))
    right = right.astype(np.float64)

    def part(rows: slice, columns: slice) -> Floats:
        weighted: Floats = left[:, rows] * weights[:, None]
        found: Floats = weighted.T @ right[:, columns]
        return found

    return part


def code_span(
    stream: Stream,
    span: Span,
    base: Bytes,
    new: Bytes,
    told: tuple[Description, Rows] | None = None,
) -> Rows:
    """Code the description of a span and its elements; return the elements, (rows, columns)."""
    description, values = told or (None, None)
    rank = len(span.exponents)
    left = _code_factor(
        stream, (rank, span.rows), span.left_middle, description.left if description else None
    )
    right = _code_factor(
        stream, (rank, span.columns), span.right_middle, description.right if description else None
    )
    rows = code_row_classes(
        stream, span.middle, span.rows, description.rows if description else None
    )
    columns = description.columns if description else None
    if span.has_columns:
        columns = code_classes(stream, OF_COLUMNS, 0, span.columns, columns)
    predict = prediction(span, base, new)
    shared = shared_part(span, left, right)

    def predicted(rows: slice, columns: slice) -> Floats:
        found = predict(rows, columns)
        return found + shared(rows, columns) if rank else found

    return code_matrix(stream, Matrix(span.element, span.columns, rows, columns), predicted, values)


def code_row_classes(stream: Stream, middle: int, count: int, classes: Ints | None) -> Ints:
    """Code the classes of rows; a dead row is written as the lowest symbol."""
    lowest = middle - REACH
    given = None if classes is None else np.where(classes == DEAD, lowest, classes)
    found = code_classes(stream, OF_ROWS, middle, count, given)
    if found.max(initial=0) > TOP:
        raise DeltaError(f"expected classes up to {TOP}, got {found.max()}")
    return np.where(found <= lowest, DEAD, np.maximum(found, 1))


@dataclass(frozen=True)
class Matrix:
    """What is known of a matrix before its elements are."""

    element: str
    columns: int
    row_classes: Ints
    column_classes: Ints | None = None


def code_matrix(stream: Stream, matrix: Matrix, predicted: Prediction, values: Rows | None) -> Rows:
    """Code the elements of a matrix, block by block."""
    width = width_of(matrix.element)
    shape = len(matrix.row_classes), matrix.columns
    result = np.empty(shape, _integers(matrix.element)) if values is None else values
    for rows, columns in blocks(*shape):
        here = None if matrix.column_classes is None else matrix.column_classes[columns]
        guess = width.clip(predicted(rows, columns))
        classes = np.broadcast_to(
            spread_classes(matrix.row_classes[rows], here), guess.shape
        ).ravel()
        given = None if values is None else values[rows, columns].astype(np.int64).ravel()
        found = code(stream, width, classes, guess.ravel(), given)
        if values is None:
            result[rows, columns] = found.reshape(guess.shape)
    return result


def nothing(rows: slice, columns: slice) -> Floats:
    """Predict 0."""
    return np.zeros((rows.stop - rows.start, columns.stop - columns.start))


def _code_factor(
    stream: Stream, shape: tuple[int, int], middle: int, factor: Factor | None
) -> Rows:
    """Code one side of the low-rank part: a small matrix, predicted from nothing."""
    rank, length = shape
    given = None if factor is None else factor.classes
    classes = code_row_classes(stream, middle, rank, given)
    matrix = Matrix("i1", length, classes)
    return code_matrix(stream, matrix, nothing, None if factor is None else factor.values)
