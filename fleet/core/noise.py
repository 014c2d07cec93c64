"""How far class counts may be from the truth that devices sent with noise."""

import math

from fleet.core.scores import Totals
from wire.telemetry import MILLION


def deviation(totals: Totals) -> float | None:
    """Return the standard deviation of the noise in each class count, None without noise.

    Devices add discrete Laplace noise of ratio a = exp(-epsilon / 2) to each class, once a draw,
    with a variance of 2 a / (1 - a)^2; variances of draws add up. Exact where all draws cost the
    same, of their mean cost otherwise.

    Source: Ghosh, Roughgarden and Sundararajan 2009; the 2 is what one answer of another class
    changes in the counts.
    """
    if not totals.epsilon_windows or not totals.epsilon_spent:
        return None
    epsilon = totals.epsilon_spent / MILLION / totals.epsilon_windows
    # 2 a / (1 - a)^2 without the cancellation of a small epsilon.
    return math.sqrt(totals.epsilon_windows / 2) / math.sinh(epsilon / 4)
