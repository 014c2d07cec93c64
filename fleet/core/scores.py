"""Totals of what a release did on a device, and how sure its accuracy is."""

import math
from dataclasses import dataclass, replace

from fleet.core.views import ScoreView
from wire.telemetry import Histogram, ScoreWindow

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Totals:
    """The sum of all windows of one variant of one release on one device."""

    device: str
    model: str
    version: int
    manifest: str
    variant: str
    requests: int = 0
    errors: int = 0
    drops: int = 0
    labelled: int = 0
    correct: int = 0
    latency: Histogram = Histogram()  # noqa: RUF009 - frozen
    value_errors: Histogram = Histogram()  # noqa: RUF009 - frozen
    since: int = 0
    """Start of the earliest window, unix seconds."""
    until: int = 0
    """End of the latest window."""

    @classmethod
    def of(cls, window: ScoreWindow) -> "Totals":
        """Return the empty sum that `window` belongs to."""
        return cls(window.device, window.model, window.version, window.manifest, window.variant)

    def plus(self, window: ScoreWindow) -> "Totals":
        """Return the sum with one more window; the order of windows does not matter."""
        return replace(
            self,
            requests=self.requests + window.requests,
            errors=self.errors + window.errors,
            drops=self.drops + window.drops,
            labelled=self.labelled + window.labelled,
            correct=self.correct + window.correct,
            latency=self.latency.merge(window.latency),
            value_errors=self.value_errors.merge(window.value_errors or Histogram()),
            since=min(self.since or window.start, window.start),
            until=max(self.until, window.end),
        )


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a share; total is at least 1.

    It holds for independent labels, so within one device, never for a fleet's mean.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share = correct / total
    z2 = _Z95 * _Z95 / total
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


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
