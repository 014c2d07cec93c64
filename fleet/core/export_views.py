"""Telemetry as rows for other tools, as the HTTP API gives it: a line of JSON each.

Shares are 0 to 1, times unix seconds. What cannot be had is left out. Fields are only ever added.
"""

from pydantic import Field

from fleet.core.query import Step
from fleet.core.views import ErrorView, View


class ExportHead(View):
    """What the rows are of."""

    model: str
    version: int | None = None
    """None: all of them."""
    by: str | None = None
    since: int
    until: int
    step: Step
    min_devices: int
    """No row is of fewer devices."""
    made_at: int


class ExportRow(View):
    """One hour or day (UTC) of one release, and of one group of devices where `by` says so."""

    model: str
    version: int
    manifest: str
    group: str = ""
    """The label's value, the variant or the device; `(others)`: groups of few devices."""
    start: int
    end: int
    devices: int
    variants: str
    """Those that answered, with commas."""
    requests: int
    errors: int
    drops: int
    slo_misses: int
    latency_p50_s: float | None = None
    latency_p90_s: float | None = None
    latency_p95_s: float | None = None
    latency_p99_s: float | None = None
    """Within 1%."""
    predictions: int
    """Answers that have a class."""
    confidence_mean: float | None = None
    labelled: int
    labelled_correct: int
    labelled_accuracy: float | None = None
    labelled_low: float | None = None
    labelled_high: float | None = None
    """Its 95% interval over devices, as in a report."""
    label_coverage: float | None = None
    orphan_labels: int
    golden_runs: int
    golden_samples: int
    golden_flips: int
    golden_deviating: int
    golden_accuracy: float | None = None
    golden_low: float | None = None
    golden_high: float | None = None
    estimated: int
    """Answers with a calibrated confidence."""
    estimated_accuracy: float | None = None
    estimated_low: float | None = None
    estimated_high: float | None = None
    calibration_error: float | None = None
    value_error_p50: float | None = None
    value_error_p95: float | None = None
    """How far numbers were from the true ones, in their own unit."""
    drifted: int | None = None
    """How many features differ from the baseline; None where none can be compared."""
    drift_feature: str = ""
    """The one that is furthest off."""
    drift_effect: float | None = None
    shadow_pairs: int
    shadow_disagreements: int
    shadow_labelled: int
    shadow_worse: int
    shadow_better: int
    epsilon: float | None = None
    """Differential privacy spent by all devices together; None: classes were counted as such."""
    drift: dict[str, float] = Field(default_factory=dict)
    """Feature -> how far off: 0 to 1, beyond what chance brings."""
    latency_bins: dict[int, int] = Field(default_factory=dict)
    """Bin of `wire.telemetry.Histogram`, in microseconds -> count."""
    confidence_bins: dict[int, int] = Field(default_factory=dict)
    """Twentieth of the top score -> count."""
    predicted: dict[int, int] = Field(default_factory=dict)
    """Class -> how often it was the answer."""
    noised: dict[int, int] = Field(default_factory=dict)
    """The same with noise, where devices add it; may be negative."""
    confusion: dict[str, int] = Field(default_factory=dict)
    """`true,predicted` -> count."""
    outcomes: dict[str, int] = Field(default_factory=dict)
    """What the task counts beside classes."""


class ExportEnd(View):
    """The last line, without which something is missing."""

    rows: int = 0
    folded: int = 0
    """Of those, rows that hold several groups, since some are of few devices."""
    withheld: int = 0
    """Rows that are not told: all devices of that hour or day were fewer than `min_devices`."""


class ExportLine(View):
    """One line: exactly one of its fields."""

    head: ExportHead | None = None
    row: ExportRow | None = None
    done: float | None = None
    """How far it is, 0 to 1."""
    end: ExportEnd | None = None
    refused: ErrorView | None = None
    """It ends here, and why."""
