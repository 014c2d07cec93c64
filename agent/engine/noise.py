"""Noise from the discrete Laplace distribution, drawn exactly: whole numbers, no floats.

Mechanism: Ghosh, Roughgarden and Sundararajan 2009, "Universally utility-maximizing privacy
mechanisms". Sampling: Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential
privacy", algorithms 1 and 2. Built of floats, the same noise tells more than it should: Mironov
2012, "On significance of the least significant bits for differential privacy".
"""

from collections.abc import Callable
from secrets import randbelow

Below = Callable[[int], int]
"""Given n, one of 0 to n - 1, each as likely: of the system's own source."""


def discrete_laplace(numerator: int, denominator: int, below: Below = randbelow) -> int:
    """Return x with a probability in proportion to exp(-|x| * numerator / denominator)."""
    while True:
        part = below(denominator)
        if not _bernoulli_exp(part, denominator, below):
            continue
        whole = 0
        while _bernoulli_exp(1, 1, below):
            whole += 1
        size = (part + denominator * whole) // numerator
        negative = below(2)
        if size or not negative:  # there is one zero, not two
            return -size if negative else size


def _bernoulli_exp(numerator: int, denominator: int, below: Below) -> bool:
    """Return True with probability exp(-numerator / denominator), for a fraction of 0 to 1."""
    tries = 1
    while below(denominator * tries) < numerator:
        tries += 1
    return tries % 2 == 1
