"""Sums of windows while they are being added up: mutable, and flat enough to be rows of a table."""

from collections.abc import Iterable, Mapping
from itertools import islice
from operator import add
from typing import Any

from fleet.core.scores import SUMS, Totals
from wire.telemetry import MILLION, Estimate, Golden, Histogram, ScoreWindow

ESTIMATE = ("estimate_samples", "estimate_sum_p", "estimate_spread")
GOLDEN = (
    "golden_runs", "golden_samples", "golden_flips", "golden_labelled", "golden_correct",
    "golden_deviating",
)  # fmt: skip
NUMBERS = (*SUMS, *ESTIMATE, *GOLDEN, "predictions")
"""What a tally holds as plain numbers, in this order."""

_WINDOW = SUMS[:8]
_COUNTS = ("predicted", "confidence", "confusion", "outcomes", "noised")
_ROWS = ("calibration", "drift")
_ZERO = [0] * len(NUMBERS)

MAX_KEYS = 20_000
"""Of one map of counts. What comes beyond is left out, and counted nowhere: no honest device has
so many classes in use."""

MOST = 2**62
"""Of any sum: what a database holds."""

MOST_OF_DEVICE = 2**53
"""Of one device's in an hour or a day: a thousand of them still add up in a database."""

Key = tuple[str, str, int, str]


class Tally:
    """The sum of windows of one variant of one release."""

    __slots__ = ("counts", "errors", "latency", "numbers", "rows", "since", "until")

    def __init__(self) -> None:
        self.numbers = _ZERO.copy()
        self.since = 0
        self.until = 0
        self.latency: dict[int, int] = {}
        self.errors: dict[int, int] = {}
        self.counts: list[dict[Any, int]] = [{}, {}, {}, {}, {}]
        """Of predicted, confidence, confusion, outcomes and noised."""
        self.rows: list[dict[int, list[int]]] = [{}, {}]
        """Of calibration and drift."""

    @property
    def windows(self) -> int:
        """How many windows were added up."""
        return self.numbers[_WINDOWS]

    def add(self, window: ScoreWindow) -> None:
        """Add one window."""
        self.merge(Tally.of_window(window))

    @classmethod
    def of_window(cls, window: ScoreWindow) -> "Tally":
        """Return a window as a sum that shares its counts: to be read, and added to others."""
        other = cls()
        shadow, estimate, golden = window.shadow, window.estimate, window.golden
        other.numbers[:] = [
            *[getattr(window, name) for name in _WINDOW],
            *(
                (shadow.pairs, shadow.disagreements, shadow.labelled, shadow.worse, shadow.better)
                if shadow is not None
                else (0, 0, 0, 0, 0)
            ),
            window.epsilon_windows,
            round((window.epsilon or 0) * MILLION) * window.epsilon_windows,
            1,
            *(
                (estimate.samples, estimate.sum_p, estimate.spread)
                if estimate is not None
                else (0, 0, 0)
            ),
            *(
                (golden.runs, golden.samples, golden.flips, golden.labelled, golden.correct,
                 golden.deviating)
                if golden is not None
                else (0, 0, 0, 0, 0, 0)
            ),
            sum(window.predicted.values()),
        ]  # fmt: skip
        other.since, other.until = window.start, window.end
        other.latency = window.latency.bins
        other.errors = window.value_errors.bins if window.value_errors is not None else {}
        other.counts = [getattr(window, name) for name in _COUNTS]
        other.rows = [window.calibration, window.drift]  # type: ignore[list-item]
        return other

    def merge(self, other: "Tally") -> None:
        """Add another sum, which is left as it is."""
        if self._empty:
            self._become(other)
            return
        if other.windows:
            self.since = min(self.since, other.since) if self.windows else other.since
            self.until = max(self.until, other.until)
        self.numbers = [*map(add, self.numbers, other.numbers)]
        _add(self.latency, other.latency)
        _add(self.errors, other.errors)
        for mine, theirs in zip(self.counts, other.counts, strict=True):
            _add(mine, theirs)
        for rows, more in zip(self.rows, other.rows, strict=True):
            _add_rows(rows, more)

    @property
    def _empty(self) -> bool:
        maps = (self.latency, self.errors, *self.counts, *self.rows)
        return self.numbers == _ZERO and not any(maps)

    def _become(self, other: "Tally") -> None:
        """Take over a copy, which is a good deal faster than adding count by count."""
        self.numbers = other.numbers.copy()
        self.since, self.until = other.since, other.until
        self.latency, self.errors = _copy(other.latency), _copy(other.errors)
        self.counts = [_copy(counts) for counts in other.counts]
        self.rows = [{key: list(row) for key, row in rows.items()} for rows in other.rows]

    def less(self, other: "Tally") -> None:
        """Take away a sum that is part of this one; since and until stay those of the whole.

        Nothing becomes less than nothing, though a sum that ended at MOST is less than its parts.
        """
        self.numbers = [max(0, a - b) for a, b in zip(self.numbers, other.numbers, strict=True)]
        negative = Tally()
        negative.latency = _minus(other.latency)
        negative.errors = _minus(other.errors)
        negative.counts = [_minus(each) for each in other.counts]
        negative.rows = [
            {key: [-n for n in row] for key, row in rows.items()} for rows in other.rows
        ]
        negative.numbers = _ZERO
        self.merge(negative)
        for counts in (self.latency, self.errors, *self.counts):
            noised = counts is self.counts[_NOISED]
            for key in [k for k, n in counts.items() if not n or (n < 0 and not noised)]:
                del counts[key]
        for rows in self.rows:
            for key, row in list(rows.items()):
                rows[key] = [max(0, n) for n in row]
                if not any(rows[key]):
                    del rows[key]

    def rest(self) -> list[Any]:
        """Return all but the numbers, as lists that JSON takes."""
        flat: list[Any] = []
        maps: list[dict[Any, Any]] = [self.latency, self.errors, *self.counts, *self.rows]
        for counts in maps:
            flat += [list(counts), list(counts.values())]
        return flat

    def held(self, most: int = MOST) -> list[int]:
        """Return the numbers, as far as a table holds them."""
        if max(self.numbers) <= most:
            return self.numbers
        return [min(number, most) for number in self.numbers]

    @classmethod
    def of(cls, numbers: Iterable[int], since: int, until: int, rest: list[Any]) -> "Tally":
        """Return what `numbers` and `rest` were made of."""
        tally = cls()
        tally.numbers = list(numbers)
        tally.since, tally.until = since, until
        maps = [dict(zip(rest[at], rest[at + 1], strict=True)) for at in range(0, len(rest), 2)]
        tally.latency, tally.errors = maps[0], maps[1]
        tally.counts, tally.rows = maps[2:7], maps[7:]
        return tally

    @classmethod
    def of_totals(cls, totals: Totals) -> "Tally":
        """Return the same sum as a tally."""
        tally = cls()
        estimate, golden = totals.estimate, totals.golden
        tally.numbers = [
            *[getattr(totals, name) for name in SUMS],
            estimate.samples, estimate.sum_p, estimate.spread,
            golden.runs, golden.samples, golden.flips, golden.labelled, golden.correct,
            golden.deviating,
            sum(totals.predicted.values()),
        ]  # fmt: skip
        tally.since, tally.until = totals.since, totals.until
        tally.latency = dict(totals.latency.bins)
        tally.errors = dict(totals.value_errors.bins)
        tally.counts = [dict(getattr(totals, name)) for name in _COUNTS]
        tally.rows = [
            {key: list(row) for key, row in getattr(totals, name).items()} for name in _ROWS
        ]
        return tally

    def totals(self, device: str, model: str, version: int, manifest: str, variant: str) -> Totals:
        """Return the sum as a value."""
        values: dict[str, Any] = dict(zip(NUMBERS, self.numbers, strict=True))
        parts: dict[str, Any] = {name: values[name] for name in SUMS}
        parts |= zip(_COUNTS, self.counts, strict=True)
        for name, rows in zip(_ROWS, self.rows, strict=True):
            parts[name] = {key: tuple(row) for key, row in rows.items()}
        estimate = {name.removeprefix("estimate_"): values[name] for name in ESTIMATE}
        golden = {name.removeprefix("golden_"): values[name] for name in GOLDEN}
        return Totals(
            device,
            model,
            version,
            manifest,
            variant,
            **parts,
            latency=Histogram.model_construct(bins=self.latency),
            value_errors=Histogram.model_construct(bins=self.errors),
            estimate=Estimate.model_construct(None, **estimate),
            golden=Golden.model_construct(None, **golden),
            since=self.since,
            until=self.until,
        )


_WINDOWS = NUMBERS.index("windows")
_NOISED = _COUNTS.index("noised")


def held(rest: Any) -> Any:
    """Return the rest of a tally as far as a table holds it: what devices that lie add up to ends
    there, and their next window is no error.
    """
    if isinstance(rest, list):
        return [held(each) for each in rest]
    return rest if isinstance(rest, str) else max(-MOST, min(MOST, rest))


def _copy(counts: Mapping[Any, int]) -> dict[Any, int]:
    return dict(counts if len(counts) <= MAX_KEYS else islice(counts.items(), MAX_KEYS))


def _add(mine: dict[Any, int], theirs: Mapping[Any, int]) -> None:
    get = mine.get
    if len(mine) + len(theirs) <= MAX_KEYS:
        for key, count in theirs.items():
            mine[key] = get(key, 0) + count
        return
    for key, count in theirs.items():
        if key in mine or len(mine) < MAX_KEYS:
            mine[key] = get(key, 0) + count


def _add_rows(mine: dict[int, list[int]], theirs: Mapping[int, Iterable[int]]) -> None:
    for key, row in theirs.items():
        known = mine.get(key)
        if known is None:
            mine[key] = list(row)
            continue
        more = row if isinstance(row, (list, tuple)) else list(row)
        if len(more) == len(known):
            mine[key] = [*map(add, known, more)]
            continue
        if len(more) > len(known):
            known, more = list(more), known
        mine[key] = [*map(add, known, more), *known[len(more) :]]


def _minus(counts: Mapping[Any, int]) -> dict[Any, int]:
    return {key: -count for key, count in counts.items()}
