"""Quantiles of merged histograms against numpy's, on data that sketches are bad at."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.statistics.quantiles import quantile, quantiles, share_above
from wire.telemetry import LATENCY_ERROR, Histogram

PLACES = (0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
ROUNDING = 1e-9
GAMMA = (1 + LATENCY_ERROR) / (1 - LATENCY_ERROR)


def histogram(values: np.ndarray) -> Histogram:
    bins: dict[int, int] = {}
    for value in values.tolist():
        place = Histogram.bin_of(value)
        bins[place] = bins.get(place, 0) + 1
    return Histogram(bins=bins)


def merged(values: np.ndarray, parts: int) -> Histogram:
    whole = Histogram()
    for part in np.array_split(values, parts):
        whole = whole.merge(histogram(part))
    return whole


def worst_error(values: np.ndarray, parts: int = 7) -> float:
    """Return the largest relative error at any of the places."""
    sketch, errors = merged(values, parts), []
    for q in PLACES:
        found = quantile(sketch, q)
        assert found is not None
        true = float(np.quantile(values, q, method="lower"))
        errors.append(abs(found.value - true) / true)
    return max(errors)


def drawn(name: str, n: int) -> np.ndarray:
    random = np.random.default_rng(n)
    match name:
        case "log-normal":
            return 1 + random.lognormal(8, 2, n)
        case "Pareto without a mean":
            return 1 + random.pareto(0.3, n)
        case "Cauchy":
            return 1 + np.abs(random.standard_cauchy(n)) * 1000
        case "a constant":
            return np.full(n, 1234.5)
        case "two clusters, a million times apart":
            return np.where(random.random(n) < 0.5, 3.0, 3e6) * random.uniform(1, 1.001, n)
        case "a slow mode of one in a hundred":
            return np.where(np.arange(n) % 100 == 99, 5e6, 800.0) * random.uniform(0.9, 1.1, n)
        case "sorted":
            return np.sort(random.lognormal(6, 1, n)) + 1
        case "sorted down":
            return np.sort(random.lognormal(6, 1, n))[::-1] + 1
        case "powers of two":
            return 2.0 ** random.integers(0, 40, n)
        case "edges of bins":
            return GAMMA ** random.integers(1, 900, n).astype(float)
        case _:
            raise AssertionError(name)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101, 5_000])
@pytest.mark.parametrize(
    "name",
    [
        "log-normal",
        "Pareto without a mean",
        "Cauchy",
        "a constant",
        "two clusters, a million times apart",
        "a slow mode of one in a hundred",
        "sorted",
        "sorted down",
        "powers of two",
        "edges of bins",
    ],
)
def test_a_quantile_is_within_a_hundredth_of_numpys(name: str, n: int) -> None:
    values = drawn(name, n)

    assert worst_error(values) <= LATENCY_ERROR + ROUNDING


@given(
    st.lists(st.floats(1, 1e17), min_size=1, max_size=60), st.integers(1, 5), st.floats(0, 1)
)  # fmt: skip
def test_any_quantile_of_any_values_is_within_a_hundredth_of_numpys(
    values: list[float], parts: int, q: float
) -> None:
    found = quantile(merged(np.array(values), parts), q)

    true = float(np.quantile(values, q, method="lower"))
    assert found is not None
    assert found.value == pytest.approx(true, rel=LATENCY_ERROR + ROUNDING)
    assert found.low <= true * (1 + ROUNDING)
    assert found.high >= true * (1 - ROUNDING)


def test_what_is_faster_than_a_microsecond_counts_as_one() -> None:
    found = quantile(histogram(np.array([0.0, 0.3, 1.0])), 0.5)

    assert found is not None
    assert found.value == pytest.approx(1.0, rel=LATENCY_ERROR + ROUNDING)


def reached(n: int, q: float) -> np.ndarray:
    """Return how likely at most k of n values are below the quantile, for each k."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(q) + (n - k) * math.log1p(-q)
        for k in range(n + 1)
    ]  # fmt: skip
    return np.cumsum(np.exp(logs))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_the_interval_holds_the_quantile_of_all_there_will_be(q: float) -> None:
    """Exactly, whatever the distribution: only ranks matter, and ranks are binomial."""
    for n in (1, 5, 20, 50, 100, 120, 300, 1_000, 2_000):
        # Values far apart, so that each has a bin of its own and tells its rank.
        ranks = np.arange(n)
        bins = dict.fromkeys(ranks.tolist(), 1)
        found = quantile(Histogram(bins=bins), q)
        assert found is not None
        below = reached(n, q)

        low = -1 if found.low == 0 else round(math.log(found.low, GAMMA)) + 1
        high = n if math.isinf(found.high) else round(math.log(found.high, GAMMA))
        too_high = below[low] if low >= 0 else 0.0
        too_low = 1 - below[high] if high < n else 0.0

        assert too_high <= 0.025
        assert too_low <= 0.025


def test_few_values_bound_no_high_percentile() -> None:
    found = quantile(histogram(np.full(50, 700.0)), 0.99)

    assert found is not None
    assert found.high == math.inf
    assert found.low == pytest.approx(700, rel=0.03)


def test_nothing_has_no_quantile_and_no_share() -> None:
    assert quantile(Histogram(), 0.5) is None
    assert quantiles(Histogram()) == ()
    assert share_above(Histogram(), 1000.0) is None


def test_the_share_above_a_limit_is_that_of_the_values_but_for_the_limits_own_bin() -> None:
    values = np.random.default_rng(1).lognormal(6, 1, 5_000) + 1
    for limit in (20.0, 400.0, 3000.0, 1e6):
        share = share_above(histogram(values), limit)

        assert share is not None
        assert np.mean(values > limit * 1.02) <= share <= np.mean(values > limit / 1.02)


def test_several_quantiles_rise() -> None:
    found = quantiles(histogram(np.random.default_rng(2).lognormal(6, 1, 500) + 1))

    assert [each.q for each in found] == [0.5, 0.9, 0.95, 0.99]
    assert sorted(each.value for each in found) == [each.value for each in found]
    assert all(each.low <= each.value <= each.high for each in found)
