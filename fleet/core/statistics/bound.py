"""Is accuracy below a bound? An answer that may be asked for again and again.

Each look has its own small share of the errors one allows in a year: `alpha_of_look`. The
shares add up to at most that number, however the looks depend on each other, so looks may
overlap and devices may come again. What may not be done is to look more often than stated.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fleet.core.statistics.tails import beta_quantile

_BETS = tuple((i + 0.5) / 20 for i in range(20))
_PRECISION = 1e-7
"""How far beyond what is believable `high` may lie; of 10,000 devices every step costs."""

YEAR_S = 365 * 86_400


@dataclass(frozen=True, slots=True)
class Below:
    """Whether a share is below a bound, with what was seen and how sure it is."""

    verdict: Literal["below", "not_below", "no_data"]
    """not_below: it could not be shown, whether or not it is so."""
    bound: float
    alpha: float
    """How likely "below" is said at one look while it is not so, at most."""
    share: float | None
    """Of a fleet the mean of its devices' shares, each heard alike."""
    high: float
    """The largest true share that is still believable at this alpha."""
    samples: int
    devices: int
    text: str


def alpha_of_look(false_alarms_a_year: float, every_s: float) -> float:
    """Return what one look may err, for so many false alarms a year in the mean, at most."""
    return min(0.5, false_alarms_a_year * every_s / YEAR_S)


def below_on_device(
    correct: int, total: int, bound: float, alpha: float, design_effect: float = 1.0
) -> Below:
    """Return whether one device's share is below `bound`: the exact binomial test.

    `design_effect` is how many answers in a row say what one independent answer would (see
    `drift.design_effect`): so many times fewer count.

    Source: Clopper and Pearson 1934.
    """
    n, x = _thinned(correct, total, design_effect)
    if n == 0:
        return _judged("no_data", (bound, alpha), None, 1.0, (0, 0))
    high = 1.0 if x == n else beta_quantile(1 - alpha, x + 1, n - x)
    verdict: Literal["below", "not_below"] = "below" if high < bound else "not_below"
    return _judged(verdict, (bound, alpha), correct / total, high, (total, 1))


def _thinned(correct: int, total: int, design_effect: float) -> tuple[int, int]:
    """Return (samples, correct) as if each were independent; doubts are given to the share."""
    n = math.floor(total / max(1.0, design_effect))
    wrong = math.floor((total - correct) * n / total) if total else 0
    return n, n - wrong


def below_on_fleet(counts: Iterable[tuple[int, int]], bound: float, alpha: float) -> Below:
    """Return whether the mean of devices' shares is below `bound`, from (correct, total) of each.

    A bet against "the mean is at least the bound": the device is the unit, each share a number
    from 0 to 1, whatever its distribution and however many samples it rests on. Under that
    claim each factor 1 + c (bound - share) / (1 - bound) has a mean of at most 1, so a mixture
    of their products reaches 1 / alpha with a probability of at most alpha. No normal
    approximation: it holds with few devices, where it seldom says "below". 20 alike devices
    that are ten points below a bound of 90% show it at an alpha of 0.0001.

    Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
    betting"; Ville's inequality.
    """
    pairs = [(correct, total) for correct, total in counts if total > 0]
    samples = sum(total for _, total in pairs)
    if not pairs:
        return _judged("no_data", (bound, alpha), None, 1.0, (0, 0))
    shares = [correct / total for correct, total in pairs]
    wanted = -math.log(alpha)
    low, high = 0.0, 1.0
    if _log_wealth(shares, math.nextafter(1.0, 0.0)) < wanted:
        low = 1.0
    # Wealth grows with the claim: what is believable ends where it reaches 1 / alpha.
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if _log_wealth(shares, middle) >= wanted:
            high = middle
        else:
            low = middle
    verdict: Literal["below", "not_below"] = "below" if high <= bound else "not_below"
    mean = sum(shares) / len(shares)
    return _judged(verdict, (bound, alpha), mean, high, (samples, len(pairs)))


def _log_wealth(shares: list[float], claim: float) -> float:
    """Return the logarithm of the mixture of bets against "the mean is at least `claim`"."""
    if claim >= 1:
        return math.inf if any(share < 1 for share in shares) else 0.0
    ratios = [(1 - share) / (1 - claim) - 1 for share in shares]
    logs = [sum(math.log1p(bet * ratio) for ratio in ratios) for bet in _BETS]
    peak = max(logs)
    return peak + math.log(sum(math.exp(log - peak) for log in logs) / len(logs))


def _judged(
    verdict: Literal["below", "not_below", "no_data"],
    limit: tuple[float, float],
    share: float | None,
    high: float,
    seen_on: tuple[int, int],
) -> Below:
    bound, alpha = limit
    samples, devices = seen_on
    if share is None:
        text = f"no labelled answers to hold against {100 * bound:.1f}%"
    else:
        on = "one device" if devices == 1 else f"{devices} devices"
        found = "below" if verdict == "below" else "not shown to be below"
        text = (
            f"{100 * share:.1f}% of {samples} on {on}, at most {100 * high:.1f}%: "
            f"{found} {100 * bound:.1f}% (error {alpha:.2g} a look)"
        )
    return Below(verdict, bound, alpha, share, high, samples, devices, text)
