"""How far numbers that a model answered were from those that turned out to be true."""

from collections import OrderedDict
from typing import Any

import numpy as np

from agent.engine.comparison import Numbers, Outcome
from agent.engine.errors import HttpError, bad_request
from agent.engine.judging import ValueJudge
from agent.engine.runtimes import Array
from wire.telemetry import Histogram

MAX_VALUES = 64
"""Of one answer; larger ones are not remembered."""

MAX_REMEMBERED = 8192
MAX_REMEMBERED_VALUES = 8 * MAX_REMEMBERED
_PARTS = 1e6
"""Errors are counted in millionths, as latencies are in microseconds."""

_WORST = 1e17


class Values:
    """Answers by request id; true values join them once each, in any order, and are counted.

    With a tolerance, numbers that are within it of the true ones are counted too.
    """

    def __init__(self, tolerance: float | None = None) -> None:
        self._remembered: OrderedDict[str, tuple[Outcome, Numbers]] = OrderedDict()
        self._size = 0
        self._errors: dict[int, int] = {}
        self._judge = None if tolerance is None else ValueJudge(tolerance)
        self._within = self._beyond = 0

    def answered(self, outcome: Outcome, output: Array) -> None:
        """Remember an answer, as long as there is room."""
        numbers = numbers_of(output)
        if numbers is None:
            return
        outcome.numbers = remembered = Numbers(numbers)
        if (earlier := self._remembered.pop(outcome.id, None)) is not None:
            self._size -= earlier[1].answer.size
        self._remembered[outcome.id] = outcome, remembered
        self._size += output.size
        while len(self._remembered) > MAX_REMEMBERED or self._size > MAX_REMEMBERED_VALUES:
            _, (_, oldest) = self._remembered.popitem(last=False)
            self._size -= oldest.answer.size

    def remembers(self, id: str) -> bool:
        """Whether a true value for this request would find its answer."""
        return id in self._remembered

    def compare(self, id: str, given: Any) -> int:
        """Count how far an answer was from its true values; return how many there were.

        Raises:
            HttpError: the answer is not remembered, was compared before, or is of another size.
        """
        true = _numbers(given)
        found = self._remembered.get(id)
        if found is None:
            raise HttpError(
                404,
                f"request {id[:80]!r} is not, or no longer, remembered with an answer of up to "
                f"{MAX_VALUES} numbers",
            )
        outcome, numbers = found
        if numbers.true is not None:
            raise bad_request(f"request {id[:80]}: expected one value, got another after the first")
        if true.size != numbers.answer.size:
            raise bad_request(
                f"value: expected {numbers.answer.size} numbers as in the answer, got {true.size}"
            )
        numbers.true = true
        # A model may have answered NaN or infinity; from there on all errors are alike.
        errors = np.nan_to_num(np.abs(true - numbers.answer) * _PARTS, nan=_WORST, posinf=_WORST)
        for error in np.minimum(errors, _WORST).tolist():
            place = Histogram.bin_of(error)
            self._errors[place] = self._errors.get(place, 0) + 1
        if self._judge is not None:
            within = self._judge.within(numbers.answer, true)
            self._within += within
            self._beyond += int(true.size) - within
        if outcome.comparison is not None:
            outcome.comparison.labelled(outcome)
        return int(true.size)

    def take(self) -> dict[int, int]:
        """Return the errors since the last time, bins and counts, and start anew."""
        taken, self._errors = self._errors, {}
        return taken

    def take_outcomes(self) -> dict[str, int]:
        """Return how many numbers were within the tolerance and beyond it, and start anew."""
        taken = {"within": self._within, "beyond": self._beyond}
        self._within = self._beyond = 0
        return taken


def numbers_of(output: Array) -> Array | None:
    """Return an output as FP64 (n), None where it is no few numbers."""
    if output.dtype.kind not in "iuf" or output.size > MAX_VALUES:
        return None
    return output.ravel().astype(np.float64)


def _numbers(given: Any) -> Array:
    try:
        array = np.array(given)
    except (ValueError, OverflowError):
        raise bad_request(
            "value: expected a number or lists of numbers, got ragged lists"
        ) from None
    if array.dtype.kind not in "iuf" or not array.size or not np.isfinite(array).all():
        raise bad_request(
            f"value: expected a finite number, or lists of them, got {str(given)[:80]!r}"
        )
    return array.ravel().astype(np.float64)
