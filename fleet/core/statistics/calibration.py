"""What confidence is worth: calibration, accuracy estimated without labels, and who gets labels."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fleet.core.statistics.intervals import CONFIDENCE, Share, of_device
from fleet.core.statistics.tails import normal_quantile, t_quantile
from wire.manifest import Manifest
from wire.telemetry import CONFIDENCE_BINS, MILLION, Estimate

Calibration = Mapping[int, tuple[int, int, int]]
"""As in ScoreWindow: twentieth -> (n, sum of the score in millionths, correct)."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One twentieth of the confidence: what was promised, and what came."""

    low: float
    high: float
    confidence: float
    """Mean of the scores."""
    accuracy: Share


def reliability(calibration: Calibration) -> tuple[ReliabilityBin, ...]:
    """Return the points of a reliability diagram, by rising confidence; empty bins are left out.

    Intervals are Wilson's: those of one device, and too narrow for several that differ.
    """
    points = []
    for place in sorted(calibration):
        n, score, correct = calibration[place]
        accuracy = of_device(correct, n)
        if accuracy is not None:
            points.append(
                ReliabilityBin(
                    place / CONFIDENCE_BINS,
                    (place + 1) / CONFIDENCE_BINS,
                    score / MILLION / n,
                    accuracy,
                )
            )
    return tuple(points)


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """How far confidence is from accuracy."""

    ece: float
    """Mean distance of confidence from accuracy over the 20 bins, weighed by samples."""
    by_chance: float
    """The mean of that for a perfectly calibrated model with so few labels. An ECE about as
    large says nothing."""
    overconfidence: float
    """Mean confidence less accuracy: positive for a model that promises too much."""
    worst: float
    """The largest distance of any bin."""
    samples: int

    @property
    def text(self) -> str:
        """In words: `ECE 3.1% of 500 (1.9% by chance), 2.0 points overconfident`."""
        way = "overconfident" if self.overconfidence >= 0 else "underconfident"
        return (
            f"ECE {100 * self.ece:.1f}% of {self.samples} ({100 * self.by_chance:.1f}% by chance),"
            f" {abs(100 * self.overconfidence):.1f} points {way}"
        )


def calibration_error(calibration: Calibration) -> CalibrationError | None:
    """Return the expected calibration error; None without labels.

    Exact for these bins; an ECE over other bins is another number.

    Source: Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, "On calibration".
    """
    bins = [(n, score / MILLION, correct) for n, score, correct in calibration.values() if n]
    samples = sum(n for n, _, _ in bins)
    if not samples:
        return None
    gaps = [abs(score - correct) for _, score, correct in bins]
    # The mean size of a normal deviate is sqrt(2 / pi) of its standard deviation.
    chance = sum(
        math.sqrt(2 / math.pi * n * (score / n) * max(0.0, 1 - score / n)) for n, score, _ in bins
    )
    return CalibrationError(
        ece=sum(gaps) / samples,
        by_chance=chance / samples,
        overconfidence=sum(score - correct for _, score, correct in bins) / samples,
        worst=max(gap / n for gap, (n, _, _) in zip(gaps, bins, strict=True)),
        samples=samples,
    )


@dataclass(frozen=True, slots=True)
class Estimated:
    """Accuracy as calibrated confidence has it. Never to be blended with a labelled one."""

    share: float
    low: float | None
    """None: nothing is known of the calibration set, so neither is the error."""
    high: float | None
    sampling_error: float
    """Standard error for so many answers, on so many devices."""
    calibration_error: float | None
    """Standard error that the calibration set's size leaves."""
    samples: int
    text: str


def calibration_samples(manifest: Manifest) -> int | None:
    """Return how many labelled samples a release's calibration rests on, as far as it says.

    The metric `calibration_samples` says so. Without it they are taken to be those of the
    baseline, for both come from the same held-back data unless somebody took care that they do
    not. None: neither is there, or there is no calibration.
    """
    if not manifest.calibration:
        return None
    told = manifest.metrics.get("calibration_samples", 0)
    if told >= 1:
        return int(told)
    return manifest.baseline.samples if manifest.baseline is not None else None


def estimated_accuracy(
    estimate: Estimate,
    calibrated_on: int | None,
    devices: Iterable[tuple[int, int]] = (),
) -> Estimated | None:
    """Return estimated accuracy (CBPE) with its interval; None without samples.

    The mean of calibrated confidence estimates the share of right answers. Its interval has
    two errors: that of so many answers (`spread`, the sum of p (1 - p); or how devices differ,
    if that is more: give (sum_p, samples) of each), and that of a calibration from
    `calibrated_on` labelled samples, sqrt(p (1 - p) / n), +-3 points for 200 samples at 95%.

    It assumes that a score still means what it meant in the calibration set. Where inputs
    mean something else now (concept drift) it is blind: it said 75.5% where the truth was
    44.6%. So it never rolls back anything.

    Source: NannyML's confidence-based performance estimation (CBPE).
    """
    if not estimate.samples:
        return None
    n = estimate.samples
    share = min(1.0, estimate.sum_p / MILLION / n)
    sampling = math.sqrt(estimate.spread / MILLION) / n
    z = normal_quantile((1 - CONFIDENCE) / 2)
    reach = z * sampling
    counts = [(total / MILLION, samples) for total, samples in devices if samples > 0]
    if len(counts) > 1:
        whole, of = sum(x for x, _ in counts), sum(m for _, m in counts)
        left = [(whole - x) / (of - m) for x, m in counts]
        k = len(counts)
        between = math.sqrt((k - 1) / k * sum((other - whole / of) ** 2 for other in left))
        sampling = max(sampling, between)
        reach = max(reach, t_quantile((1 - CONFIDENCE) / 2, k - 1) * between)
    if calibrated_on is None:
        text = f"estimated {100 * share:.1f}% of {n}; how sure is not known: no calibration set"
        return Estimated(share, None, None, sampling, None, n, text)
    calibration = math.sqrt(share * (1 - share) / calibrated_on)
    half = math.hypot(reach, z * calibration)
    low, high = max(0.0, share - half), min(1.0, share + half)
    text = (
        f"estimated {100 * share:.1f}% ({100 * low:.1f} to {100 * high:.1f}%) of {n}, "
        f"calibrated on {calibrated_on}; blind to concept drift"
    )
    return Estimated(share, low, high, sampling, calibration, n, text)


@dataclass(frozen=True, slots=True)
class LabelGap:
    """Whether labelled answers are like all answers."""

    coverage: float
    """Share of answers that have a label."""
    gap: float
    """Mean confidence of labelled answers less that of all."""
    error: float
    """Standard error of the gap, were the labelled a random sample."""
    typical: bool
    """Whether the gap is no more than chance (two in a thousand are wrongly told apart)."""
    text: str


def label_gap(
    calibration: Calibration, confidence: Mapping[int, int], confidence_sum: int
) -> LabelGap | None:
    """Return how much surer the model is of labelled answers; None without labels or answers.

    `confidence` and its sum are those of ScoreWindow. The error is that of drawing the labelled
    without putting them back, from the spread of the 20 bins; answers of one device that
    resemble each other make it larger than told.

    Source: Cochran 1977, "Sampling Techniques", section 2.6.
    """
    all_ = sum(confidence.values())
    labelled = sum(n for n, _, _ in calibration.values())
    if not all_ or not labelled:
        return None
    mean = confidence_sum / MILLION / all_
    theirs = sum(score for _, score, _ in calibration.values()) / MILLION / labelled
    width = 1 / CONFIDENCE_BINS
    variance = width**2 / 12 + sum(
        count * ((place + 0.5) * width - mean) ** 2 for place, count in confidence.items()
    ) / (all_)
    coverage = min(1.0, labelled / all_)
    error = math.sqrt(variance * (1 - coverage) / labelled)
    gap = theirs - mean
    typical = abs(gap) <= max(3.09 * error, 1e-6)
    way = "surer" if gap >= 0 else "less sure"
    told = (
        f"labels for {100 * coverage:.1f}% of answers; the model is {100 * abs(gap):.1f} points "
        f"{way} of those (+-{196 * error:.1f})"
    )
    text = told if typical else f"{told}: they are no random sample"
    return LabelGap(coverage, gap, error, typical, text)
