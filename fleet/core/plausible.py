"""What no honest device can have counted. A window that says so counts for nothing."""

from collections.abc import Iterable

from wire.telemetry import MILLION, ScoreWindow

MAX_COUNT = 10**10
"""Of anything in one window, which merged may be a month long: 4,000 a second all the time."""

MAX_CLASSES = 20_000
"""In use, of one window. No count of more than these is kept, so that one device cannot fill a
disk with classes that it made up."""


def implausible(window: ScoreWindow) -> str:
    """Return why a window cannot be true, in one word; nothing if it can."""
    if window.start > window.end or (window.first or 1) > window.seq:
        return "order"
    classes = (window.predicted, window.confusion, window.noised)
    if any(len(each) > MAX_CLASSES for each in classes):
        return "classes"
    if any(abs(count) > MAX_COUNT for count in _counts(window)):
        return "size"
    if window.correct > window.labelled:
        return "labels"
    estimate = window.estimate
    if estimate and max(estimate.sum_p, estimate.spread) > MILLION * estimate.samples:
        return "estimate"
    return ""


def _counts(window: ScoreWindow) -> Iterable[int]:
    yield from (
        window.requests, window.errors, window.drops, window.labelled, window.correct,
        window.slo_misses, window.orphan_labels, window.epsilon_windows,
    )  # fmt: skip
    yield from window.latency.bins.values()
    for counts in (window.predicted, window.confidence, window.confusion, window.outcomes,
                   window.noised):  # fmt: skip
        yield from counts.values()
    for row in window.drift.values():
        yield from row
    for samples, _, right in window.calibration.values():
        yield from (samples, right)
    if window.value_errors is not None:
        yield from window.value_errors.bins.values()
    if (shadow := window.shadow) is not None:
        yield from (shadow.pairs, shadow.disagreements, shadow.labelled, shadow.worse,
                    shadow.better, shadow.dropped, shadow.errors)  # fmt: skip
    if (golden := window.golden) is not None:
        yield from (golden.runs, golden.samples, golden.flips, golden.labelled, golden.correct,
                    golden.deviating)  # fmt: skip
    if window.estimate is not None:
        yield window.estimate.samples
