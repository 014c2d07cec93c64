"""Tests that may be looked at after every device: exact values, and how often they err."""

import math
import random

import pytest

from fleet.core.statistics.sequential import (
    BETS,
    EFFECT_VARIANCE,
    Bets,
    Mean,
    least_count,
    least_values,
    share_above,
)
from fleet.core.statistics.tails import beta_below

ALPHA = 0.05
RUNS, DEVICES = 400, 100


def crossed(values: list[float], alpha: float) -> int | None:
    """After how many values the bets reach 1 / alpha."""
    bets = Bets()
    for place, value in enumerate(values, start=1):
        bets = bets.after(value)
        if bets.e >= 1 / alpha:
            return place
    return None


def win_shares(source: random.Random, lean: float, discordance: float = 0.06) -> list[float]:
    """(b - c) / (b + c) of devices with effects of their own, 100 labelled pairs each."""
    values = []
    for _ in range(DEVICES):
        worse = source.betavariate(2, 2) * (1 - lean) + lean
        b = c = 0
        for _ in range(100):
            if source.random() < discordance:
                if source.random() < worse:
                    b += 1
                else:
                    c += 1
        values.append((b - c) / (b + c) if b + c else 0.0)
    return values


def test_the_stake_is_the_mean_of_the_products_of_all_bets():
    values = [0.5, -0.25, 1.0, 0.0]

    bets = Bets()
    for value in values:
        bets = bets.after(value)

    products = [math.prod(1 + bet * value for value in values) for bet in BETS]
    assert bets.e == pytest.approx(sum(products) / len(products))
    assert bets.values == 4


def test_the_order_of_devices_changes_nothing():
    values = win_shares(random.Random(3), 0.2)
    forth, back = Bets(), Bets()
    for value in values:
        forth = forth.after(value)
    for value in reversed(values):
        back = back.after(value)

    assert forth.e == pytest.approx(back.e)


def test_the_mean_of_the_next_stake_is_the_stake_where_both_win_as_often():
    bets = Bets().after(0.4).after(-0.1)

    assert (bets.after(0.7).e + bets.after(-0.7).e) / 2 == pytest.approx(bets.e)


@pytest.mark.parametrize("value", [1.01, -2.0, math.nan])
def test_a_value_out_of_bounds_is_told(value):
    with pytest.raises(ValueError, match="-1 to 1"):
        Bets().after(value)


def test_equal_models_are_seldom_found_worse_however_often_one_looks():
    source = random.Random(11)

    false = sum(crossed(win_shares(source, 0.0), 0.03) is not None for _ in range(RUNS))

    assert false <= 0.03 * RUNS


def test_a_model_that_loses_five_of_six_disagreements_is_found_within_thirty_devices():
    source = random.Random(12)

    found = [crossed(win_shares(source, 0.8), 0.03) for _ in range(100)]

    assert sum(place is not None and place <= 30 for place in found) >= 95


def test_the_studentised_test_is_its_closed_form():
    values = [0.03, 0.01, 0.05, 0.02]
    mean = Mean()
    for value in values:
        mean = mean.after(value)

    n = len(values)
    average = sum(values) / n
    deviation = math.sqrt(sum((v - average) ** 2 for v in values) / (n - 1))
    t2 = (average / (deviation / math.sqrt(n))) ** 2
    wider = 1 + n * EFFECT_VARIANCE
    expected = 2 * wider**-0.5 * ((1 + t2 / (n - 1)) / (1 + t2 / (n - 1) / wider)) ** (n / 2)
    assert mean.e == pytest.approx(expected)


def test_the_studentised_test_has_no_opinion_without_spread_or_with_a_mean_below_zero():
    same, below = Mean(), Mean().after(-0.1).after(-0.2)
    for _ in range(50):
        same = same.after(0.02)

    assert same.e == 1.0
    assert below.e == 0.0
    assert Mean().e == Mean().after(3.0).e == 1.0


def test_at_the_boundary_the_studentised_test_errs_in_at_most_alpha():
    source = random.Random(13)
    erred = 0
    for _ in range(RUNS):
        mean = Mean()
        for _ in range(DEVICES):
            mean = mean.after(source.gauss(0.0, 0.036))
            if mean.e >= 1 / ALPHA:
                erred += 1
                break

    assert erred <= ALPHA * RUNS


def test_equal_models_are_seen_to_be_not_worse_than_two_points_by_sixty_devices():
    source = random.Random(14)
    seen = 0
    for _ in range(100):
        mean = Mean()
        for _ in range(60):
            mean = mean.after(source.gauss(0.02, 0.036))
            if mean.e >= 1 / ALPHA:
                seen += 1
                break

    assert seen >= 90


def test_a_share_is_judged_by_the_mixture_over_all_larger_ones():
    # Of many bets the mixture is an integral, a difference of incomplete beta functions.
    count, total, share = 7, 30, 0.05
    beta = math.exp(math.lgamma(8) + math.lgamma(24) - math.lgamma(32))
    area = beta * (1 - beta_below(share, 8, 24)) / (1 - share)
    expected = area / (share**count * (1 - share) ** (total - count))

    assert share_above(count, total, share) == pytest.approx(expected, rel=0.05)


def test_more_of_the_same_number_is_more_evidence():
    values = [share_above(count, 30, 0.05) for count in range(31)]

    assert values == sorted(values)
    assert values[0] < 1 < values[-1]


def test_a_share_that_is_as_supposed_seldom_looks_larger():
    source = random.Random(15)
    erred = 0
    for _ in range(RUNS):
        count = 0
        for total in range(1, DEVICES + 1):
            count += source.random() < 0.05
            if share_above(count, total, 0.05) >= 1 / ALPHA:
                erred += 1
                break

    assert erred <= ALPHA * RUNS


@pytest.mark.parametrize(("count", "total", "share"), [(3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.0)])
def test_counts_that_cannot_be_are_told(count, total, share):
    with pytest.raises(ValueError, match="expected"):
        share_above(count, total, share)


def test_how_many_it_takes_is_where_the_evidence_suffices():
    least = least_count(30, 0.05, 0.005)

    assert least is not None
    assert share_above(least, 30, 0.05) >= 200 > share_above(least - 1, 30, 0.05)
    assert least_count(1, 0.05, 0.005) is None


def test_two_devices_can_never_decide_about_accuracy():
    assert least_values(0.03) > 2
