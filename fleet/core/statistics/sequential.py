"""Tests over devices that may be looked at after every device, without erring more often for it.

Each is an e-process: while its null hypothesis holds, it ever reaches 1 / alpha with probability
at most alpha, however often one looks (Ville's inequality). The unit is the device, since answers
of one device resemble each other; every device's value is counted once, and never changed.

Source: Ville 1939; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables
by betting"; Lai 1976, "On confidence sequences" (the studentised mixture).
"""

import math
from dataclasses import dataclass

BETS = tuple((i + 0.5) / 20 for i in range(20))
"""Shares of what may be staked, the same weight on each: nobody knows the best one before."""

_MOST = 690.0
"""Of a logarithm: e-values are told up to 1e299."""

EFFECT_VARIANCE = 0.3
"""Of the effects, in standard deviations between devices, that `Mean` looks for."""


@dataclass(frozen=True, slots=True)
class Bets:
    """Bets against "the mean of values in [-1, 1] is at most 0", one value after the other.

    The values may have any distribution, and a mean of their own each, as long as none is above
    0 given those before.
    """

    values: int = 0
    logs: tuple[float, ...] = (0.0,) * len(BETS)
    """Of what each bet made of 1."""

    def after(self, value: float) -> "Bets":
        """Return the bets after one more value.

        Raises:
            ValueError: the value is not in [-1, 1].
        """
        if not -1 <= value <= 1:
            raise ValueError(f"expected a value from -1 to 1, got {value}")
        if value == 0:
            return Bets(self.values + 1, self.logs)
        logs = tuple(log + math.log1p(b * value) for log, b in zip(self.logs, BETS, strict=True))
        return Bets(self.values + 1, logs)

    @property
    def e(self) -> float:
        """How many times the stake they made: 1 at the start."""
        return _mean(self.logs)


@dataclass(frozen=True, slots=True)
class Mean:
    """A studentised test of "the mean is at most 0" for values of unknown spread.

    The value is the ratio of likelihoods of the t statistic, mixed over normal effects of both
    signs, and twice that, since only a positive mean counts: ever to reach 1 / alpha on either
    side has probability 2 alpha at most at the boundary, and the two sides are alike. That is
    exact for normal values and holds well for means of a hundred pairs; not where a few devices
    differ wildly from the rest, so it lets a rollout go on and never ends one.
    """

    values: int = 0
    total: float = 0.0
    squares: float = 0.0

    def after(self, value: float) -> "Mean":
        """Return the test after one more value."""
        return Mean(self.values + 1, self.total + value, self.squares + value * value)

    @property
    def mean(self) -> float:
        """The mean so far; 0 without a value."""
        return self.total / self.values if self.values else 0.0

    @property
    def e(self) -> float:
        """The e-value for a positive mean: 0 while the mean is not, 1 while there is no spread."""
        n = self.values
        if n < 2:
            return 1.0
        if self.total <= 0:
            return 0.0
        explained = self.total * self.total / n
        # Equal values have no spread to measure by; rounding may leave a little of it.
        residual = self.squares - explained
        if residual <= 1e-12 * self.squares:
            return 1.0
        ratio = explained / residual
        wider = 1 + n * EFFECT_VARIANCE
        log = (
            math.log(2)
            - math.log(wider) / 2
            + n / 2 * (math.log1p(ratio) - math.log1p(ratio / wider))
        )
        return math.exp(min(log, _MOST))


def share_above(count: int, total: int, share: float) -> float:
    """Return the e-value against "at most `share` of devices do", when `count` of `total` did.

    `total` are all that may: those that have not yet count as not doing it. The value grows with
    `count`, so what is seen before all have answered is never more than what will be seen then,
    and it may be looked at any time. It is a mixture over the shares above the one supposed.

    Raises:
        ValueError: counts that cannot be, or a share that is not between 0 and 1.
    """
    if not 0 <= count <= total:
        raise ValueError(f"expected 0 <= count <= total, got {count} of {total}")
    if not 0 < share < 1:
        raise ValueError(f"share: expected between 0 and 1, got {share}")
    shares = [share + (1 - share) * bet for bet in BETS]
    return _mean(
        tuple(
            count * math.log(other / share) + (total - count) * math.log((1 - other) / (1 - share))
            for other in shares
        )
    )


def least_count(total: int, share: float, alpha: float) -> int | None:
    """Return how many of `total` it takes for `share_above` to reach 1 / alpha; None: too few."""
    low, high = 0, total
    if share_above(total, total, share) * alpha < 1:
        return None
    while low < high:
        middle = (low + high) // 2
        if share_above(middle, total, share) * alpha >= 1:
            high = middle
        else:
            low = middle + 1
    return low


def least_values(alpha: float) -> int:
    """Return how many values, all as bad as can be, it takes for `Bets` to reach 1 / alpha."""
    bets = Bets()
    while bets.e * alpha < 1:
        bets = bets.after(1.0)
    return bets.values


def _mean(logs: tuple[float, ...]) -> float:
    peak = max(logs)
    total = peak + math.log(sum(math.exp(log - peak) for log in logs) / len(logs))
    return math.exp(min(total, _MOST))
