import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.statistics.intervals import clopper_pearson, of_device, of_fleet, wilson
from fleet.core.statistics.tails import beta_below


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (9, 10, 0.5958, 0.9821),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_the_interval_is_wilsons(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_solves_its_equation(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))

    for bound in wilson(correct, total):
        if 1e-9 < bound < 1 - 1e-9:
            error = abs(correct / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert error == pytest.approx(1.959964, rel=1e-3)


def binomial_reaches(k: int, n: int, p: float) -> float:
    """Summed term by term: slow and plain."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@given(st.integers(1, 60), st.data())
def test_the_exact_interval_leaves_a_fortieth_on_either_side(total, data):
    correct = data.draw(st.integers(0, total))

    low, high = clopper_pearson(correct, total)

    if correct:
        assert binomial_reaches(correct, total, low) == pytest.approx(0.025, rel=1e-6)
    if correct < total:
        assert 1 - binomial_reaches(correct + 1, total, high) == pytest.approx(0.025, rel=1e-6)
    assert (low == 0) == (correct == 0)
    assert (high == 1) == (correct == total)


def test_intervals_of_more_samples_are_narrower():
    for interval in (wilson, clopper_pearson):
        widths = [high - low for low, high in (interval(9 * n, 10 * n) for n in (1, 10, 100, 1000))]

        assert all(wide > narrow for wide, narrow in pairwise(widths))


FLEETS = 2_000


def coverage(truth, fleets):
    """How often Wilson's interval of all answers, and that of the fleet, hold the truth."""
    pooled = clustered = 0
    for devices in fleets:
        low, high = wilson(sum(x for x, _ in devices), sum(n for _, n in devices))
        pooled += low <= truth <= high
        share = of_fleet(devices)
        clustered += share.low <= truth <= share.high
    return pooled / FLEETS, clustered / FLEETS


@pytest.mark.parametrize(
    ("effects", "devices", "answers"),
    [
        ((2, 2), 30, (100, 100)),
        ((2, 2), 30, (5, 400)),
        ((18, 2), 30, (100, 100)),
        ((18, 2), 100, (5, 400)),
        ((18, 2), 5, (100, 100)),
        ((49, 1), 3, (5, 400)),
        ((49, 1), 30, (5, 400)),
    ],
)
def test_the_interval_of_a_fleet_holds_its_mean_where_wilsons_does_not(effects, devices, answers):
    random = np.random.default_rng(7)
    fleets = []
    for _ in range(FLEETS):
        n = random.integers(*answers, size=devices, endpoint=True)
        x = random.binomial(n, random.beta(*effects, size=devices))
        fleets.append(list(zip(x.tolist(), n.tolist(), strict=True)))

    pooled, clustered = coverage(effects[0] / sum(effects), fleets)

    print(f"Beta{effects}, {devices} devices, {answers}: Wilson {pooled:.3f}, ours {clustered:.3f}")
    assert pooled < 0.85
    assert 0.93 <= clustered <= 0.99


def test_a_pooled_interval_of_devices_that_differ_much_holds_a_third_of_the_time():
    random = np.random.default_rng(1)
    fleets = []
    for _ in range(FLEETS):
        x = random.binomial(100, random.beta(2, 2, size=100))
        fleets.append([(k, 100) for k in x.tolist()])

    pooled, clustered = coverage(0.5, fleets)

    assert pooled == pytest.approx(0.34, abs=0.03)
    assert clustered == pytest.approx(0.95, abs=0.015)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=20))
def test_a_fleets_interval_holds_its_share_and_is_never_narrower_than_that_of_its_answers(raw):
    counts = [(min(x, n), n) for x, n in raw]

    share = of_fleet(counts)

    if share is None:
        assert all(n == 0 for _, n in counts)
        return
    low, high = wilson(sum(x for x, _ in counts), share.samples)
    assert 0 <= share.low <= low <= share.share <= high <= share.high <= 1
    assert share.devices == sum(1 for _, n in counts if n)


def test_one_device_says_nothing_of_others_and_is_shown_as_itself():
    assert of_fleet([(9, 10), (0, 0)]) == of_device(9, 10)
    assert of_device(9, 10).text == "90.0% (59.6 to 98.2%) of 10 on one device"


def test_two_devices_that_differ_say_next_to_nothing():
    share = of_fleet([(99, 100), (70, 100)])

    assert (share.low, share.high) == (0.0, 1.0)


def test_devices_that_do_not_differ_leave_the_error_of_their_answers():
    share = of_fleet([(10, 10)] * 20)

    assert (share.low, share.high) == wilson(200, 200)


def test_nothing_has_no_share():
    assert of_fleet([]) is None
    assert of_fleet([(0, 0)]) is None
    assert of_device(0, 0) is None


def test_the_beta_distribution_is_that_of_the_order_of_uniform_numbers():
    # The third smallest of ten is at most x when at least three are.
    assert beta_below(0.3, 3, 8) == pytest.approx(binomial_reaches(3, 10, 0.3), rel=1e-12)
