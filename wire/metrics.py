"""What the numbers of telemetry are called in Prometheus, the same on a device and in the fleet.

Names and units are those of OpenTelemetry where it has one: seconds, bytes, ratios from 0 to 1.
Only who exports metrics imports this.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from wire.telemetry import Estimate, Golden, Health, Histogram

PREFIX = "farflung_"
LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the latency buckets."""

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of time series."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The unit that the name ends in, or nothing where things are counted."""
        word = self.name.removesuffix("_total").rpartition("_")[2]
        return word if word in ("seconds", "bytes", "ratio", "celsius") else ""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram as Prometheus has it: cumulative counts by upper bound, the last one +Inf."""

    bounds: tuple[tuple[float, int], ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with the values of its series."""

    metric: Metric
    samples: list[tuple[Labels, float | Buckets]] = field(default_factory=list)

    def add(self, value: float | Buckets | None, *labels: str) -> None:
        """Add a series; None: there is no such value."""
        if value is not None:
            self.samples.append((labels, value))


class Counts(Protocol):
    """What a window and a sum of windows have in common."""

    @property
    def requests(self) -> int: ...  # noqa: D102
    @property
    def errors(self) -> int: ...  # noqa: D102
    @property
    def drops(self) -> int: ...  # noqa: D102
    @property
    def slo_misses(self) -> int: ...  # noqa: D102
    @property
    def latency(self) -> Histogram: ...  # noqa: D102
    @property
    def labelled(self) -> int: ...  # noqa: D102
    @property
    def correct(self) -> int: ...  # noqa: D102
    @property
    def orphan_labels(self) -> int: ...  # noqa: D102
    @property
    def golden(self) -> Golden | None: ...  # noqa: D102
    @property
    def estimate(self) -> Estimate | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _Counter:
    name: str
    help: str
    of: Callable[[Counts], float]


_COUNTERS = (
    _Counter("requests", "Requests that apps sent.", lambda c: c.requests),
    _Counter("errors", "Requests that the model failed.", lambda c: c.errors),
    _Counter("drops", "Requests refused for want of room in the queue.", lambda c: c.drops),
    _Counter("slo_misses", "Answers later than the release's budget.", lambda c: c.slo_misses),
    _Counter("labelled", "Answers whose true label came.", lambda c: c.labelled),
    _Counter("labelled_correct", "Labelled answers that were right.", lambda c: c.correct),
    _Counter(
        "orphan_labels", "Labels for requests no longer remembered.", lambda c: c.orphan_labels
    ),
    _Counter(
        "golden_samples",
        "Golden samples run again on devices.",
        lambda c: c.golden.samples if c.golden else 0,
    ),
    _Counter(
        "golden_flips",
        "Golden samples with another class than expected.",
        lambda c: c.golden.flips if c.golden else 0,
    ),
    _Counter(
        "golden_deviating",
        "Golden samples of which an output left its tolerance.",
        lambda c: c.golden.deviating if c.golden else 0,
    ),
    _Counter(
        "golden_labelled",
        "Golden samples that have a label.",
        lambda c: c.golden.labelled if c.golden else 0,
    ),
    _Counter(
        "golden_correct",
        "Golden samples with a label that were right.",
        lambda c: c.golden.correct if c.golden else 0,
    ),
    _Counter(
        "estimated",
        "Answers with a calibrated confidence.",
        lambda c: c.estimate.samples if c.estimate else 0,
    ),
    _Counter(
        "estimated_correct",
        "How many of those were right as their calibrated confidence has it; blind to drifting "
        "concepts.",
        lambda c: c.estimate.sum_p / 1_000_000 if c.estimate else 0,
    ),
)


class ReleaseMetrics:
    """The metrics of releases: in the fleet, or on one device."""

    def __init__(self, prefix: str, labels: tuple[str, ...]) -> None:
        """`labels` tell the series of one metric apart."""
        self._counters = tuple(
            (Metric(f"{prefix}{each.name}_total", "counter", each.help, labels), each.of)
            for each in _COUNTERS
        )
        self._latency = Metric(
            f"{prefix}latency_seconds",
            "histogram",
            "From request to answer; bounds are met within 1%.",
            labels,
        )

    @property
    def all(self) -> tuple[Metric, ...]:
        """Every metric."""
        return (*(metric for metric, _ in self._counters), self._latency)

    def families(self, releases: Iterable[tuple[Labels, Counts]]) -> Iterator[Family]:
        """Yield every metric with a series for each release."""
        known = tuple(releases)
        for metric, of in self._counters:
            yield Family(metric, [(labels, of(counts)) for labels, counts in known])
        yield Family(
            self._latency, [(labels, latency_buckets(each.latency)) for labels, each in known]
        )


FLEET_RELEASES = ReleaseMetrics(f"{PREFIX}model_", ("model", "version"))
DEVICE_RELEASES = ReleaseMetrics(f"{PREFIX}device_model_", ("device", "model", "version"))


def latency_buckets(latency: Histogram) -> Buckets:
    """Return latencies in the classic buckets; each value counts as the middle of its bin."""
    counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
    total = 0.0
    for place, count in latency.bins.items():
        value_s = Histogram(bins={place: 1}).quantile_us(0) or 0.0
        value_s /= 1_000_000
        total += value_s * count
        over = sum(value_s > bound for bound in LATENCY_BOUNDS_S)
        counts[over] += count
    bounds, running = [], 0
    for bound, count in zip((*LATENCY_BOUNDS_S, float("inf")), counts, strict=True):
        running += count
        bounds.append((bound, running))
    return Buckets(tuple(bounds), total)


@dataclass(frozen=True, slots=True)
class _Gauge:
    metric: Metric
    of: Callable[[Health], float | None]


def _health(name: str, help: str, of: Callable[[Health], float | None]) -> _Gauge:
    kind: Kind = "counter" if name.endswith("_total") else "gauge"
    return _Gauge(Metric(f"{PREFIX}device_{name}", kind, help, ("device",)), of)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


_HEALTH = (
    _health("health_timestamp_seconds", "When the device took these readings.", lambda h: h.at),
    _health("uptime_seconds", "Since the machine booted.", lambda h: h.uptime_s),
    _health("cpu_utilization_ratio", "Of the whole machine.", lambda h: _share(h.cpu_percent)),
    _health("load1", "Tasks that run or wait, over a minute.", lambda h: h.load_1m),
    _health("memory_size_bytes", "What there is.", lambda h: h.memory_total_bytes),
    _health("memory_available_bytes", "What is to be had.", lambda h: h.memory_available_bytes),
    _health("swap_used_bytes", "Swapped out.", lambda h: h.swap_used_bytes),
    _health(
        "filesystem_size_bytes",
        "The file system that holds the agent's data.",
        lambda h: h.disk_total_bytes,
    ),
    _health(
        "filesystem_free_bytes", "Free on the same file system.", lambda h: h.disk_free_bytes
    ),
    _health("temperature_celsius", "The hottest reading.", lambda h: h.temperature_c),
    _health(
        "throttled", "1: the processor is slowed for heat or low voltage.", lambda h: h.throttled
    ),
    _health(
        "network_receive_bytes_total",
        "Since boot, on all interfaces but the loopback.",
        lambda h: h.network_received_bytes,
    ),
    _health(
        "network_transmit_bytes_total",
        "Since boot, on all interfaces but the loopback.",
        lambda h: h.network_sent_bytes,
    ),
    _health(
        "clock_synchronised", "1: the clock follows a time server.", lambda h: h.clock_synchronised
    ),
    _health(
        "clock_stepped_seconds",
        "How far the clock was set, in all, since the agent started.",
        lambda h: h.clock_stepped_s,
    ),
    _health(
        "agent_cpu_utilization_ratio", "Of one core.", lambda h: _share(h.agent_cpu_percent)
    ),
    _health("agent_memory_rss_bytes", "The agent, shared pages in full.",
            lambda h: h.agent_rss_bytes),
    _health("agent_memory_pss_bytes", "The agent, shared pages in part.",
            lambda h: h.agent_pss_bytes),
    _health("agent_starts_total", "Starts on this data directory.", lambda h: h.agent_starts),
    _health(
        "engine_cpu_utilization_ratio", "Of one core.", lambda h: _share(h.engine_cpu_percent)
    ),
    _health("engine_memory_rss_bytes", "The engines, shared pages in full.",
            lambda h: h.engine_rss_bytes),
    _health("engine_memory_pss_bytes", "The engines, shared pages in part.",
            lambda h: h.engine_pss_bytes),
    _health("engine_restarts_total", "Engines started anew after a crash or hang.",
            lambda h: h.engine_restarts),
    _health(
        "broker_round_trip_seconds",
        "From a report to the broker's acknowledgement of it.",
        lambda h: None if h.broker_rtt_ms is None else h.broker_rtt_ms / 1000,
    ),
    _health("battery_charge_ratio", "Of a full battery.", lambda h: _share(h.battery_percent)),
    _health("battery_charging", "1: it is being charged.", lambda h: h.battery_charging),
    _health(
        "outbox_items", "Reports that the controller has not yet.", lambda h: h.outbox_waiting
    ),
    _health("outbox_size_bytes", "The same on the disk.", lambda h: h.outbox_bytes),
    _health("outbox_dropped_total", "Reports lost for want of room.",
            lambda h: h.outbox_dropped),
    _health("outbox_merged_total", "Reports merged into others to save room.",
            lambda h: h.outbox_merged),
    _health("transfer_received_bytes_total", "Of releases, since the agent started.",
            lambda h: h.transfer_bytes),
    _health("transfer_bad_chunks_total", "Frames that were cut, poisoned or misaddressed.",
            lambda h: h.chunks_bad),
    _health("flash_written_bytes_total", "Given to the disk since the agent started.",
            lambda h: h.flash_bytes_written),
)  # fmt: skip


def _pipeline(name: str, help: str, *labels: str) -> Metric:
    labels = ("device", "pipeline", *labels)
    return Metric(f"{PREFIX}device_pipeline_{name}_total", "counter", help, labels)


_PRESSURE = Metric(
    f"{PREFIX}device_pressure_ratio",
    "gauge",
    "Share of the last minute in which some task waited for the resource.",
    ("device", "resource"),
)
_TAKEN = _pipeline("frames", "Frames that a source gave.")
_ANSWERED = _pipeline("answered", "Frames whose answers are with the sink.")
_DROPPED = _pipeline("dropped", "Frames let go unasked.", "reason")
_FAILED = _pipeline("failed", "Frames for which the model has no answer.", "reason")
_RETRIES = _pipeline("retries", "Tries again at a request or a sink.")
_RESTARTS = _pipeline("restarts", "Commands started anew.")

DEVICE_HEALTH = (
    *(each.metric for each in _HEALTH),
    _PRESSURE, _TAKEN, _ANSWERED, _DROPPED, _FAILED, _RETRIES, _RESTARTS,
)  # fmt: skip
"""Every metric of a device's health."""


def health_families(health: Health) -> Iterator[Family]:
    """Yield what a health report says; what a device cannot measure has no series."""
    id = health.device
    for each in _HEALTH:
        family = Family(each.metric)
        family.add(each.of(health), id)
        yield family
    pressure = [((id, name), percent / 100) for name, percent in sorted(health.pressure.items())]
    yield Family(_PRESSURE, [*pressure])
    for metric, count in ((_TAKEN, "taken"), (_ANSWERED, "answered"), (_RETRIES, "retries"),
                          (_RESTARTS, "restarts")):  # fmt: skip
        family = Family(metric)
        for name, counts in sorted(health.pipelines.items()):
            family.add(getattr(counts, count), id, name)
        yield family
    for metric, count in ((_DROPPED, "dropped"), (_FAILED, "failed")):
        family = Family(metric)
        for name, counts in sorted(health.pipelines.items()):
            for reason, number in sorted(getattr(counts, count).items()):
                family.add(number, id, name, reason)
        yield family
