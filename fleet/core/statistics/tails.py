"""Tails and quantiles of the few distributions that verdicts rest on.

All are accurate to about 1e-12, relative for tails; tests compare them with closed forms.

Source: Press et al. 2007, "Numerical Recipes", chapter 6 (series and continued fractions).
"""

import math
from collections.abc import Callable
from functools import lru_cache

_TINY = 1e-300
_EPSILON = 1e-15
_STEPS = 100_000


def chi_square_tail(statistic: float, freedom: float) -> float:
    """Return how likely a chi-square of `freedom` degrees reaches `statistic` or more.

    Raises:
        ValueError: there is no degree of freedom.
    """
    if freedom <= 0:
        raise ValueError(f"degrees of freedom: expected more than 0, got {freedom}")
    return gamma_tail(freedom / 2, statistic / 2)


def gamma_tail(shape: float, x: float) -> float:
    """Return the regularised upper incomplete gamma function Q(shape, x)."""
    if x <= 0:
        return 1.0
    scale = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        return max(0.0, 1 - scale * _gamma_series(shape, x))
    return scale * _gamma_fraction(shape, x)


def _gamma_series(shape: float, x: float) -> float:
    term = total = 1 / shape
    for step in range(1, _STEPS):
        term *= x / (shape + step)
        total += term
        if term < total * _EPSILON:
            break
    return total


def _gamma_fraction(shape: float, x: float) -> float:
    """Lentz's method."""
    b = x + 1 - shape
    c = 1 / _TINY
    d = 1 / b
    value = d
    for step in range(1, _STEPS):
        a = -step * (step - shape)
        b += 2
        d = 1 / _away_from_zero(a * d + b)
        c = _away_from_zero(b + a / c)
        value *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    return value


def beta_below(x: float, a: float, b: float) -> float:
    """Return how likely a Beta(a, b) is at most `x`: the regularised incomplete beta function."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    scale = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return scale * _beta_fraction(x, a, b) / a
    return 1 - scale * _beta_fraction(1 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    c = 1.0
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for step in range(1, _STEPS):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        d = 1 / _away_from_zero(1 + even * d)
        c = _away_from_zero(1 + even / c)
        value *= c * d
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        d = 1 / _away_from_zero(1 + odd * d)
        c = _away_from_zero(1 + odd / c)
        value *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    return value


def _away_from_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY


def t_tail(statistic: float, freedom: float) -> float:
    """Return how likely Student's t of `freedom` degrees reaches `statistic` or more."""
    outer = beta_below(freedom / (freedom + statistic * statistic), freedom / 2, 0.5) / 2
    return outer if statistic >= 0 else 1 - outer


def f_tail(statistic: float, above: float, below: float) -> float:
    """Return how likely an F of `above` and `below` degrees reaches `statistic` or more."""
    if statistic <= 0:
        return 1.0
    return beta_below(below / (below + above * statistic), below / 2, above / 2)


def normal_tail(z: float) -> float:
    """Return how likely a standard normal reaches `z` or more."""
    return math.erfc(z / math.sqrt(2)) / 2


@lru_cache(maxsize=256)
def normal_quantile(tail: float) -> float:
    """Return what a standard normal reaches with probability `tail`."""
    return _invert(normal_tail, tail, -40.0, 40.0)


@lru_cache(maxsize=256)
def t_quantile(tail: float, freedom: float) -> float:
    """Return what Student's t reaches with probability `tail`, below one half."""
    high = 2.0
    while t_tail(high, freedom) > tail:
        high *= 2
    return _invert(lambda t: t_tail(t, freedom), tail, 0.0, high)


def beta_quantile(share: float, a: float, b: float) -> float:
    """Return what a Beta(a, b) stays below with probability `share`."""
    return _invert(lambda x: -beta_below(x, a, b), -share, 0.0, 1.0)


def _invert(falling: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Return where a falling function has a value, by halving."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if falling(middle) > value:
            low = middle
        else:
            high = middle
    return (low + high) / 2
