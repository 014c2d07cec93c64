"""How sure a share is: of one device's answers, and of a fleet's.

Answers of one device resemble each other more than answers of two. So within a device each
answer counts (Wilson, Clopper-Pearson), and over a fleet each device does: an interval that
takes a fleet's answers for independent is far too narrow.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fleet.core.statistics.tails import beta_quantile, normal_quantile, t_quantile

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its interval, of which 95 in 100 hold the true one."""

    share: float
    low: float
    high: float
    samples: int
    """What it is a share of."""
    devices: int
    """On how many devices with any sample."""
    method: str
    """wilson: answers of one device count each. clustered: devices do."""

    @property
    def text(self) -> str:
        """In words: `91.2% (88.0 to 93.9%) of 1200 on 14 devices`."""
        on = f" on {self.devices} devices" if self.devices != 1 else " on one device"
        return (
            f"{100 * self.share:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f}%)"
            f" of {self.samples}{on}"
        )


def wilson(correct: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Wilson score interval of a share; total is at least 1.

    It holds for independent answers, so within one device, never for a fleet's mean. Its
    coverage is `confidence` on average over shares, and somewhat less at a few.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = normal_quantile((1 - confidence) / 2)
    share = correct / total
    z2 = z * z / total
    middle = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    # At the ends the formula is exact and its floating point is not.
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == total else min(1.0, middle + half)
    return low, high


def clopper_pearson(
    correct: int, total: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the exact interval of a share; total is at least 1.

    Never less than `confidence` for independent answers, hence wider than Wilson's. Either end
    alone is a one-sided bound of (1 + confidence) / 2.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits".
    """
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, correct, total - correct + 1) if correct else 0.0
    high = beta_quantile(1 - tail, correct + 1, total - correct) if correct < total else 1.0
    return low, high


def of_device(correct: int, total: int) -> Share | None:
    """Return a share within one device, by Wilson; None without samples."""
    if total == 0:
        return None
    low, high = wilson(correct, total)
    return Share(correct / total, low, high, total, 1, "wilson")


def of_fleet(counts: Iterable[tuple[int, int]], confidence: float = CONFIDENCE) -> Share | None:
    """Return a share over a fleet from (correct, total) of each device; None without samples.

    The share is all correct over all samples: of a device with twice the samples twice as much
    is heard. The variance is the jackknife's over devices, with Student's t of one degree less
    than there are devices; a few that have most of the samples count as so few. The interval is
    the wider end of that and of the same on the logit scale, since shares near one are skewed,
    and never narrower than Wilson's of all answers together, which is what remains when no
    device differs from another.

    One device says nothing about others: then the interval is that of the device alone, and
    `devices` says so. With two to five devices it holds, but is so wide that it seldom says
    much.

    Bounds: simulated coverage is 93 to 99% for Beta(2, 2), Beta(18, 2) and Beta(49, 1) effects
    of 3 to 200 devices. The devices are taken for a sample of those one wants to know about.
    What few of them show (one in fifty that fails altogether, of ten devices) is in no interval.

    Source: Cochran 1977, "Sampling Techniques", chapter 6 (ratio estimators); Bell and
    McCaffrey 2002 on the jackknife with few clusters; Carter, Schnepel and Steigerwald 2017 on
    clusters of unequal size.
    """
    pairs = [(correct, total) for correct, total in counts if total > 0]
    if not pairs:
        return None
    correct, total = sum(x for x, _ in pairs), sum(n for _, n in pairs)
    share = correct / total
    low, high = wilson(correct, total, confidence)
    devices = len(pairs)
    if devices == 1:
        return Share(share, low, high, total, 1, "wilson")
    without = [(correct - x) / (total - n) for x, n in pairs]
    error = math.sqrt((devices - 1) / devices * sum((other - share) ** 2 for other in without))
    heard = total * total / sum(n * n for _, n in pairs)
    half = t_quantile((1 - confidence) / 2, max(1, math.floor(heard + 1e-9) - 1)) * error
    low, high = min(low, share - half), max(high, share + half)
    if 0 < share < 1:
        odds, reach = math.log(share / (1 - share)), half / (share * (1 - share))
        low, high = min(low, _logistic(odds - reach)), max(high, _logistic(odds + reach))
    return Share(share, max(0.0, low), min(1.0, high), total, devices, "clustered")


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
