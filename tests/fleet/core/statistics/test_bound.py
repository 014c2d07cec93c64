"""Below a bound: seldom said where it is not so, and said where it is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.statistics.bound import alpha_of_look, below_on_device, below_on_fleet
from fleet.core.statistics.intervals import clopper_pearson


def binomial(n: int, p: float) -> list[float]:
    return [
        math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            + k * math.log(p) + (n - k) * math.log1p(-p)
        )
        for k in range(n + 1)
    ]  # fmt: skip


@pytest.mark.parametrize("alpha", [0.1, 0.01, 1e-4])
@pytest.mark.parametrize("bound", [0.5, 0.9, 0.99])
def test_on_a_device_at_the_bound_below_is_said_no_more_often_than_alpha(
    bound: float, alpha: float
) -> None:
    for n in (1, 10, 100, 400):
        told = [below_on_device(k, n, bound, alpha).verdict == "below" for k in range(n + 1)]

        wrongly = math.fsum(p for p, said in zip(binomial(n, bound), told, strict=True) if said)
        assert wrongly <= alpha * (1 + 1e-9)
        # What is said of some right answers is said of fewer.
        assert told == sorted(told, reverse=True)


def test_on_a_device_the_highest_believable_share_is_clopper_and_pearsons() -> None:
    found = below_on_device(80, 100, 0.9, 0.025)

    assert found.high == pytest.approx(clopper_pearson(80, 100)[1], rel=1e-9)
    assert found.verdict == "below"
    assert found.text == (
        "80.0% of 100 on one device, at most 87.3%: below 90.0% (error 0.025 a look)"
    )


@given(st.integers(0, 2_000), st.integers(1, 2_000), st.floats(1, 50))
def test_answers_that_repeat_each_other_say_less(correct: int, total: int, effect: float) -> None:
    correct = min(correct, total)

    plain = below_on_device(correct, total, 0.9, 0.01)
    repeated = below_on_device(correct, total, 0.9, 0.01, design_effect=effect)

    assert repeated.high >= plain.high - 1e-9
    if repeated.verdict == "below":
        assert plain.verdict == "below"


def test_one_device_seldom_seems_worse_that_repeats_its_answers() -> None:
    """Each answer comes ten times: counted as they are, one window in five is called below."""
    random, windows = np.random.default_rng(2), 500
    wrongly = naive = 0
    for correct in random.binomial(40, 0.9, windows).tolist():
        wrongly += below_on_device(10 * correct, 400, 0.9, 0.05, 10).verdict == "below"
        naive += below_on_device(10 * correct, 400, 0.9, 0.05).verdict == "below"

    assert wrongly <= 0.05 * windows + 3 * math.sqrt(0.05 * 0.95 * windows)
    assert naive > 0.15 * windows


@pytest.mark.parametrize("devices", [1, 4, 20])
@pytest.mark.parametrize(("a", "b"), [(2, 2), (18, 2), (0.45, 0.05), (49, 1)])
def test_on_a_fleet_at_the_bound_below_is_said_no_more_often_than_alpha(
    a: float, b: float, devices: int
) -> None:
    random, fleets, alpha = np.random.default_rng(devices), 300, 0.05
    bound = a / (a + b)
    wrongly = 0
    for _ in range(fleets):
        n = random.integers(1, 60, devices)
        x = random.binomial(n, random.beta(a, b, devices))
        counts = zip(x.tolist(), n.tolist(), strict=True)
        wrongly += below_on_fleet(counts, bound, alpha).verdict == "below"

    assert clopper_pearson(wrongly, fleets, confidence=0.998)[0] <= alpha


@pytest.mark.parametrize(
    ("share", "devices", "alpha"), [(0.8, 20, 1e-4), (0.7, 12, 1e-3), (0.85, 60, 1e-3)]
)
def test_a_fleet_that_is_worse_is_found(share: float, devices: int, alpha: float) -> None:
    found = below_on_fleet([(round(100 * share), 100)] * devices, 0.9, alpha)

    assert found.verdict == "below"
    assert share < found.high <= 0.9
    assert (found.samples, found.devices) == (100 * devices, devices)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=12),
    st.floats(0.05, 0.99),
    st.floats(1e-6, 0.4),
)
def test_a_verdict_on_a_fleet_follows_from_its_bound_and_never_goes_below_its_share(
    raw: list[tuple[int, int]], bound: float, alpha: float
) -> None:
    counts = [(min(x, n), n) for x, n in raw]

    found = below_on_fleet(counts, bound, alpha)

    if not any(n for _, n in counts):
        assert (found.verdict, found.share, found.high) == ("no_data", None, 1.0)
        return
    assert found.share is not None
    assert found.high >= found.share - 1e-9
    assert (found.verdict == "below") == (found.high <= bound)


def test_the_looks_of_a_year_share_its_false_alarms() -> None:
    assert alpha_of_look(1.0, 3600) == pytest.approx(1 / 8760)
    assert alpha_of_look(1.0, 365 * 86_400.0 * 9) == 0.5
    assert 365 * 24 * 60 * alpha_of_look(0.1, 60) == pytest.approx(0.1)


def test_without_answers_nothing_is_below() -> None:
    assert below_on_device(0, 0, 0.9, 0.01).verdict == "no_data"
    assert below_on_device(0, 3, 0.9, 0.01, design_effect=5).verdict == "no_data"
    assert below_on_fleet([], 0.9, 0.01).text == "no labelled answers to hold against 90.0%"
