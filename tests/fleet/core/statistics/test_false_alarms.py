"""Windows without any drift, and with some: how often does the verdict alarm?"""

import math

import numpy as np
import pytest

from fleet.core.statistics.distances import population_stability_index
from fleet.core.statistics.drift import DriftPolicy, false_alerts_per_year
from fleet.core.statistics.intervals import clopper_pearson
from fleet.core.statistics.tails import chi_square_tail
from tests.fleet.core.statistics.streams import (
    BINS,
    FEATURES,
    SETTINGS,
    Setting,
    raises,
    reference_of,
    shifted_by,
    verdicts,
    without_a_value,
)

WINDOWS = 2_000
POLICY = DriftPolicy()
LEVEL = 0.05
"""Of the test that the true rate is below the stated one: were it not, so few alarms as are
asked for would be seen one time in twenty."""


def at_most(k: int, n: int, rate: float) -> float:
    """Return how likely at most k of n windows alarm, each with this probability."""
    return math.fsum(
        math.exp(
            math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
            + i * math.log(rate) + (n - i) * math.log1p(-rate)
        )
        for i in range(k + 1)
    )  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_windows_without_drift_alarm_less_often_than_stated(setting: Setting) -> None:
    streams = list(verdicts(setting, WINDOWS, seed=11))

    told = [alarm for stream in streams for alarm in stream if alarm is not None]
    alarms = sum(told)
    high = clopper_pearson(alarms, WINDOWS, confidence=1 - 2 * LEVEL)[1]
    alerts = sum(raises(POLICY.hysteresis, stream) for stream in streams)
    hours = 24 * 365
    print(
        f"{setting}: {alarms} of {WINDOWS} windows alarm, {len(told)} told; at most {high:.2%}, "
        f"stated {POLICY.rate:.0%}. {alerts} alerts after hysteresis; of {hours} such windows a "
        f"year {hours * POLICY.hysteresis.raises_per_window(high):.4f} a device, and "
        f"{hours * POLICY.hysteresis.most_raises_per_window(high):.0f} whatever their dependence"
    )
    assert len(told) > 0.9 * WINDOWS
    assert at_most(alarms, WINDOWS, POLICY.rate) <= LEVEL
    stated = false_alerts_per_year(every_s=3600)
    assert hours * POLICY.hysteresis.raises_per_window(high) <= stated.independent
    assert alerts / WINDOWS * hours <= stated.any_dependence


def test_a_stream_that_repeats_itself_too_much_for_its_length_gets_no_verdict() -> None:
    setting = Setting(10_000, 1_000, 0.9, 20)

    told = [alarm for stream in verdicts(setting, 800, seed=5) for alarm in stream]

    assert sum(alarm is None for alarm in told) > 0.99 * 800
    assert sum(alarm is True for alarm in told) <= POLICY.rate * 800


@pytest.mark.parametrize(("samples", "repeats"), [(100, 0.2), (200, 0.2), (1_000, 0.6)])
def test_of_streams_near_too_few_samples_no_more_windows_alarm_than_stated(
    samples: int, repeats: float
) -> None:
    """Most get no verdict. Those that do are the ones whose repetition was measured too low."""
    setting = Setting(10_000, samples, repeats)

    alarms = [alarm for stream in verdicts(setting, WINDOWS, seed=6) for alarm in stream]

    print(f"{setting}: {sum(map(bool, alarms))} of {WINDOWS}, {alarms.count(None)} untold")
    assert clopper_pearson(sum(map(bool, alarms)), WINDOWS, confidence=0.9)[0] <= POLICY.rate


@pytest.mark.parametrize(
    ("what", "changed", "samples", "least"),
    [
        ("a shift by 1 deviation", shifted_by(1.0), 100, 0.9),
        ("a shift by 0.5 deviations", shifted_by(0.5), 1_000, 0.99),
        ("a shift by 0.35 deviations", shifted_by(0.35), 1_000, 0.9),
        ("a shift by 0.35 deviations", shifted_by(0.35), 10_000, 0.99),
        ("5% NaN", without_a_value(0.05), 1_000, 0.95),
        ("20% NaN", without_a_value(0.2), 100, 0.95),
    ],
)
def test_planted_drift_is_found(what, changed, samples, least) -> None:
    streams = verdicts(Setting(10_000, samples), 400, seed=3, changed=changed)

    power = np.mean([bool(alarm) for stream in streams for alarm in stream])

    print(f"{what} of one feature in {FEATURES}, {samples} samples: found in {power:.1%}")
    assert power >= least


def test_planted_drift_is_found_in_a_stream_that_repeats_itself() -> None:
    setting = Setting(10_000, 10_000, 0.9, 20)

    streams = verdicts(setting, 200, seed=3, changed=shifted_by(0.5))

    assert np.mean([bool(alarm) for stream in streams for alarm in stream]) >= 0.95


def test_a_trifle_is_no_alarm_however_many_samples_there_are() -> None:
    streams = verdicts(Setting(10_000, 10_000), 800, seed=3, changed=shifted_by(0.1))

    assert np.mean([bool(alarm) for stream in streams for alarm in stream]) <= POLICY.rate


def test_rules_of_thumb_alarm_more_often_than_stated() -> None:
    """The negative control: what others do fails the same bar."""
    random = np.random.default_rng(2)

    by_psi = by_chi_square = 0
    for _ in range(WINDOWS):
        reference, shares = reference_of(random, 1_000)
        few = random.multinomial(100, shares)[:BINS]
        by_psi += population_stability_index(reference[:BINS], few.tolist()) > 0.1
        many = random.multinomial(1_000, shares)[:BINS]
        expected = np.array(reference[:BINS]) * many.sum() / 1_000
        by_chi_square += (
            chi_square_tail(float(((many - expected) ** 2 / expected).sum()), BINS - 1)
            < POLICY.rate
        )

    print(f"PSI > 0.1: {by_psi / WINDOWS:.1%}; reference for exact: {by_chi_square / WINDOWS:.1%}")
    for alarms in (by_psi, by_chi_square):
        assert clopper_pearson(alarms, WINDOWS, confidence=0.9)[0] > 3 * POLICY.rate
