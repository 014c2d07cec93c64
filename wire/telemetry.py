"""Statistics that a device sends: integer deltas per window, which add up in any order."""

import math
from typing import Annotated

from wire.codec import Document, Part
from wire.ids import Count, DeviceId, Digest, ModelName, UnixTime, Version
from wire.schema import Field

LATENCY_ERROR = 0.01
"""Relative error of any latency quantile."""

_GAMMA = (1 + LATENCY_ERROR) / (1 - LATENCY_ERROR)
_LOG_GAMMA = math.log(_GAMMA)

Bin = Annotated[int, Field(ge=0, le=2000)]
"""Up to 2 * 10^17 microseconds: nobody waits longer."""
Class = Annotated[int, Field(ge=0, le=2**31 - 1)]


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
        return Histogram(bins=bins)

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


class ScoreWindow(Document):
    """What one variant of one release did in one window of one run of the engine.

    The controller drops repeats by (device, seq) and adds the rest.
    """

    device: DeviceId
    boot: str
    seq: Annotated[int, Field(ge=1, le=2**53)]
    """Grows by one with every window and health report this device ever queued."""
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
    confusion: dict[str, Count] = {}
    """`true,predicted` -> count."""
    orphan_labels: Count = 0
    """Labels for requests that are not, or no longer, remembered."""
    value_errors: Histogram | None = None
    """How far numbers were from the true ones, in millionths; None when nobody told."""
    shadow: Shadow | None = None


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
    boot: str
    seq: Annotated[int, Field(ge=1, le=2**53)]
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


class Ack(Document):
    """Everything up to `seq` from this device is committed at the controller."""

    device: DeviceId
    seq: Annotated[int, Field(ge=0, le=2**53)]
