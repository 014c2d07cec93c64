"""What confidence is worth, and accuracy estimated from it: closed forms and simulations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.statistics.calibration import (
    calibration_error,
    calibration_samples,
    estimated_accuracy,
    label_gap,
    reliability,
)
from tests.fleet.samples import sample_manifest
from wire.manifest import Baseline
from wire.telemetry import CONFIDENCE_BINS, MILLION, Estimate


def calibration(tops: np.ndarray, right: np.ndarray) -> dict[int, tuple[int, int, int]]:
    bins = np.minimum((tops * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    return {
        place: (
            int((bins == place).sum()),
            int(np.rint(tops[bins == place] * MILLION).sum()),
            int(right[bins == place].sum()),
        )
        for place in sorted(set(bins.tolist()))
    }


def estimate(sure: np.ndarray) -> Estimate:
    return Estimate(
        samples=len(sure),
        sum_p=int(np.rint(sure * MILLION).sum()),
        spread=int(np.rint(sure * (1 - sure) * MILLION).sum()),
    )


def test_a_calibration_error_by_hand() -> None:
    """Two bins: 0.92 promised and 0.8 right of ten, 0.55 promised and 0.75 right of four."""
    error = calibration_error({18: (10, 9_200_000, 8), 11: (4, 2_200_000, 3)})

    assert error is not None
    assert error.ece == pytest.approx((10 * 0.12 + 4 * 0.2) / 14)
    assert error.worst == pytest.approx(0.2)
    assert error.overconfidence == pytest.approx((9.2 + 2.2 - 11) / 14)
    assert error.samples == 14
    assert "of 14" in error.text
    assert "overconfident" in error.text


def test_the_points_of_a_diagram_rise_and_empty_ones_are_left_out() -> None:
    points = reliability({18: (10, 9_200_000, 8), 3: (0, 0, 0), 11: (4, 2_200_000, 3)})

    assert [(p.low, p.high) for p in points] == [(0.55, 0.6), (0.9, 0.95)]
    assert [p.confidence for p in points] == pytest.approx([0.55, 0.92])
    assert [p.accuracy.share for p in points] == [0.75, 0.8]


@pytest.mark.parametrize("labels", [100, 1_000, 10_000])
def test_a_perfectly_calibrated_model_shows_the_error_that_chance_brings(labels: int) -> None:
    random, seen, told = np.random.default_rng(labels), [], []
    for _ in range(200):
        tops = random.beta(5, 1.2, labels)
        error = calibration_error(calibration(tops, random.random(labels) < tops))
        assert error is not None
        seen.append(error.ece)
        told.append(error.by_chance)

    print(f"{labels} labels: ECE {np.mean(seen):.4f} in the mean, told {np.mean(told):.4f}")
    assert np.mean(told) == pytest.approx(np.mean(seen), rel=0.1)


@given(
    st.dictionaries(
        st.integers(0, 19), st.tuples(st.integers(0, 9), st.floats(0, 1), st.integers(0, 9))
    )
)
def test_errors_of_any_counts_are_shares(raw: dict[int, tuple[int, float, int]]) -> None:
    bins = {at: (n, round(n * p * MILLION), min(n, right)) for at, (n, p, right) in raw.items()}

    error = calibration_error(bins)

    if error is None:
        assert not any(n for n, _, _ in bins.values())
        return
    assert 0 <= abs(error.overconfidence) <= error.ece + 1e-12
    assert error.ece <= error.worst + 1e-12 <= 1 + 1e-6


@pytest.mark.parametrize("set_size", [200, 2_000])
def test_the_interval_of_an_estimate_holds_the_accuracy_with_its_calibrations_own_error(
    set_size: int,
) -> None:
    """A calibration of one number, the share of right answers, from so many labelled samples."""
    random, held, alone = np.random.default_rng(set_size), 0, 0
    true, answers, rounds = 0.95, 5_000, 1_000
    for _ in range(rounds):
        known = random.binomial(set_size, true) / set_size
        found = estimated_accuracy(estimate(np.full(answers, known)), set_size)
        assert found is not None and found.low is not None and found.high is not None
        right = random.binomial(answers, true) / answers
        held += found.low <= right <= found.high
        alone += abs(found.share - right) <= 1.96 * found.sampling_error

    print(f"calibrated on {set_size}: holds {held / rounds:.1%}, without its error "
          f"{alone / rounds:.1%}")  # fmt: skip
    assert held / rounds >= 0.92
    assert alone / rounds < held / rounds


def test_an_estimate_without_drift_is_right_and_after_concept_drift_is_blind() -> None:
    random = np.random.default_rng(4)
    sure = random.beta(6, 2, 20_000)
    right = random.random(20_000) < sure
    turned = random.random(20_000) < 1 - sure

    found = estimated_accuracy(estimate(sure), 5_000)

    assert found is not None and found.low is not None and found.high is not None
    assert found.low <= right.mean() <= found.high
    assert found.low > turned.mean() + 0.3
    assert "blind to concept drift" in found.text


def test_devices_that_differ_widen_an_estimate() -> None:
    devices = [(int(share * 1000 * MILLION), 1000) for share in (0.6, 0.8, 0.95, 0.99)]
    whole = Estimate(samples=4000, sum_p=sum(p for p, _ in devices), spread=400 * MILLION)

    alone = estimated_accuracy(whole, 1000)
    clustered = estimated_accuracy(whole, 1000, devices)

    assert alone is not None and clustered is not None
    assert alone.low is not None and clustered.low is not None
    assert clustered.share == alone.share
    assert clustered.low < alone.low - 0.1


def test_an_estimate_of_an_unknown_calibration_set_has_no_interval() -> None:
    found = estimated_accuracy(estimate(np.full(100, 0.9)), None)

    assert found is not None
    assert (found.low, found.high, found.calibration_error) == (None, None, None)
    assert estimated_accuracy(Estimate(), 100) is None


def test_the_size_of_a_calibration_set_is_told_or_that_of_the_baseline() -> None:
    manifest = sample_manifest()
    calibrated = manifest.model_copy(update={"calibration": ((0.0, 0.0), (1.0, 1.0))})
    baseline = calibrated.model_copy(update={"baseline": Baseline(samples=321)})
    told = baseline.model_copy(update={"metrics": {"calibration_samples": 777}})

    assert calibration_samples(manifest) is None
    assert calibration_samples(calibrated) is None
    assert calibration_samples(baseline) == 321
    assert calibration_samples(told) == 777


def gap_of(random: np.random.Generator, pick: np.ndarray, tops: np.ndarray) -> tuple[bool, float]:
    bins = np.minimum((tops * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    confidence = dict(enumerate(np.bincount(bins, minlength=CONFIDENCE_BINS).tolist()))
    found = label_gap(
        calibration(tops[pick], random.random(len(pick)) < 0.9),
        confidence,
        int(np.rint(tops * MILLION).sum()),
    )
    assert found is not None
    return found.typical, found.gap


def test_labels_of_a_random_sample_are_typical_and_those_of_sure_answers_are_not() -> None:
    random, rounds, untypical = np.random.default_rng(9), 500, 0
    for _ in range(rounds):
        tops = random.beta(5, 1.5, 1_000)
        pick = random.choice(1_000, 200, replace=False)
        untypical += not gap_of(random, pick, tops)[0]
    tops = random.beta(5, 1.5, 1_000)
    typical, gap = gap_of(random, np.argsort(tops)[-200:], tops)

    assert untypical <= 5  # two in a thousand are expected
    assert not typical
    assert gap > 0.1


def test_a_gap_of_all_answers_labelled_is_none() -> None:
    tops = np.random.default_rng(1).beta(5, 1.5, 300)

    typical, gap = gap_of(np.random.default_rng(1), np.arange(300), tops)

    assert typical
    assert math.isclose(gap, 0.0, abs_tol=1e-9)
    assert label_gap({}, {3: 5}, MILLION) is None
    assert label_gap({3: (1, 160_000, 1)}, {}, 0) is None
