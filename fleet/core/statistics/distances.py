"""Distances between two distributions, from counts in the same bins. For people to read.

Each grows by chance alone where samples are few: no alarm rests on a fixed limit of one.
"""

import math
from collections.abc import Sequence


def population_stability_index(reference: Sequence[float], live: Sequence[float]) -> float:
    """Return the PSI: 0 means identical, and it has no upper end.

    Empty bins count as half an observation, so the index is finite. Its rule of thumb, that
    more than 0.1 is a change, is wrong four times in ten with 100 samples.

    Raises:
        ValueError: the bins differ in number, or one side has no sample.

    Source: Yurdakul 2018, "Statistical properties of population stability index".
    """
    bins = _shares(
        *([count or (0.5 if with_ else 0.0) for count, with_ in zip(one, other, strict=True)]
          for one, other in ((reference, live), (live, reference)))
    )  # fmt: skip
    return sum((q - p) * math.log(q / p) for p, q in bins if p and q)


def jensen_shannon(reference: Sequence[float], live: Sequence[float]) -> float:
    """Return the Jensen-Shannon distance to the base 2: 0 is identical, 1 has nothing in common.

    Raises:
        ValueError: the bins differ in number, or one side has no sample.

    Source: Endres and Schindelin 2003, "A new metric for probability distributions".
    """
    divergence = 0.0
    for p, q in _shares(reference, live):
        middle = (p + q) / 2
        divergence += p * math.log2(p / middle) / 2 if p else 0.0
        divergence += q * math.log2(q / middle) / 2 if q else 0.0
    return math.sqrt(max(0.0, divergence))


def hellinger(reference: Sequence[float], live: Sequence[float]) -> float:
    """Return the Hellinger distance: 0 is identical, 1 has nothing in common.

    Raises:
        ValueError: the bins differ in number, or one side has no sample.

    Source: Hellinger 1909; as NannyML has it, with the factor 1 / sqrt(2).
    """
    return math.sqrt(
        sum((math.sqrt(p) - math.sqrt(q)) ** 2 for p, q in _shares(reference, live)) / 2
    )


def _shares(reference: Sequence[float], live: Sequence[float]) -> list[tuple[float, float]]:
    if len(reference) != len(live):
        raise ValueError(f"expected counts of the same bins, got {len(reference)} and {len(live)}")
    first, second = sum(reference), sum(live)
    if first <= 0 or second <= 0:
        raise ValueError(f"expected samples on both sides, got {first} and {second}")
    return [(p / first, q / second) for p, q in zip(reference, live, strict=True)]
