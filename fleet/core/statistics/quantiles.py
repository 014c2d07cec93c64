"""Quantiles of merged histograms, with both of their errors."""

import math
from dataclasses import dataclass

from fleet.core.statistics.intervals import CONFIDENCE
from fleet.core.statistics.tails import normal_quantile
from wire.telemetry import LATENCY_ERROR, Histogram

_READ = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile, in the unit that the histogram counts."""

    q: float
    value: float
    """Within 1% of the value that stands at this place among those counted."""
    low: float
    high: float
    """Where the quantile of all there ever will be lies, if values are independent. Low is 0 and
    high infinite where too few were counted to say: none may be as slow as the 99th percentile."""


def quantile(histogram: Histogram, q: float) -> Quantile | None:
    """Return one quantile; None when nothing was counted.

    The value is that of numpy's `method="lower"` within 1%, whatever was merged into the
    histogram and in whatever order. `low` and `high` are the values at the ranks that a
    binomial around q reaches, at the far ends of their bins: each is wrong 2.5 times in 100 at
    most. Values of one device that follow each other closely (a queue) are less sure than that.

    Source: Masson, Rim and Lee 2019, "DDSketch"; Conover 1999, "Practical Nonparametric
    Statistics", section 3.2 (intervals of quantiles by ranks).
    """
    count = histogram.count
    value = histogram.quantile_us(q)
    if value is None:
        return None
    reach = normal_quantile((1 - CONFIDENCE) / 2) * math.sqrt(q * (1 - q) * count)
    lower = _at(histogram, math.floor(q * count - reach) - 1)
    upper = _at(histogram, math.ceil(q * count + reach))
    return Quantile(
        q,
        value,
        # The ends of their bins.
        low=0.0 if lower is None else lower / (1 + LATENCY_ERROR),
        high=math.inf if upper is None else upper / (1 - LATENCY_ERROR),
    )


def _at(histogram: Histogram, rank: int) -> float | None:
    """Return the value at this rank, from 0; None: there is no such rank."""
    count = histogram.count
    if not 0 <= rank < count:
        return None
    return histogram.quantile_us(min(1.0, (rank + 0.5) / max(1, count - 1)))


def quantiles(histogram: Histogram, places: tuple[float, ...] = _READ) -> tuple[Quantile, ...]:
    """Return several quantiles; none when nothing was counted."""
    return tuple(found for q in places if (found := quantile(histogram, q)) is not None)


def share_above(histogram: Histogram, limit: float) -> float | None:
    """Return the share of values above `limit`, in the histogram's unit.

    Values within 2% of the limit may be told on either side.
    """
    count = histogram.count
    if not count:
        return None
    last = Histogram.bin_of(limit)
    return sum(n for place, n in histogram.bins.items() if place > last) / count
