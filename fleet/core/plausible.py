"""What no honest device can have counted. A window that says so counts for nothing."""

from wire.telemetry import MILLION, Estimate, Golden, ScoreWindow, Shadow

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
    if _most(window) > MAX_COUNT:
        return "size"
    if window.correct > window.labelled:
        return "labels"
    estimate = window.estimate
    if estimate and max(estimate.sum_p, estimate.spread) > MILLION * estimate.samples:
        return "estimate"
    return ""


def _most(window: ScoreWindow) -> int:
    """Return the largest of all counts."""
    values = window.value_errors
    maps = (
        window.latency.bins, window.predicted, window.confidence, window.confusion,
        window.outcomes, values.bins if values is not None else {},
    )  # fmt: skip
    parts = (window.shadow, window.golden, window.estimate)
    largest: int = max(
        window.requests, window.errors, window.drops, window.labelled, window.correct,
        window.slo_misses, window.orphan_labels, window.epsilon_windows,
        *(max(counts.values()) for counts in maps if counts),
        *map(abs, window.noised.values()),
        *(max(row) for row in window.drift.values() if row),
        *(max(samples, right) for samples, _, right in window.calibration.values()),
        *(getattr(part, name) for part in parts if part is not None for name in _OF[type(part)]),
    )  # fmt: skip
    return largest


_OF: dict[type, tuple[str, ...]] = {
    Shadow: ("pairs", "disagreements", "labelled", "worse", "better", "dropped", "errors"),
    Golden: ("runs", "samples", "flips", "labelled", "correct", "deviating"),
    Estimate: ("samples",),
}
