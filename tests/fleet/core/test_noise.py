"""What a report says of class counts that came with noise."""

import math

import pytest

from fleet.cli import report_lines
from tests.fleet.reports import made, one, window


def noisy(device: str, epsilon: float = 0.5, draws: int = 60, **counts: object):  # type: ignore[no-untyped-def]
    told = {"requests": 100, "noised": {0: 70, 1: -3, 2: 33}, **counts}
    return window(device, epsilon=epsilon, epsilon_windows=draws, **told)


@pytest.mark.parametrize(("epsilon", "draws"), [(0.5, 60), (2.0, 1), (0.01, 7)])
def test_noised_counts_have_the_deviation_of_all_draws_together(epsilon: float, draws: int) -> None:
    release = one(noisy("cam-1", epsilon, draws), noisy("cam-2", epsilon, draws))

    # The variance of one draw, summed from the definition.
    ratio = math.exp(-epsilon / 2)
    weights = [(x, ratio ** abs(x)) for x in range(-20_000, 20_001)]
    variance = sum(x * x * w for x, w in weights) / sum(w for _, w in weights)
    assert [each.noised for each in release.classes] == [140, -6, 66]
    for each in release.classes:
        assert each.noise_deviation == pytest.approx(math.sqrt(2 * draws * variance), rel=1e-6)
    assert release.epsilon == pytest.approx(2 * draws * epsilon)


def test_counts_without_noise_have_no_deviation() -> None:
    release = one(window(requests=10, predicted={0: 10}))

    assert [(each.noised, each.noise_deviation) for each in release.classes] == [(None, None)]
    assert release.epsilon is None


def test_a_report_shows_noised_counts_their_deviation_and_what_was_spent() -> None:
    text = "\n".join(report_lines.report(made(noisy("cam-1"), noisy("cam-2"))))

    assert "CLASS  ANSWERS, NOISED  DEVIATION" in text
    assert "140       61.8" in text
    assert "privacy: epsilon 60 spent, 30 a device and day" in text
