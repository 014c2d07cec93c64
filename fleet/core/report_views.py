"""A report on a model as the HTTP API gives it: numbers with their intervals, and no prose.

Shares are 0 to 1, times unix seconds. What cannot be had is None, and a `note` says why. Fields
are only ever added.
"""

from typing import Literal

from fleet.core.views import View

Kind = Literal["labelled", "golden", "estimated"]
KINDS: tuple[Kind, ...] = ("labelled", "golden", "estimated")
"""The three names of accuracy, which are never blended."""


class AccuracyView(View):
    """Accuracy of one kind, with its 95% interval."""

    kind: Kind
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    """labelled: answers whose true class came. golden: labelled samples of the release, each
    counted once however often it ran. estimated: answers with a calibrated confidence."""
    correct: int = 0
    """Of `samples`; for an estimate the expected number, rounded."""
    devices: int = 0
    """That have any."""
    interval: Literal["", "wilson", "device-clustered", "estimate"] = ""
    """How `low` and `high` came about; empty where there is none."""
    note: str = ""
    """Why there is no number, or no interval."""


class LabelsView(View):
    """Which answers have a label: they are no random sample, and here is how far from one."""

    answers: int = 0
    labelled: int = 0
    coverage: float | None = None
    orphans: int = 0
    """Labels for requests that nobody remembered any more."""
    confidence: float | None = None
    """Mean confidence of all answers."""
    confidence_labelled: float | None = None
    """Mean confidence of those with a label."""
    gap: float | None = None
    """The latter less the former: above 0, easy answers get labels more often."""
    typical: bool | None = None
    """Whether the gap is no more than chance."""


class LatencyView(View):
    """Quantiles of all answers together, within 1%."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    limit_ms: float | None = None
    """The release's own limit, where it has one."""
    slo_misses: int = 0
    miss_share: float | None = None


class ClassView(View):
    """One class among the labelled answers."""

    number: int
    name: str
    labels: int
    """How many answers had this as their true class."""
    answers: int
    """How many labelled answers were this class."""
    correct: int
    precision: float | None = None
    recall: float | None = None
    predicted: int = 0
    """How many answers were this class, labelled or not."""
    noised: int | None = None
    """Beside `predicted`, of devices that count classes with noise; it may be negative."""
    noise_deviation: float | None = None
    """Standard deviation of the noise in `noised`."""


class MistakeView(View):
    """One class taken for another."""

    true: str
    answered: str
    count: int
    share: float
    """Of the true class's labels."""


class ReliabilityView(View):
    """Labelled answers of about one confidence: how many of them were right."""

    low: float
    high: float
    answers: int
    confidence: float
    accuracy: float


class CalibrationView(View):
    """Whether the confidence means what it says."""

    error: float | None = None
    """Expected calibration error, in shares."""
    by_chance: float | None = None
    """What it would be for a perfect calibration with so few labels."""
    overconfidence: float | None = None
    """Mean confidence less accuracy."""
    answers: int = 0
    bins: tuple[ReliabilityView, ...] = ()


class DriftView(View):
    """One feature, or the answers themselves, against the release's baseline."""

    name: str
    samples: int
    reference: int
    """How many samples the baseline counted."""
    p: float | None = None
    """Of the two-sample chi-square test."""
    q: float | None = None
    """The same, with the share of false discoveries among all features controlled."""
    effect: float | None = None
    """Jensen-Shannon distance beyond what chance brings, 0 to 1; None with too few samples."""
    js: float | None = None
    """The plain Jensen-Shannon distance."""
    psi: float | None = None
    """Population stability index; for people, no alarm rests on it."""
    nan_share: float = 0.0
    outside_share: float = 0.0
    drifted: bool = False
    """Significant, and large enough to matter."""
    note: str = ""


class ShadowView(View):
    """What challengers did beside this release on the same inputs."""

    pairs: int
    disagreements: int
    labelled: int
    worse: int
    """The champion alone was right."""
    better: int
    """The challenger alone was right."""


class GoldenView(View):
    """Whether the installations conform: the release's own samples, run again on devices."""

    runs: int
    samples: int
    """Of all runs together."""
    flips: int
    """With another class than the expected answer's."""
    deviating: int
    """Of which an output left the variant's tolerance."""


class ValuesView(View):
    """How far numbers were from the true ones, in their own unit."""

    answers: int
    p50: float | None
    p95: float | None


class OutcomeView(View):
    """What the task counts beside classes."""

    name: str
    count: int


class RateView(View):
    """A figure made of outcomes: precision of boxes, false accepts an hour."""

    name: str
    value: float
    unit: Literal["share", "per hour"]


class StepView(View):
    """One hour or day of a release."""

    start: int
    end: int
    requests: int
    errors: int
    accuracy: tuple[AccuracyView, ...] = ()
    """Of the kinds that have any."""
    latency: LatencyView = LatencyView()
    drift: tuple[tuple[str, float], ...] = ()
    """(feature, effect); features with too few samples are left out."""


class CohortView(View):
    """The devices that share a label's value, or one variant, or one device."""

    group: str
    """`(others)`: several groups of few devices together."""
    groups: int = 1
    """How many those are."""
    devices: int
    requests: int
    errors: int
    drops: int
    accuracy: tuple[AccuracyView, ...]
    latency: LatencyView = LatencyView()
    drifted: int | None = None
    """How many features differ from the baseline; None where that is not known by group."""
    worst_feature: str = ""
    worst_effect: float | None = None


class ChangeView(View):
    """A release less its parent: estimate and 95% interval, as if they were independent."""

    parent: str
    """name@version."""
    accuracy: float | None = None
    """Labelled accuracy, in shares."""
    low: float | None = None
    high: float | None = None
    p95_ms: float | None = None
    error_share: float | None = None


class ReleaseReportView(View):
    """All about one release in the time of the report."""

    version: int
    manifest: str
    parent: str | None = None
    task: str = "tensor"
    variants: tuple[str, ...] = ()
    """Those that answered."""
    pushed_accuracy: float | None = None
    """What the release itself says, from before it was pushed."""
    devices: int = 0
    requests: int = 0
    errors: int = 0
    drops: int = 0
    first: int | None = None
    last: int | None = None
    """When the first window began and the last one ended."""
    accuracy: tuple[AccuracyView, ...] = ()
    """All three kinds, always."""
    labels: LabelsView = LabelsView()
    latency: LatencyView = LatencyView()
    classes: tuple[ClassView, ...] = ()
    mistakes: tuple[MistakeView, ...] = ()
    """The most frequent ones first."""
    calibration: CalibrationView = CalibrationView()
    drift: tuple[DriftView, ...] = ()
    """The strongest first."""
    golden: GoldenView | None = None
    shadow: ShadowView | None = None
    epsilon: float | None = None
    """Differential privacy that all devices together spent on counts of classes; None: none."""
    values: ValuesView | None = None
    outcomes: tuple[OutcomeView, ...] = ()
    rates: tuple[RateView, ...] = ()
    cohorts: tuple[CohortView, ...] = ()
    cohorts_left_out: int = 0
    """Rows that are too many."""
    cohorts_withheld: int = 0
    """Groups of which nothing is told: all of them together are fewer than `min_devices`."""
    steps: tuple[StepView, ...] = ()
    change: ChangeView | None = None


class ReportView(View):
    """A report on one release, or on all releases of a model side by side."""

    model: str
    version: int | None = None
    """None: all of them."""
    by: str | None = None
    min_devices: int = 1
    """No row of a group is of fewer devices."""
    since: int
    until: int
    step_s: int
    """How long a step is: an hour or a day."""
    made_at: int
    releases: tuple[ReleaseReportView, ...]
    """The newest version first."""
