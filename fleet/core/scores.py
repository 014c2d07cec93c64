"""Totals of what a release did on a device, and how sure its accuracy is."""

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, TypeVar

from fleet.core.statistics.intervals import wilson
from fleet.core.views import ScoreView
from wire.telemetry import MILLION, Estimate, Golden, Histogram, ScoreWindow, Shadow


@dataclass(frozen=True, slots=True)
class Totals:
    """The sum of windows of one variant of one release, on one device or (device "") on many.

    Fields are named as in ScoreWindow. Sums are of integers, so neither the order of windows nor
    how they were split into sums matters.
    """

    device: str
    model: str
    version: int
    manifest: str
    variant: str
    requests: int = 0
    errors: int = 0
    drops: int = 0
    slo_misses: int = 0
    latency: Histogram = Histogram()  # noqa: RUF009 - frozen
    predicted: dict[int, int] = field(default_factory=dict)
    confidence: dict[int, int] = field(default_factory=dict)
    confidence_sum: int = 0
    labelled: int = 0
    correct: int = 0
    confusion: dict[str, int] = field(default_factory=dict)
    calibration: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    orphan_labels: int = 0
    value_errors: Histogram = Histogram()  # noqa: RUF009 - frozen
    outcomes: dict[str, int] = field(default_factory=dict)
    drift: dict[int, tuple[int, ...]] = field(default_factory=dict)
    estimate: Estimate = Estimate()  # noqa: RUF009 - frozen
    golden: Golden = Golden()  # noqa: RUF009 - frozen
    shadow_pairs: int = 0
    shadow_disagreements: int = 0
    shadow_labelled: int = 0
    shadow_worse: int = 0
    shadow_better: int = 0
    noised: dict[int, int] = field(default_factory=dict)
    epsilon_windows: int = 0
    epsilon_spent: int = 0
    """Differential privacy spent in all, in millionths."""
    windows: int = 0
    """How many were added up."""
    since: int = 0
    """Start of the earliest window, unix seconds."""
    until: int = 0
    """End of the latest window."""

    @classmethod
    def of(cls, window: ScoreWindow) -> "Totals":
        """Return the empty sum that `window` belongs to."""
        return cls(window.device, window.model, window.version, window.manifest, window.variant)

    @classmethod
    def single(cls, window: ScoreWindow) -> "Totals":
        """Return the sum of one window."""
        shadow = window.shadow or Shadow(challenger=window.manifest)
        return cls(
            **{name: getattr(window, name) for name in _SAME},
            value_errors=window.value_errors or Histogram(),
            estimate=window.estimate or Estimate(),
            golden=window.golden or Golden(),
            shadow_pairs=shadow.pairs,
            shadow_disagreements=shadow.disagreements,
            shadow_labelled=shadow.labelled,
            shadow_worse=shadow.worse,
            shadow_better=shadow.better,
            epsilon_spent=round((window.epsilon or 0) * MILLION) * window.epsilon_windows,
            windows=1,
            since=window.start,
            until=window.end,
        )

    def plus(self, window: ScoreWindow) -> "Totals":
        """Return the sum with one more window."""
        return self.merge(Totals.single(window))

    def merge(self, other: "Totals") -> "Totals":
        """Return both sums together; of devices that differ none remains named."""
        mine, theirs = (self, other) if self.windows else (other, self)
        changes: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name) for name in SUMS
        }
        for name in DICTS:
            changes[name] = _added(getattr(self, name), getattr(other, name))
        for name in ROWS:
            changes[name] = _rows_added(getattr(self, name), getattr(other, name))
        return replace(
            self,
            device=self.device if self.device == other.device else "",
            latency=self.latency.merge(other.latency),
            value_errors=self.value_errors.merge(other.value_errors),
            estimate=_parts_added(self.estimate, other.estimate),
            golden=_parts_added(self.golden, other.golden),
            since=min(mine.since, theirs.since) if theirs.windows else mine.since,
            until=max(self.until, other.until),
            **changes,
        )


SUMS = (
    "requests", "errors", "drops", "slo_misses", "confidence_sum", "labelled", "correct",
    "orphan_labels", "shadow_pairs", "shadow_disagreements", "shadow_labelled", "shadow_worse",
    "shadow_better", "epsilon_windows", "epsilon_spent", "windows",
)  # fmt: skip
"""Fields of Totals that are numbers, added up."""

DICTS = ("predicted", "confidence", "confusion", "outcomes", "noised")
"""Fields of counts by key."""

ROWS = ("calibration", "drift")
"""Fields of tuples of counts by key."""

_SAME = (
    "device", "model", "version", "manifest", "variant", "requests", "errors", "drops",
    "slo_misses", "latency", "predicted", "confidence", "confidence_sum", "labelled", "correct",
    "confusion", "calibration", "orphan_labels", "outcomes", "drift", "noised", "epsilon_windows",
)  # fmt: skip

K = TypeVar("K")
P = TypeVar("P", Estimate, Golden)


def _added(mine: dict[K, int], theirs: dict[K, int]) -> dict[K, int]:
    if not theirs:
        return mine
    both = dict(mine)
    for key, count in theirs.items():
        both[key] = both.get(key, 0) + count
    return both


def _rows_added(
    mine: dict[K, tuple[int, ...]], theirs: dict[K, tuple[int, ...]]
) -> dict[K, tuple[int, ...]]:
    if not theirs:
        return mine
    both = dict(mine)
    for key, row in theirs.items():
        both[key] = tuple(map(sum, zip_longest(both.get(key, ()), row, fillvalue=0)))
    return both


def _parts_added(mine: P, theirs: P) -> P:
    kind = type(mine)
    both = {name: getattr(mine, name) + getattr(theirs, name) for name in kind.model_fields}
    return kind.model_construct(**both)


def score_view(totals: Totals) -> ScoreView:
    """Return what people read of the totals."""
    share = low = high = None
    if totals.labelled:
        correct = min(totals.correct, totals.labelled)
        share = correct / totals.labelled
        low, high = wilson(correct, totals.labelled)
    return ScoreView(
        model=totals.model,
        version=totals.version,
        manifest=totals.manifest,
        variant=totals.variant,
        requests=totals.requests,
        errors=totals.errors,
        p50_ms=_ms(totals.latency.quantile_us(0.5)),
        p95_ms=_ms(totals.latency.quantile_us(0.95)),
        labelled=totals.labelled,
        correct=totals.correct,
        accuracy=share,
        accuracy_low=low,
        accuracy_high=high,
        valued=totals.value_errors.count,
        error_p50=_whole(totals.value_errors.quantile_us(0.5)),
        error_p95=_whole(totals.value_errors.quantile_us(0.95)),
    )


def _whole(millionths: float | None) -> float | None:
    return None if millionths is None else millionths / 1_000_000


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1000
