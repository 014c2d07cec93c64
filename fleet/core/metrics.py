"""What the controller tells a Prometheus: a snapshot of what it knows, as metrics.

The number of series is bounded whatever the size of the fleet: devices are counted, never listed,
and releases beyond MAX_RELEASES are left out. A device has a page of its own, on demand.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from fleet.core import present
from fleet.core.books import Release
from fleet.core.census import Census, Device
from fleet.core.report_views import ReleaseReportView, ReportView
from fleet.core.rollout import Rollout
from fleet.core.scores import Totals
from fleet.core.tally import Tally
from fleet.core.views import RolloutStatus
from wire.metrics import (
    DEVICE_HEALTH,
    DEVICE_RELEASES,
    FLEET_RELEASES,
    PREFIX,
    Buckets,
    Family,
    Kind,
    Metric,
    health_families,
)
from wire.telemetry import CONFIDENCE_BINS, MILLION, Health
from wire.twin import Phase

MAX_RELEASES = 100
"""With series of their own: those that serve or are being rolled out, then the newest."""
MAX_JUDGED = 20
"""Releases with accuracy and drift of the last day; each feature is a series."""
MAX_ROLLOUTS = 20
"""Under way, with their devices by phase."""
MAX_WORDS = 20
"""Versions of agents, reasons, rules of alerts: what comes from elsewhere."""
OTHER = "other"

RECENT_S = 86_400
"""What accuracy and drift are of."""

_RELEASE = ("model", "version")


def _metric(name: str, help: str, *labels: str, kind: Kind | None = None) -> Metric:
    usual: Kind = "counter" if name.endswith("_total") else "gauge"
    return Metric(f"{PREFIX}{name}", kind or usual, help, labels)


BUILD = _metric("build_info", "1, with the controller's version.", "version")
STARTED = _metric("controller_start_time_seconds", "When the controller started.")
SNAPSHOT = _metric("snapshot_timestamp_seconds", "When these numbers were put together.")
LEFT_OUT = _metric("releases_left_out", "Releases without series of their own.")
CONNECTED = _metric("broker_connected", "1: the controller has its broker.")
QUEUE = _metric("controller_queue_items", "What waits for the controller's loop.")
DEVICES = _metric("devices", "Devices ever heard of.", "state")
CLASHES = _metric("devices_clashing", "Ids under which two agents speak.")
AGENTS = _metric("devices_by_agent", "Devices by the version of their agent.", "version")
SERVING = _metric("devices_serving", "Devices that a release answers on.", *_RELEASE)
DOWN = _metric("devices_engine_down", "Devices on which a release should answer and does not.",
               *_RELEASE)  # fmt: skip
DEPLOYMENTS = _metric(
    "deployments", "Devices by the phase of their latest deployment.", *_RELEASE, "phase"
)
RELEASES = _metric("releases", "Releases in the store.")
ROLLOUTS = _metric("rollouts", "Rollouts by status.", "status")
ROLLOUT_DEVICES = _metric(
    "rollout_devices", "Devices of rollouts under way, by phase.", "rollout", *_RELEASE, "phase"
)
CHUNKS = _metric("transfer_chunks_sent_total", "Chunks of releases published.")
CHUNK_BYTES = _metric("transfer_sent_bytes_total", "The same in bytes.")
REFUSED = _metric("transfer_refused_total", "Chunks that were asked for and not sent.")
INGESTED = _metric("telemetry_received_total", "Telemetry taken in, by what it is.", "kind")
DROPPED = _metric("telemetry_dropped_total", "Messages of devices not taken in.", "reason")
GAPS = _metric("telemetry_gaps_total", "Windows that devices, or the way here, lost.")
ODD_CLOCKS = _metric("telemetry_clock_odd_total", "Windows dated far from when they came.")
CONFIDENCE = _metric(
    "model_confidence_ratio", "Top scores of answers.", *_RELEASE, kind="histogram"
)
SHADOW = tuple(
    _metric(f"model_shadow_{name}_total", help, *_RELEASE)
    for name, help in (
        ("pairs", "Inputs that this release and a challenger both answered."),
        ("disagreements", "Pairs answered differently."),
        ("labelled", "Pairs whose true label came."),
        ("worse", "Labelled pairs that this release alone had right."),
        ("better", "Labelled pairs that the challenger alone had right."),
    )
)
ACCURACY = _metric(
    "model_accuracy_ratio", "Share of right answers over a day; kinds are never blended.",
    *_RELEASE, "kind",
)  # fmt: skip
ACCURACY_LOW = _metric(
    "model_accuracy_lower_bound_ratio", "Lower end of its 95% interval over devices.",
    *_RELEASE, "kind",
)  # fmt: skip
ACCURACY_HIGH = _metric(
    "model_accuracy_upper_bound_ratio", "Upper end of its 95% interval over devices.",
    *_RELEASE, "kind",
)  # fmt: skip
COVERAGE = _metric("model_label_coverage_ratio", "Answers of a day with a label.", *_RELEASE)
DRIFT = _metric(
    "model_drift_effect_ratio",
    "Distance of a day's values from the baseline, 0 to 1.",
    *_RELEASE, "feature",
)  # fmt: skip
DRIFTED = _metric(
    "model_features_drifted", "Features that differ from the baseline surely and much.", *_RELEASE
)
NOTICES = _metric("notices_total", "Posts to webhooks and Alertmanager.", "output", "outcome")
ALERTS = _metric("alerts", "Alerts of the controller that are firing.", "rule", "severity")

OUTBOX = _metric("devices_outbox_items", "Reports waiting on devices that are online.")
THROTTLED = _metric("devices_throttled", "Online devices slowed for heat or low voltage.")
CLOCKS = _metric("devices_clock_unsynchronised", "Online devices whose clock follows nobody.")


@dataclass(frozen=True, slots=True)
class _Spread:
    """A reading of all devices, as its least, middle and greatest."""

    metric: Metric
    of: Callable[[Health], float | None]


def _spread(name: str, help: str, of: Callable[[Health], float | None]) -> _Spread:
    return _Spread(_metric(f"devices_{name}", help, "statistic"), of)


SPREADS = (
    _spread("cpu_utilization_ratio", "Of the whole machine.", lambda h: h.cpu_percent / 100),
    _spread(
        "memory_available_ratio",
        "Of a machine's memory.",
        lambda h: h.memory_available_bytes / h.memory_total_bytes if h.memory_total_bytes else None,
    ),
    _spread(
        "filesystem_free_ratio",
        "Of the file system with the agent's data.",
        lambda h: h.disk_free_bytes / h.disk_total_bytes if h.disk_total_bytes else None,
    ),
    _spread("temperature_celsius", "The hottest reading.", lambda h: h.temperature_c),
    _spread(
        "broker_round_trip_seconds",
        "From a report to the broker's word for it.",
        lambda h: None if h.broker_rtt_ms is None else h.broker_rtt_ms / 1000,
    ),
)

DEVICE_ONLINE = _metric("device_online", "1: the device is there.", "device")
DEVICE_SEEN = _metric("device_last_seen_timestamp_seconds", "When it last spoke.", "device")
DEVICE_INFO = _metric("device_info", "1, with its agent and its machine.", "device", "agent",
                      "architecture")  # fmt: skip
DEVICE_LABELS = _metric("device_labels", "1, with each label as label_NAME.", "device")
DEVICE_SERVING = _metric("device_serving", "1: a release answers there; 0: it should.",
                         "device", *_RELEASE, "variant")  # fmt: skip
DEVICE_DEPLOYMENT = _metric(
    "device_deployment", "1, with the phase of its latest deployment.",
    "device", *_RELEASE, "phase",
)  # fmt: skip

FLEET = (
    BUILD, STARTED, SNAPSHOT, LEFT_OUT, CONNECTED, QUEUE, DEVICES, CLASHES, AGENTS, SERVING, DOWN,
    DEPLOYMENTS, RELEASES, ROLLOUTS, ROLLOUT_DEVICES, CHUNKS, CHUNK_BYTES, REFUSED, INGESTED,
    DROPPED, GAPS, ODD_CLOCKS, OUTBOX, THROTTLED, CLOCKS, *(each.metric for each in SPREADS),
    *FLEET_RELEASES.all, CONFIDENCE, *SHADOW, ACCURACY, ACCURACY_LOW, ACCURACY_HIGH, COVERAGE,
    DRIFT, DRIFTED, ALERTS, NOTICES,
)  # fmt: skip
"""Every metric of the controller's page, but those of its process."""

DEVICE = (
    DEVICE_ONLINE, DEVICE_SEEN, DEVICE_INFO, DEVICE_LABELS, DEVICE_SERVING, DEVICE_DEPLOYMENT,
    *DEVICE_HEALTH, *DEVICE_RELEASES.all,
)  # fmt: skip
"""Every metric of a device's page."""


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What became of telemetry since the controller started."""

    received: Mapping[str, int] = field(default_factory=dict)
    """By kind: windows, health, events."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    missing: int = 0
    """Numbers that were passed over."""
    clock_odd: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the controller's loop knows at one moment; taken there, looked at elsewhere."""

    at: float
    started_at: float
    version: str
    broker_connected: bool
    queue_items: int
    devices: tuple[Device, ...]
    rollouts: tuple[Rollout, ...]
    releases: tuple[Release, ...]
    chunks_sent: int = 0
    chunk_bytes_sent: int = 0
    chunks_refused: int = 0
    ingest: IngestCounts = IngestCounts()
    notices: tuple[tuple[str, str, int], ...] = ()
    """Output, outcome, and how often."""
    alerts: tuple[tuple[str, str], ...] = ()
    """Rule and severity of each that fires."""


Ref = tuple[str, int]


def chosen(snapshot: Snapshot) -> list[Ref]:
    """Return the releases that have series: in use first, then the newest."""
    used = Counter(
        (serving.model, serving.version)
        for device in snapshot.devices
        for serving in (device.reported.serving if device.reported else ())
    )
    for rollout in snapshot.rollouts:
        if not rollout.status.final:
            used[rollout.model, rollout.version] += 1
    known = sorted(snapshot.releases, key=lambda each: -each.pushed_at)
    refs = dict.fromkeys((each.manifest.model, each.manifest.version) for each in known)
    return sorted(refs, key=lambda ref: -used[ref])[:MAX_RELEASES]


def judged(snapshot: Snapshot) -> list[Ref]:
    """Return the releases whose accuracy and drift are looked at: those that answer somewhere."""
    answering = {
        (serving.model, serving.version)
        for device in snapshot.devices
        for serving in (device.reported.serving if device.reported else ())
    }
    return [ref for ref in chosen(snapshot) if ref in answering][:MAX_JUDGED]


def fleet_families(
    snapshot: Snapshot, totals: Iterable[Totals], reports: Iterable[ReportView]
) -> Iterator[Family]:
    """Yield the controller's page.

    `totals` are of everything ever counted, so that no counter falls; `reports` of the last day.
    """
    refs = chosen(snapshot)
    yield Family(BUILD, [((snapshot.version,), 1.0)])
    yield Family(STARTED, [((), snapshot.started_at)])
    yield Family(SNAPSHOT, [((), snapshot.at)])
    everything = {(each.manifest.model, each.manifest.version) for each in snapshot.releases}
    yield Family(LEFT_OUT, [((), float(len(everything) - len(refs)))])
    yield Family(CONNECTED, [((), float(snapshot.broker_connected))])
    yield Family(QUEUE, [((), float(snapshot.queue_items))])
    yield from _device_families(snapshot, refs)
    yield from _rollout_families(snapshot)
    yield Family(CHUNKS, [((), float(snapshot.chunks_sent))])
    yield Family(CHUNK_BYTES, [((), float(snapshot.chunk_bytes_sent))])
    yield Family(REFUSED, [((), float(snapshot.chunks_refused))])
    yield from _ingest_families(snapshot.ingest)
    yield from _release_families(refs, totals)
    yield from _judged_families(snapshot, reports)
    firing = Counter(snapshot.alerts)
    yield Family(NOTICES, [((to, outcome), float(n)) for to, outcome, n in snapshot.notices])
    yield Family(ALERTS, [(pair, float(n)) for pair, n in firing.most_common(10 * MAX_WORDS)])


def device_families(device: Device, totals: Iterable[Totals], now: float) -> Iterator[Family]:
    """Yield the page of one device."""
    id = device.id
    yield Family(DEVICE_ONLINE, [((id,), float(device.online(now)))])
    yield Family(DEVICE_SEEN, [((id,), device.last_seen)])
    if device.reported is not None:
        reported = device.reported
        yield Family(DEVICE_INFO, [((id, reported.agent, reported.capabilities.architecture), 1.0)])
        labels = {_label_name(name): value for name, value in sorted(reported.labels.items())}
        metric = Metric(DEVICE_LABELS.name, "gauge", DEVICE_LABELS.help, ("device", *labels))
        yield Family(metric, [((id, *labels.values()), 1.0)])
        yield Family(DEVICE_SERVING, [
            ((id, each.model, str(each.version), each.variant), float(bool(each.runtime)))
            for each in reported.serving
        ])  # fmt: skip
        yield Family(DEVICE_DEPLOYMENT, [
            ((id, each.model, str(each.version), str(each.phase)), 1.0)
            for each in {each.model: each for each in reported.deployments}.values()
        ])  # fmt: skip
    if device.health is not None:
        yield from health_families(device.health)
    sums = _by_release(totals)
    yield from DEVICE_RELEASES.families(
        ((id, model, str(version)), each) for (model, version), each in sorted(sums.items())
    )


def _label_name(name: str) -> str:
    return "label_" + re.sub(r"[^a-z0-9_]", "_", name)


def _by_release(totals: Iterable[Totals]) -> dict[Ref, Totals]:
    sums: dict[Ref, Tally] = {}
    for each in totals:
        sums.setdefault((each.model, each.version), Tally()).merge(Tally.of_totals(each))
    return {ref: each.totals("", *ref, "", "") for ref, each in sums.items()}


def _device_families(snapshot: Snapshot, refs: Sequence[Ref]) -> Iterator[Family]:
    now, known = snapshot.at, set(refs)
    states = Counter("online" if each.online(now) else "offline" for each in snapshot.devices)
    yield Family(DEVICES, [((state,), float(states[state])) for state in ("online", "offline")])
    yield Family(CLASHES, [((), float(sum(each.clash(now) for each in snapshot.devices)))])
    agents: Counter[str] = Counter()
    serving: Counter[tuple[str, str]] = Counter()
    down: Counter[tuple[str, str]] = Counter()
    phases: Counter[tuple[str, str, str]] = Counter()
    for device in snapshot.devices:
        if device.reported is None:
            continue
        agents[device.reported.agent] += 1
        for each in device.reported.serving:
            labels = _labels(each.model, each.version, known)
            (serving if each.runtime else down)[labels] += 1
        for report in {each.model: each for each in device.reported.deployments}.values():
            phases[*_labels(report.model, report.version, known), str(report.phase)] += 1
    for ref in refs:
        serving[_labels(*ref, known)] += 0
        down[_labels(*ref, known)] += 0
        phases[*_labels(*ref, known), str(Phase.COMMITTED)] += 0
    yield Family(AGENTS, [((word,), float(n)) for word, n in _words(agents)])
    yield Family(SERVING, [(labels, float(n)) for labels, n in sorted(serving.items())])
    yield Family(DOWN, [(labels, float(n)) for labels, n in sorted(down.items())])
    yield Family(DEPLOYMENTS, [(labels, float(n)) for labels, n in sorted(phases.items())])
    health = [each.health for each in snapshot.devices if each.health and each.online(now)]
    yield Family(OUTBOX, [((), float(sum(each.outbox_waiting for each in health)))])
    yield Family(THROTTLED, [((), float(sum(bool(each.throttled) for each in health)))])
    unset = sum(each.clock_synchronised is False for each in health)
    yield Family(CLOCKS, [((), float(unset))])
    for spread in SPREADS:
        read = sorted(v for v in map(spread.of, health) if v is not None)
        family = Family(spread.metric)
        if read:
            family.add(read[0], "min")
            family.add(median(read), "median")
            family.add(read[-1], "max")
        yield family


def _labels(model: str, version: int, known: set[Ref]) -> tuple[str, str]:
    return (model, str(version)) if (model, version) in known else (OTHER, OTHER)


def _words(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return the most frequent words, and the rest as one."""
    kept = counts.most_common(MAX_WORDS)
    rest = sum(counts.values()) - sum(n for _, n in kept)
    return [*kept, (OTHER, rest)] if rest else kept


def _rollout_families(snapshot: Snapshot) -> Iterator[Family]:
    yield Family(RELEASES, [((), float(len(snapshot.releases)))])
    statuses = Counter(rollout.status for rollout in snapshot.rollouts)
    yield Family(ROLLOUTS, [((str(each),), float(statuses[each])) for each in RolloutStatus])
    active = [each for each in snapshot.rollouts if not each.status.final][-MAX_ROLLOUTS:]
    family = Family(ROLLOUT_DEVICES)
    if active:
        census = Census()
        for device in snapshot.devices:
            census.restore(device)
        for rollout in active:
            counts: Counter[str] = Counter()
            for wave in present.rollout_view(rollout, census, snapshot.at).waves:
                counts.update(wave.counts)
            for phase, number in sorted(counts.items()):
                family.add(number, rollout.id, rollout.model, str(rollout.version), phase)
    yield family


def _ingest_families(ingest: IngestCounts) -> Iterator[Family]:
    yield Family(INGESTED, [((kind,), float(n)) for kind, n in sorted(ingest.received.items())])
    reasons = _words(Counter(ingest.dropped))
    yield Family(DROPPED, [((reason,), float(n)) for reason, n in sorted(reasons)])
    yield Family(GAPS, [((), float(ingest.missing))])
    yield Family(ODD_CLOCKS, [((), float(ingest.clock_odd))])


def _release_families(refs: Sequence[Ref], totals: Iterable[Totals]) -> Iterator[Family]:
    sums = _by_release(totals)
    known = [((model, str(version)), sums[model, version])
             for model, version in refs if (model, version) in sums]  # fmt: skip
    yield from FLEET_RELEASES.families(known)
    yield Family(CONFIDENCE, [(labels, _confidence(each)) for labels, each in known])
    for metric, of in zip(SHADOW, _SHADOW_OF, strict=True):
        yield Family(metric, [(labels, float(of(each))) for labels, each in known])


_SHADOW_OF: tuple[Callable[[Totals], int], ...] = (
    lambda t: t.shadow_pairs,
    lambda t: t.shadow_disagreements,
    lambda t: t.shadow_labelled,
    lambda t: t.shadow_worse,
    lambda t: t.shadow_better,
)


def _confidence(totals: Totals) -> Buckets:
    running, bounds = 0, []
    for place in range(CONFIDENCE_BINS):
        running += totals.confidence.get(place, 0)
        bounds.append(((place + 1) / CONFIDENCE_BINS, running))
    beyond = sum(n for place, n in totals.confidence.items() if place >= CONFIDENCE_BINS)
    bounds.append((float("inf"), running + beyond))
    return Buckets(tuple(bounds), totals.confidence_sum / MILLION)


def _judged_families(snapshot: Snapshot, reports: Iterable[ReportView]) -> Iterator[Family]:
    wanted = set(judged(snapshot))
    known: list[tuple[tuple[str, str], ReleaseReportView]] = [
        ((report.model, str(each.version)), each)
        for report in reports
        for each in report.releases
        if (report.model, each.version) in wanted
    ]
    accuracy, low, high = Family(ACCURACY), Family(ACCURACY_LOW), Family(ACCURACY_HIGH)
    coverage, drift, drifted = Family(COVERAGE), Family(DRIFT), Family(DRIFTED)
    for labels, view in known:
        for kind in view.accuracy:
            accuracy.add(kind.accuracy, *labels, kind.kind)
            low.add(kind.low, *labels, kind.kind)
            high.add(kind.high, *labels, kind.kind)
        coverage.add(view.labels.coverage, *labels)
        for feature in view.drift:
            drift.add(feature.effect, *labels, feature.name)
        drifted.add(sum(feature.drifted for feature in view.drift) if view.drift else None, *labels)
    yield from (accuracy, low, high, coverage, drift, drifted)
