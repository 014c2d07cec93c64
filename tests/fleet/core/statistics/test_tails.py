"""Tails against closed forms, which hold for some numbers of degrees of freedom."""

import math

import pytest

from fleet.core.statistics.tails import (
    beta_below,
    beta_quantile,
    chi_square_tail,
    f_tail,
    normal_quantile,
    t_quantile,
    t_tail,
)


@pytest.mark.parametrize("x", [1e-6, 0.3, 1.0, 4.0, 30.0, 200.0, 900.0])
def test_a_chi_square_of_even_degrees_is_a_sum_of_poisson_terms(x: float) -> None:
    for freedom in (2, 4, 10, 40):
        term = total = math.exp(-x / 2)
        for step in range(1, freedom // 2):
            term *= x / 2 / step
            total += term

        assert chi_square_tail(x, freedom) == pytest.approx(total, rel=1e-11)


@pytest.mark.parametrize("x", [0.001, 0.2, 0.5, 0.93, 0.9999])
def test_a_beta_of_whole_numbers_is_a_binomial_tail(x: float) -> None:
    for a, b in ((1, 1), (3, 5), (40, 7), (200, 300)):
        n = a + b - 1
        total = math.fsum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))

        assert beta_below(x, a, b) == pytest.approx(total, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("t", [-3.0, 0.0, 0.5, 2.0, 50.0])
def test_student_with_one_and_two_degrees_and_the_square_of_any(t: float) -> None:
    assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-10)
    assert t_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-9)
    if t > 0:
        assert f_tail(t * t, 1, 7) == pytest.approx(2 * t_tail(t, 7), rel=1e-10)


def test_quantiles_undo_tails() -> None:
    assert normal_quantile(0.025) == pytest.approx(1.959963984540054, rel=1e-12)
    for tail in (0.4, 0.025, 1e-6):
        assert t_tail(t_quantile(tail, 5), 5) == pytest.approx(tail, rel=1e-9)
        assert beta_below(beta_quantile(tail, 3, 9), 3, 9) == pytest.approx(tail, rel=1e-9)
