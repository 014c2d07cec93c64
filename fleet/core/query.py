"""What can be asked of the telemetry that the controller keeps, and what comes back."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fleet.core.scores import Totals

EVER = 2**53
Step = Literal["hour", "day"]


@dataclass(frozen=True, slots=True)
class Query:
    """Which windows: those of a model whose end lies in [since, until).

    Times are looked at by the hour, and by the day (UTC) where no hours are kept any more: of an
    hour or a day that begins before `until` and ends after `since` all windows count.
    """

    model: str
    version: int | None = None
    """None: of every version."""
    since: int = 0
    until: int = EVER
    by: str | None = None
    """Split by `variant`, or by the value of this label of the devices; None: not at all."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The sum of the windows of one variant of one release, in one group and one step of time."""

    group: str
    """The label's value, or the variant; "" without `by`, and for devices without the label."""
    start: int
    """Without a step, and with "hour" or "day" the beginning of that: unix seconds."""
    end: int
    totals: Totals


class DeviceCounts(NamedTuple):
    """What one variant of one release did on one device, in numbers alone."""

    device: str
    version: int
    manifest: str
    variant: str
    group: str
    requests: int
    errors: int
    drops: int
    slo_misses: int
    labelled: int
    correct: int
    confidence_sum: int
    predictions: int
    """Answers that have a class."""
    golden_samples: int
    golden_labelled: int
    golden_correct: int
    estimate_samples: int
    estimate_sum_p: int
    estimate_spread: int
