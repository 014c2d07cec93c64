"""Streams without any drift, and with some, in windows: what a device would count of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fleet.core.statistics.drift import design_effect, feature_drift, judge
from fleet.core.statistics.hysteresis import Hysteresis, Latch

PER_STREAM = 10
"""Windows in a row of one device, all against one reference: an unlucky one hits all of them."""
FEATURES = 3
BINS = 20

Shares = np.ndarray
"""How likely a sample falls into each bin, is NaN, or is outside of all bins."""


@dataclass(frozen=True)
class Setting:
    """A kind of stream."""

    reference: int
    """Samples that the baseline was counted from."""
    samples: int
    """Of one window."""
    repeats: float = 0.0
    """How likely a sample is the one before once more, as frames of a scene are."""
    slices: int = 8
    """Spans of a window that were reported by themselves."""

    def __str__(self) -> str:
        return f"{self.reference}-{self.samples}-{self.repeats}"


SETTINGS = tuple(
    Setting(reference, samples, repeats, slices)
    for samples, repeats, slices in [
        (100, 0.0, 8), (1_000, 0.0, 8), (10_000, 0.0, 8),
        (100, 0.1, 8), (1_000, 0.5, 20), (10_000, 0.9, 20),
    ]
    for reference in (1_000, 10_000)
)  # fmt: skip
"""Streams without drift, half of them of samples that repeat each other."""


def reference_of(random: np.random.Generator, samples: int) -> tuple[list[int], Shares]:
    """Return a reference in its own quantiles, and where the next sample really falls.

    The spacings of a sample are Dirichlet: so many of its samples lie between two edges, and
    what lies beyond its extremes is unknown to it.
    """
    gaps = random.gamma([*[samples / BINS] * BINS, 2.0])
    shares = gaps / gaps.sum()
    return [samples // BINS] * BINS + [0, 0], np.array([*shares[:BINS], 0.0, shares[BINS]])


def windows_of(random: np.random.Generator, shares: Shares, setting: Setting) -> np.ndarray:
    """Return counts of each slice of each window of one stream: (windows, slices, bins)."""
    size, bins = setting.samples // setting.slices, len(shares)
    if not setting.repeats:
        return random.multinomial(size, shares, size=(PER_STREAM, setting.slices))
    length = PER_STREAM * setting.slices * size
    fresh = random.random(length) >= setting.repeats
    fresh[0] = True
    drawn = np.searchsorted(np.cumsum(shares)[:-1], random.random(int(fresh.sum())), "right")
    values = drawn[np.cumsum(fresh) - 1]
    places = np.repeat(np.arange(PER_STREAM * setting.slices), size) * bins + values
    counts = np.bincount(places, minlength=PER_STREAM * setting.slices * bins)
    return counts.reshape(PER_STREAM, setting.slices, bins)


def verdicts(
    setting: Setting,
    windows: int,
    seed: int,
    changed: Callable[[Shares], Shares] | None = None,
) -> Iterator[list[bool | None]]:
    """Yield what is said of each window of each stream; `changed` plants drift in one feature."""
    random = np.random.default_rng(seed)
    for _ in range(windows // PER_STREAM):
        streams = []
        for feature in range(FEATURES):
            reference, shares = reference_of(random, setting.reference)
            if changed is not None and feature == 0:
                shares = changed(shares)
            counts = windows_of(random, shares, setting)
            streams.append(
                [
                    feature_drift(reference, whole, design_effect(slices))
                    for slices, whole in zip(
                        counts.tolist(), counts.sum(axis=1).tolist(), strict=True
                    )
                ]
            )
        yield [
            judge({str(number): drift for number, drift in enumerate(window)}).alarm
            for window in zip(*streams, strict=True)
        ]


def raises(rule: Hysteresis, alarms: list[bool | None]) -> int:
    """Return how many alerts a stream's windows raise."""
    latch, count = Latch(), 0
    for alarm in alarms:
        later = rule.after(latch, alarm)
        count += later.raised and not latch.raised
        latch = later
    return count


_NORMAL = np.sort(np.random.default_rng(0).normal(size=200_000))


def shifted_by(deviations: float) -> Callable[[Shares], Shares]:
    """Plant a shift of a normal feature by so many standard deviations."""

    def change(shares: Shares) -> Shares:
        inside = shares[:BINS].sum()
        edges = np.quantile(_NORMAL, np.cumsum(shares[: BINS - 1]) / inside)
        counts = np.bincount(np.searchsorted(edges, _NORMAL + deviations), minlength=BINS)
        return np.array([*counts / len(_NORMAL) * inside, *shares[-2:]])

    return change


def without_a_value(share: float) -> Callable[[Shares], Shares]:
    """Plant samples that are NaN."""
    return lambda shares: np.array([*shares[:BINS] * (1 - share), share, shares[-1] * (1 - share)])
