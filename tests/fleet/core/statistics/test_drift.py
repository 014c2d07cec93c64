"""Drift against a reference: found where it was planted, and seldom where nothing changed."""

import math

import numpy as np
import pytest

from fleet.core.statistics.distances import (
    hellinger,
    jensen_shannon,
    population_stability_index,
)
from fleet.core.statistics.drift import design_effect, feature_drift

WINDOWS = 400
EDGES = np.linspace(-2.5, 2.5, 21)


def binned(values: np.ndarray) -> list[int]:
    """Return counts as a device has them: bins, NaN, outside."""
    missing = int(np.isnan(values).sum())
    counts, _ = np.histogram(values[~np.isnan(values)], EDGES)
    return [*counts.tolist(), missing, len(values) - missing - int(counts.sum())]


def test_distances_of_the_same_and_of_nothing_in_common() -> None:
    assert population_stability_index([5, 5], [50, 50]) == 0.0
    assert jensen_shannon([4, 0], [0, 9]) == pytest.approx(1.0)
    assert hellinger([4, 0], [0, 9]) == pytest.approx(1.0)
    assert population_stability_index([1, 3], [3, 1]) == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match="same bins"):
        hellinger([1], [1, 2])


@pytest.mark.parametrize(("live", "reference"), [(100, 1000), (1000, 1000), (10_000, 10_000)])
def test_small_p_values_are_as_rare_as_they_say_while_nothing_changes(
    live: int, reference: int
) -> None:
    draw = np.random.default_rng(live + reference)
    small = 0
    for _ in range(WINDOWS):
        found = feature_drift(binned(draw.normal(size=reference)), binned(draw.normal(size=live)))
        assert found is not None
        small += found.p < 0.05

    # Three standard errors above one in twenty.
    assert small <= WINDOWS * (0.05 + 3 * math.sqrt(0.05 * 0.95 / WINDOWS))


@pytest.mark.parametrize(
    "changed",
    [
        lambda values: values + 0.5,
        lambda values: values * 1.5,
        lambda values: np.where(np.arange(len(values)) % 20 == 0, np.nan, values),
        lambda values: np.where(np.arange(len(values)) % 10 == 0, 9.0, values),
    ],
)
def test_planted_drift_is_found(changed) -> None:
    draw = np.random.default_rng(7)
    reference = binned(draw.normal(size=2000))

    found = feature_drift(reference, binned(changed(draw.normal(size=1000))))

    assert found is not None
    assert found.p < 1e-4
    assert found.effect > 0.1


def test_samples_that_repeat_each_other_count_as_fewer() -> None:
    draw = np.random.default_rng(3)
    slices = [binned(np.repeat(draw.normal(size=40), 10)) for _ in range(64)]
    own = [binned(draw.normal(size=400)) for _ in range(64)]

    assert 5 < design_effect(slices).effect < 15
    assert design_effect(own).effect < 1.5


def test_too_few_samples_say_nothing() -> None:
    draw = np.random.default_rng(4)

    assert feature_drift(binned(draw.normal(size=1000)), binned(draw.normal(size=40))) is None
