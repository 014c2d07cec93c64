"""Alerts of verdicts: exact rates of the latch, and bounds that need no independence."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.statistics.drift import DriftPolicy, false_alerts_per_year
from fleet.core.statistics.hysteresis import Hysteresis, Latch

rules = st.builds(
    lambda of, needed, quiet: Hysteresis(min(needed, of), of, quiet),
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 8),
)  # fmt: skip


def followed(rule: Hysteresis, alarms: list[bool | None]) -> list[bool]:
    latch, raised = Latch(), []
    for alarm in alarms:
        latch = rule.after(latch, alarm)
        raised.append(latch.raised)
    return raised


def raises(raised: list[bool]) -> int:
    return sum(now and not before for before, now in itertools.pairwise([False, *raised]))


def test_two_of_three_raise_and_two_silent_ones_end() -> None:
    rule = Hysteresis(needed=2, of=3, quiet=2)

    assert followed(rule, [True, False, True, False, True, False, False, True]) == [
        False, False, True, True, True, True, False, False,
    ]  # fmt: skip


def test_a_window_that_cannot_tell_neither_raises_nor_ends() -> None:
    rule = Hysteresis(needed=2, of=2, quiet=2)

    assert followed(rule, [True, None, None, True]) == [False, False, False, True]
    assert followed(rule, [True, True, False, None, None]) == [False, True, True, True, True]


@given(rules, st.lists(st.one_of(st.none(), st.booleans()), max_size=60))
def test_windows_that_cannot_tell_change_nothing_wherever_they_are(
    rule: Hysteresis, alarms: list[bool | None]
) -> None:
    without = [alarm for alarm in alarms if alarm is not None]

    assert raises(followed(rule, alarms)) == raises(followed(rule, without))


@given(rules, st.lists(st.booleans(), max_size=80))
def test_alerts_never_exceed_the_bound_that_needs_no_independence(
    rule: Hysteresis, alarms: list[bool]
) -> None:
    assert raises(followed(rule, alarms)) * rule.needed <= sum(alarms)
    if alarms:
        bound = rule.most_raises_per_window(sum(alarms) / len(alarms))
        assert raises(followed(rule, alarms)) / len(alarms) <= bound + 1e-12


def plain_rate(rule: Hysteresis, rate: float) -> float:
    """Return the share of windows that raise, from the chain's equations solved by numpy."""
    states, places = [Latch()], {Latch(): 0}
    for state in states:
        for alarm in (True, False):
            if (later := rule.after(state, alarm)) not in places:
                places[later] = len(states)
                states.append(later)
    moves = np.zeros((len(states), len(states)))
    for state in states:
        for alarm, chance in ((True, rate), (False, 1 - rate)):
            moves[places[state], places[rule.after(state, alarm)]] += chance
    equations = np.vstack([moves.T - np.eye(len(states)), np.ones(len(states))])
    share = np.linalg.lstsq(equations, [*[0.0] * len(states), 1.0], rcond=None)[0]
    return float(
        sum(
            share[places[state]] * rate
            for state in states
            if not state.raised and rule.after(state, True).raised
        )
    )


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2, 0.5])
@pytest.mark.parametrize("rule", [Hysteresis(), Hysteresis(2, 3, 2), Hysteresis(1, 1, 1),
                                  Hysteresis(2, 5, 4)])  # fmt: skip
def test_the_rate_of_alerts_is_that_of_the_chain(rule: Hysteresis, rate: float) -> None:
    assert rule.raises_per_window(rate) == pytest.approx(plain_rate(rule, rate), rel=1e-6)


def test_a_latch_of_single_windows_raises_as_often_as_an_alarm_follows_silence() -> None:
    assert Hysteresis(1, 1, 1).raises_per_window(0.2) == pytest.approx(0.2 * 0.8, rel=1e-9)


def test_the_stated_rate_is_that_of_a_simulated_device() -> None:
    rule, rate, windows = Hysteresis(), 0.1, 100_000
    alarms = (np.random.default_rng(1).random(windows) < rate).tolist()

    seen = raises(followed(rule, alarms))

    expected = windows * rule.raises_per_window(rate)
    assert abs(seen - expected) <= 4 * np.sqrt(expected)


def test_false_alerts_a_year_follow_from_the_rate_and_the_pace() -> None:
    hourly = false_alerts_per_year(3600)
    six_hours = false_alerts_per_year(6 * 3600)

    # Three in a row of one in a hundred each, 8,760 times a year: less than one in a century.
    assert hourly.independent == pytest.approx(8760 * 1e-6, rel=0.02)
    assert hourly.any_dependence == pytest.approx(8760 * DriftPolicy().rate / 3)
    assert six_hours.independent == pytest.approx(hourly.independent / 6)


@pytest.mark.parametrize("wrong", [(0, 1, 1), (2, 1, 1), (1, 9, 1), (1, 1, 0), (1, 1, 9)])
def test_impossible_rules_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="hysteresis: expected"):
        Hysteresis(*wrong)
