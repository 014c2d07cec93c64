"""Statistics that a device sends: integer deltas per window, which add up in any order."""

import math
from typing import Annotated, Literal

from wire.codec import Document, Part
from wire.ids import Count, DeviceId, Digest, ModelName, UnixTime, Version
from wire.schema import Field, model_validator

LATENCY_ERROR = 0.01
"""Relative error of any latency quantile."""

_GAMMA = (1 + LATENCY_ERROR) / (1 - LATENCY_ERROR)
_LOG_GAMMA = math.log(_GAMMA)

Bin = Annotated[int, Field(ge=0, le=2000)]
"""Up to 2 * 10^17 microseconds: nobody waits longer."""
Class = Annotated[int, Field(ge=0, le=2**31 - 1)]
Sequence = Annotated[int, Field(ge=1, le=2**53)]
"""Of what one device queued: grows by one with every item, whatever it is."""

CONFIDENCE_BINS = 20
MILLION = 1_000_000
"""Sums of shares travel as whole millionths, so that they add up exactly."""

NoisedCount = Annotated[int, Field(ge=-(2**53), le=2**53)]
Twentieth = Annotated[int, Field(ge=0, le=CONFIDENCE_BINS - 1)]
Feature = Annotated[int, Field(ge=0, le=63)]
"""Place of a feature in the baseline of the manifest."""


class Histogram(Part):
    """Counts over logarithmic bins: bin i holds values in (gamma^(i-1), gamma^i] microseconds.

    A field may say that it counts millionths of something else.

    Source: Masson, Rim and Lee 2019, "DDSketch".
    """

    bins: dict[Bin, Count] = {}

    @staticmethod
    def bin_of(value_us: float) -> int:
        """Return the bin of a value; anything under a microsecond counts as one."""
        return math.ceil(math.log(value_us) / _LOG_GAMMA) if value_us > 1 else 0

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.bins.values())

    def merge(self, other: "Histogram") -> "Histogram":
        """Return the histogram of both streams together, exactly."""
        bins = dict(self.bins)
        for place, count in other.bins.items():
            bins[place] = bins.get(place, 0) + count
        # Sums may be more than one message may say.
        return Histogram.model_construct(bins=bins)

    def quantile_us(self, q: float) -> float | None:
        """Return the `q` quantile in microseconds within 1%, or None when empty.

        The rank is that of numpy's `method="lower"`: floor(q * (n - 1)).
        """
        rank = math.floor(q * (self.count - 1))
        seen = 0
        for place in sorted(self.bins):
            seen += self.bins[place]
            if seen > rank:
                return 2 * _GAMMA**place / (_GAMMA + 1)
        return None


class Shadow(Part):
    """Champion and challenger on the same inputs; worse: the champion alone was right."""

    challenger: Digest
    """Release digest of the challenger."""
    pairs: Count = 0
    disagreements: Count = 0
    labelled: Count = 0
    worse: Count = 0
    better: Count = 0
    dropped: Count = 0
    errors: Count = 0


class Estimate(Part):
    """Accuracy as the calibrated confidence has it: CBPE. The sums are in millionths.

    The mean of p estimates the share of right answers; `spread` is the sum of p (1 - p), the
    variance of their number, if the calibration holds.
    """

    samples: Count = 0
    sum_p: Count = 0
    spread: Count = 0


class Golden(Part):
    """The bundle's own samples, run again on the device."""

    runs: Count = 0
    samples: Count = 0
    """Of all runs together."""
    flips: Count = 0
    """Samples with another class than the expected answer's."""
    labelled: Count = 0
    correct: Count = 0
    deviating: Count = 0
    """Samples of which an output left the variant's tolerance."""


class ScoreWindow(Document):
    """What one variant of one release did in one window of one run of the engine.

    The controller drops repeats by (device, boot, seq) and adds the rest.
    """

    device: DeviceId
    boot: Annotated[str, Field(max_length=64)]
    seq: Sequence
    first: Sequence | None = None
    """Windows that were never sent may be merged: this one stands for `first` to `seq` in the
    sequence. None: for itself alone."""
    model: ModelName
    version: Version
    manifest: Digest
    variant: str
    start: UnixTime
    """Unix seconds."""
    end: UnixTime
    requests: Count = 0
    errors: Count = 0
    drops: Count = 0
    """Refused for want of room in the queue."""
    latency: Histogram = Histogram()
    predicted: dict[Class, Count] = {}
    """Class -> how often it was the answer."""
    confidence: dict[Class, Count] = {}
    """Twentieths of the top score -> count."""
    labelled: Count = 0
    correct: Count = 0
    confidence_sum: Count = 0
    """Of the top scores in `confidence`, in millionths."""
    confusion: dict[str, Count] = {}
    """`true,predicted` -> count."""
    calibration: dict[Twentieth, tuple[Count, Count, Count]] = {}
    """Labelled predictions by twentieth of their top score: how many, the sum of the score in
    millionths, how many were right."""
    estimate: Estimate | None = None
    golden: Golden | None = None
    drift: Annotated[dict[Feature, Annotated[tuple[Count, ...], Field(max_length=66)]],
                     Field(max_length=64)] = {}  # fmt: skip
    """Feature -> counts in the bins of the baseline, then NaN, then outside of all bins."""
    slo_misses: Count = 0
    """Answers that took longer than the manifest's budget for one."""
    outcomes: Annotated[dict[str, Count], Field(max_length=16)] = {}
    """What the task counts beside classes, by name: boxes `matched`, `missed` and `spurious`,
    `within` of a tolerance, `listened_s` and `false_accepts`..."""
    orphan_labels: Count = 0
    """Labels for requests that are not, or no longer, remembered."""
    value_errors: Histogram | None = None
    """How far numbers were from the true ones, in millionths; None when nobody told."""
    shadow: Shadow | None = None
    epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """Not None: classes were counted with differential privacy, at this cost a window, and what
    else tells of them is left out."""
    epsilon_windows: Count = 0
    """How often that noise was drawn: 1, or more where windows were merged."""
    noised: dict[Class, NoisedCount] = {}
    """In place of `predicted`: every class of the model, with noise, so it may be negative."""


class PipelineCounts(Part):
    """What became of the frames of one pipeline since its process began.

    What is in none of answered, dropped and failed is still waiting.
    """

    taken: Count = 0
    answered: Count = 0
    """Their answers are with the sink."""
    dropped: Annotated[dict[str, Count], Field(max_length=16)] = {}
    """Let go unasked, by reason."""
    failed: Annotated[dict[str, Count], Field(max_length=16)] = {}
    """The model has no answer for them, by reason."""
    retries: Count = 0
    restarts: Count = 0
    """Of their commands."""


class Health(Document):
    """How the device itself fares: gauges at a time."""

    device: DeviceId
    boot: Annotated[str, Field(max_length=64)]
    seq: Sequence
    first: Sequence | None = None
    """As in ScoreWindow: of reports that were never sent the latest stands for all."""
    at: UnixTime
    """Unix seconds."""
    uptime_s: Count
    cpu_percent: float
    """Of the whole machine, 0 to 100."""
    load_1m: float
    memory_total_bytes: Count
    memory_available_bytes: Count
    disk_free_bytes: Count
    """On the file system that holds the agent's data."""
    temperature_c: float | None = None
    agent_cpu_percent: float
    """Of one core."""
    agent_rss_bytes: Count
    engine_cpu_percent: float = 0.0
    engine_rss_bytes: Count = 0
    engine_restarts: Count = 0
    outbox_waiting: Count = 0
    outbox_dropped: Count = 0
    transfer_bytes: Count = 0
    """Frame payload received since start."""
    chunks_bad: Count = 0
    """Frames dropped since start: cut, poisoned or misaddressed."""
    flash_bytes_written: Count = 0
    """What the agent gave its disk since start: artifacts, journal and outbox."""
    pipelines: Annotated[dict[str, PipelineCounts], Field(max_length=16)] = {}
    """By name; empty without pipelines."""
    kernel_boot: Annotated[str, Field(max_length=64)] | None = None
    """The kernel's boot id: tells a restart of the machine from one of the agent."""
    pressure: Annotated[dict[str, float], Field(max_length=8)] = {}
    """Percent of the last minute in which some task waited, for `cpu`, `memory` and `io`."""
    swap_used_bytes: Count | None = None
    disk_total_bytes: Count | None = None
    throttled: bool | None = None
    """Whether the processor runs slower than it could for heat or low voltage."""
    network_received_bytes: Count | None = None
    network_sent_bytes: Count | None = None
    """Since the machine booted, on all interfaces but the loopback."""
    clock_synchronised: bool | None = None
    clock_stepped_s: float = 0.0
    """How far the wall clock was set, in all, since the agent started."""
    agent_pss_bytes: Count | None = None
    engine_pss_bytes: Count | None = None
    agent_starts: Count | None = None
    """How often an agent began on this data directory."""
    broker_rtt_ms: float | None = None
    """From a report to the broker's acknowledgement of it, the latest."""
    battery_percent: float | None = None
    battery_charging: bool | None = None
    outbox_bytes: Count | None = None
    outbox_merged: Count = 0
    """Items that were merged into others before anything was dropped, since start."""


EventKind = Literal["gap", "dropped", "clock", "deployment", "crash", "consent", "other"]


class DeviceEvent(Document):
    """Something that happened on a device, in order with its windows and never merged."""

    device: DeviceId
    boot: Annotated[str, Field(max_length=64)]
    seq: Sequence
    at: UnixTime
    kind: EventKind
    """gap: counts of the window that was open at an unclean end are lost. dropped: items left
    the outbox for want of room; `counts` says how many of which."""
    model: ModelName | None = None
    version: Version | None = None
    text: Annotated[str, Field(max_length=300)] = ""
    counts: Annotated[dict[str, Count], Field(max_length=16)] = {}


Item = ScoreWindow | Health | DeviceEvent
"""What a device queues under one sequence."""


class Batch(Document):
    """Items of one device that travel together, each complete in itself."""

    device: DeviceId
    windows: tuple[ScoreWindow, ...] = ()
    health: tuple[Health, ...] = ()
    events: tuple[DeviceEvent, ...] = ()
    complete: bool = False
    """The device holds nothing else up to the last of these: numbers that are missing were merged
    or dropped, so all may be acknowledged. False: they travel ahead of others, and nothing is."""

    @model_validator(mode="after")
    def _of_one_device(self) -> "Batch":
        for item in self.items():
            if item.device != self.device:
                raise ValueError(f"expected items of {self.device}, got one of {item.device}")
        return self

    def items(self) -> list[Item]:
        """Return all of them in the order of their sequence."""
        return sorted((*self.windows, *self.health, *self.events), key=lambda item: item.seq)


class Ack(Document):
    """Everything up to `seq` from this device is committed at the controller."""

    device: DeviceId
    seq: Annotated[int, Field(ge=0, le=2**53)]
