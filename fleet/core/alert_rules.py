"""What the rules see: numbers of models and devices become readings.

No data is no reading. A subject that is no more (a release that nothing serves) is told as gone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

from fleet.core.alert_policy import (
    STATED,
    AccuracyRule,
    CrashRule,
    DeviceRule,
    DriftRule,
    GaugeRule,
    LatencyRule,
    LossRule,
    ModelRule,
    Policy,
    RateRule,
    Rule,
    SilentRule,
    words_of,
)
from fleet.core.alerts import Facts, Grade, Reading, Subject, key_of
from fleet.core.census import Device
from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.core.scores import Totals
from fleet.core.statistics.bound import Below, alpha_of_look, below_on_device, below_on_fleet
from fleet.core.statistics.drift import (
    DriftPolicy,
    DriftVerdict,
    FeatureDrift,
    design_effect,
    feature_drift,
    judge,
    reference_counts,
)
from fleet.core.statistics.hysteresis import Hysteresis, Latch
from fleet.core.statistics.quantiles import quantile
from fleet.core.target import parse_target
from wire.manifest import Manifest
from wire.telemetry import MILLION, Health

_LATE_S = 900
"""A window is judged so long after its end: what comes later still is not looked at."""

_HOUR_S = 3600
_MAX_TIMES = 128
_CONFORMING = 3
"""Devices without which nobody can say what golden accuracy should be."""


class Numbers(Protocol):
    """The telemetry that is kept."""

    def slices(self, query: Query, step: Step | None = None) -> list[Slice]:
        """Return sums by release, variant, group and step."""

    def devices(self, query: Query) -> list[DeviceCounts]:
        """Return counts by device, release and variant."""

    def gaps(self, since: int) -> Mapping[str, int]:
        """Return how many gaps each device told of."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the controller knows at one look, besides the numbers."""

    devices: tuple[Device, ...]
    manifests: Mapping[str, Manifest]
    """By digest."""
    hearing_since: float | None
    """Since when the controller hears devices; None: it does not."""
    known: frozenset[str]
    """Keys of alerts that are not over: only for those does anybody ask whether all is well."""


@dataclass(frozen=True, slots=True)
class Track:
    """Counters of one device as they were last seen, and when they grew."""

    boot: str = ""
    starts: int = 0
    restarts: int = 0
    dropped: int = 0
    crashes: tuple[float, ...] = ()
    losses: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What a look needs to know of earlier ones."""

    tracks: Mapping[str, Track] = field(default_factory=dict)
    """By device."""
    latches: Mapping[str, tuple[Latch, int, str]] = field(default_factory=dict)
    """Key -> where drift stands, until when it was judged, and in what words."""
    looked: Mapping[str, float] = field(default_factory=dict)
    """Rule -> when."""


def look(
    policy: Policy, scene: Scene, numbers: Numbers, memory: Memory, now: float
) -> tuple[Facts, Memory]:
    """Return what the rules that are due see, and what to remember."""
    due = [each for each in policy.rules() if _due(each, policy, memory, now)]
    if scene.hearing_since is not None:
        memory = replace(memory, tracks=_followed(memory.tracks, scene.devices, now))
    looker = _Looker(policy, scene, numbers, memory, now)
    readings: list[Reading] = []
    looked = set()
    for rule in due:
        found = looker.look(rule)
        if found is not None:
            looked.add(rule.name)
            readings += found
    times = {rule.name: now for rule in due}
    kept = {name: at for name, at in memory.looked.items() if name not in times}
    memory = replace(memory, latches=looker.latches, looked={**kept, **times})
    return Facts(tuple(readings), frozenset(looked)), memory


def _due(rule: Rule, policy: Policy, memory: Memory, now: float) -> bool:
    last = memory.looked.get(rule.name)
    every = rule.every or policy.every
    # A loop that wakes a moment early must not wait for the whole next round.
    return last is None or not 0 <= now - last < 0.9 * every


def _followed(
    tracks: Mapping[str, Track], devices: Iterable[Device], now: float
) -> Mapping[str, Track]:
    """Return the tracks after the latest health reports."""
    after = dict(tracks)
    for device in devices:
        if device.health is not None:
            after[device.id] = _grown(tracks.get(device.id), device.health, now)
    return after


def _grown(track: Track | None, health: Health, now: float) -> Track:
    starts, restarts = health.agent_starts or 0, health.engine_restarts
    dropped = health.outbox_dropped
    if track is None:
        return Track(health.boot, starts, restarts, dropped)
    began = 0
    if track.boot != health.boot:
        # A device that does not count its starts began at least once.
        began = max(1, starts - track.starts) if track.boot else 0
        track = replace(track, restarts=0, dropped=0)
    crashes = began + max(0, restarts - track.restarts)
    lost = max(0, dropped - track.dropped)
    losses = (*track.losses, (now, lost))[-_MAX_TIMES:] if lost else track.losses
    return Track(
        health.boot,
        starts,
        restarts,
        dropped,
        (*track.crashes, *[now] * min(crashes, _MAX_TIMES))[-_MAX_TIMES:],
        losses,
    )


@dataclass(frozen=True, slots=True)
class _Served:
    """A release that some devices serve."""

    manifest: Manifest
    digest: str
    devices: frozenset[str]


class _Looker:
    """One look of all rules that are due."""

    def __init__(
        self, policy: Policy, scene: Scene, numbers: Numbers, memory: Memory, now: float
    ) -> None:
        self._policy = policy
        self._scene = scene
        self._numbers = numbers
        self._memory = memory
        self._now = now
        self._counted: dict[Query, list[DeviceCounts]] = {}
        self.latches = dict(memory.latches)

    def look(self, rule: Rule) -> list[Reading] | None:
        """Return the readings of one rule; None: it could not look at all."""
        if isinstance(rule, ModelRule):
            return list(self._of_models(rule))
        if self._scene.hearing_since is None:
            return None
        return list(self._of_devices(rule))

    def _reading(self, rule: Rule, subject: Subject, grade: Grade, text: str) -> Iterator[Reading]:
        if grade == "bad" or key_of(rule.name, subject) in self._scene.known:
            every = rule.every or self._policy.every
            yield Reading(rule.name, subject, grade, text, every)

    # ---- devices

    def _of_devices(self, rule: DeviceRule) -> Iterator[Reading]:
        target = parse_target(rule.to)
        gaps: Mapping[str, int] = {}
        if isinstance(rule, LossRule) and rule.kind == "gaps":
            gaps = self._numbers.gaps(int(self._now - rule.window))
        for device in self._scene.devices:
            if not target.matches(device.facts):
                continue
            match rule:
                case SilentRule():
                    seen = self._silent(rule, device)
                case GaugeRule():
                    seen = self._gauge(rule, device)
                case CrashRule():
                    seen = self._crashes(rule, device)
                case LossRule():
                    seen = self._losses(rule, device, gaps)
            if seen is not None:
                grade, text = seen
                yield from self._reading(rule, Subject(device.id, device=device.id), grade, text)

    def _silent(self, rule: SilentRule, device: Device) -> tuple[Grade, str] | None:
        since = self._scene.hearing_since
        assert since is not None
        if not device.last_seen:
            return None
        # While we were deaf nobody was silent.
        quiet = self._now - max(device.last_seen, since)
        if quiet >= rule.after:
            return "bad", f"{device.id} says nothing for {_lasting(self._now - device.last_seen)}"
        if device.last_seen < since:
            return None
        return "good", f"{device.id} speaks again"

    def _gauge(self, rule: GaugeRule, device: Device) -> tuple[Grade, str] | None:
        health = device.health
        if health is None or not device.online(self._now):
            return None
        match rule.kind:
            case "throttled":
                if health.throttled is None:
                    return None
                if health.throttled:
                    return "bad", f"{device.id}: processor slowed down by heat or low voltage"
                return "good", f"{device.id}: processor at full speed"
            case "clock":
                return _clock(rule, device, health)
        value, text = _value(rule, health)
        if value is None:
            return None
        text = f"{device.id}: {text}"
        falls = rule.below is not None
        bound = rule.below if falls else rule.above
        assert bound is not None
        clear = bound if rule.clear is None else rule.clear
        if value < bound if falls else value > bound:
            word = "below" if falls else "above"
            return "bad", f"{text}, {word} {bound:g}"
        return ("good" if (value >= clear if falls else value <= clear) else "between"), text

    def _crashes(self, rule: CrashRule, device: Device) -> tuple[Grade, str] | None:
        track = self._memory.tracks.get(device.id)
        if track is None:
            return None
        count = sum(0 <= self._now - at < rule.window for at in track.crashes)
        text = f"{device.id}: {count} restarts of the agent or its engine in {_in(rule.window)}"
        if count >= rule.times:
            return "bad", text
        # A device that is away did not stop crashing, for all we know.
        return ("good", text) if device.online(self._now) else None

    def _losses(
        self, rule: LossRule, device: Device, gaps: Mapping[str, int]
    ) -> tuple[Grade, str] | None:
        if rule.kind == "gaps":
            count, what = gaps.get(device.id, 0), "gaps: windows lost at an unclean end,"
        else:
            track = self._memory.tracks.get(device.id)
            if track is None:
                return None
            count = sum(n for at, n in track.losses if 0 <= self._now - at < rule.window)
            what = "items dropped from its outbox for want of room"
        text = f"{device.id}: {count} {what} in {_in(rule.window)}"
        if count > rule.more_than:
            return "bad", text
        return ("good", text) if device.online(self._now) else None

    # ---- models

    def _of_models(self, rule: ModelRule) -> Iterator[Reading]:
        target = parse_target(rule.to)
        facts = {each.id: each.facts for each in self._scene.devices}
        chosen = frozenset(id for id, known in facts.items() if target.matches(known))
        served = _served(self._scene, rule.model, chosen)
        seen: set[str] = set()
        for model in sorted({each.manifest.model for each in served}):
            of_model = [each for each in served if each.manifest.model == model]
            match rule:
                case AccuracyRule() | RateRule():
                    found = self._shares(rule, of_model, facts)
                case LatencyRule():
                    found = self._latency(rule, of_model)
                case DriftRule():
                    found = self._drift(rule, of_model)
            for subject, grade, text in found:
                seen.add(key_of(rule.name, subject))
                yield from self._reading(rule, subject, grade, text)
        yield from self._gone(rule, served, seen)

    def _gone(self, rule: ModelRule, served: list[_Served], seen: set[str]) -> Iterator[Reading]:
        """Tell of alerts about a release that nothing meant by the rule serves any more."""
        names = {str(each.manifest.ref) for each in served}
        on = {f"{each.manifest.ref} on {id}" for each in served for id in each.devices}
        models = {each.manifest.model for each in served}
        for key in self._scene.known - seen:
            name, _, text = key.partition("|")
            if name != rule.name:
                continue
            there = text in on if " on " in text else text.split(" ")[0] in names | models
            if not there:
                every = rule.every or self._policy.every
                why = f"{text.split(' ')[0]} serves on no device any more"
                if " on " in text:
                    why = f"{text.replace(' on ', ' serves no more on ')}"
                yield Reading(rule.name, Subject(text), "gone", why, every)

    def _counts(self, rule: ModelRule, model: str) -> list[DeviceCounts]:
        by = rule.per if rule.per not in ("release", "model", "device") else None
        query = Query(model, since=max(0, int(self._now - rule.window)), by=by)
        if query not in self._counted:
            self._counted[query] = self._numbers.devices(query)
        return self._counted[query]

    def _shares(
        self,
        rule: AccuracyRule | RateRule,
        served: list[_Served],
        facts: Mapping[str, Mapping[str, str]],
    ) -> Iterator[tuple[Subject, Grade, str]]:
        """Return readings of shares: of right answers, or of requests that end badly."""
        manifests = {each.digest: each for each in served}
        cells: dict[Subject, dict[str, tuple[int, int]]] = {}
        stated: dict[Subject, Manifest] = {}
        for row in self._counts(rule, served[0].manifest.model):
            release = manifests.get(row.manifest)
            if release is None or row.device not in release.devices:
                continue
            subject = _subject(rule, release.manifest, row.device, facts.get(row.device, {}))
            if subject is None:
                continue
            good, total = _good(rule, row)
            cell = cells.setdefault(subject, {})
            before = cell.get(row.device, (0, 0))
            cell[row.device] = (before[0] + good, before[1] + total)
            newest = stated.get(subject)
            if newest is None or newest.version < release.manifest.version:
                stated[subject] = release.manifest
        usual = _usual(cells) if isinstance(rule, AccuracyRule) else {}
        for subject, cell in cells.items():
            counts = [(good, total) for good, total in cell.values() if total]
            if sum(total for _, total in counts) < rule.min_samples:
                continue
            if isinstance(rule, RateRule):
                grade, text = self._rate(rule, counts)
            else:
                bounds = _bounds(rule, stated[subject], usual.get(subject.release))
                if bounds is None:
                    continue
                grade, text = self._accuracy(rule, counts, *bounds)
            yield subject, grade, f"{subject.name}: {text}"

    def _alpha(self, rule: AccuracyRule | RateRule) -> float:
        return alpha_of_look(rule.false_alarms_a_year, rule.every or self._policy.every)

    def _accuracy(
        self, rule: AccuracyRule, counts: list[tuple[int, int]], bound: float, clear: float
    ) -> tuple[Grade, str]:
        if rule.evidence == "golden":
            # The same samples on every device: a fact, not a draw.
            good, total = sum(x for x, _ in counts), sum(n for _, n in counts)
            share = good / total
            text = f"golden accuracy {100 * share:.1f}% of {total}"
            if share < bound:
                return "bad", f"{text}: below {100 * bound:.1f}%"
            return ("good" if share >= clear else "between"), text
        below = _below(counts, bound, self._alpha(rule))
        assert below.share is not None
        text = f"{rule.evidence} accuracy {below.text}"
        if below.verdict == "below":
            return "bad", text
        return ("good" if below.share >= clear else "between"), text

    def _rate(self, rule: RateRule, counts: list[tuple[int, int]]) -> tuple[Grade, str]:
        below = _below(counts, 1 - rule.above, self._alpha(rule))
        assert below.share is not None
        share, low = 1 - below.share, 1 - below.high
        what = {"errors": "errors", "slo": "answers over budget", "drops": "refused for no room"}
        on = "one device" if below.devices == 1 else f"{below.devices} devices"
        text = f"{what[rule.kind]} {100 * share:.1f}% of {below.samples} requests on {on}"
        if below.verdict == "below":
            return "bad", f"{text}, at least {100 * low:.1f}%: above {100 * rule.above:g}%"
        clear = rule.above if rule.clear is None else rule.clear
        return ("good" if share <= clear else "between"), text

    def _totals(
        self, rule: LatencyRule | DriftRule, model: str, since: int, until: int, step: Step | None
    ) -> list[Slice]:
        terms = parse_target(rule.to).terms or ()  # the policy refuses all but one label
        by = terms[0][0] if terms else None
        if rule.per not in ("release", "model"):
            by = rule.per
        found = self._numbers.slices(Query(model, None, since, until, by), step)
        return [each for each in found if not terms or each.group == terms[0][1]]

    def _latency(
        self, rule: LatencyRule, served: list[_Served]
    ) -> Iterator[tuple[Subject, Grade, str]]:
        manifests = {each.digest: each.manifest for each in served}
        since = max(0, int(self._now - rule.window))
        sums: dict[Subject, Totals] = {}
        for each in self._totals(rule, served[0].manifest.model, since, 2**53, None):
            manifest = manifests.get(each.totals.manifest)
            if manifest is not None:
                subject = _of_group(rule, manifest, each.group)
                there = sums.get(subject)
                sums[subject] = each.totals if there is None else there.merge(each.totals)
        for subject, totals in sums.items():
            found = quantile(totals.latency, rule.quantile)
            if found is None or totals.latency.count < rule.min_samples:
                continue
            place = f"{subject.name}: p{100 * rule.quantile:g} latency"
            text = (
                f"{place} {found.value / 1000:.1f} ms ({found.low / 1000:.1f} to"
                f" {found.high / 1000:.1f}) of {totals.latency.count}"
            )
            clear = rule.above_ms if rule.clear_ms is None else rule.clear_ms
            if found.low > 1000 * rule.above_ms:
                yield subject, "bad", f"{text}, above {rule.above_ms:g} ms"
            elif found.value <= 1000 * clear:
                yield subject, "good", text
            else:
                yield subject, "between", text

    # ---- drift

    def _drift(
        self, rule: DriftRule, served: list[_Served]
    ) -> Iterator[tuple[Subject, Grade, str]]:
        """Judge the latest window that is over, once; between windows the verdict stands."""
        window = int(rule.window)
        until = int(self._now - _LATE_S) // window * window
        hours: dict[Subject, list[Totals]] | None = None
        hysteresis = Hysteresis(rule.needed, rule.of, rule.quiet)
        manifests = {each.digest: each.manifest for each in served}
        for subject in self._drifting(rule, served):
            key = key_of(rule.name, subject)
            latch, judged, text = self.latches.get(key, (Latch(), 0, ""))
            if judged < until:
                if hours is None:
                    hours = self._hours(rule, manifests, until - window, until)
                verdict = _verdict(rule, manifests, hours.get(subject, []))
                latch = hysteresis.after(latch, None if verdict is None else verdict.alarm)
                text = text if verdict is None else verdict.text
                self.latches[key] = (latch, until, text)
            if latch.raised:
                yield subject, "bad", f"{subject.name}: {text}"
            elif latch.recent and not latch.recent[-1]:
                yield subject, "good", f"{subject.name}: {text}"
            elif key in self._scene.known and text:
                # The latch forgets when it ends.
                yield subject, "good", f"{subject.name}: {text}"

    def _drifting(self, rule: DriftRule, served: list[_Served]) -> list[Subject]:
        """Return what drift is looked for in: releases with a baseline, or their label groups."""
        with_baseline = [each for each in served if each.manifest.baseline is not None]
        if rule.per == "release":
            return [_release(each.manifest) for each in with_baseline]
        facts = {each.id: each.facts for each in self._scene.devices}
        found: dict[Subject, None] = {}
        for each in with_baseline:
            for value in sorted({facts[id].get(rule.per, "") for id in each.devices} - {""}):
                found[_of_group(rule, each.manifest, value)] = None
        return list(found)

    def _hours(
        self, rule: DriftRule, manifests: Mapping[str, Manifest], since: int, until: int
    ) -> dict[Subject, list[Totals]]:
        model = next(iter(manifests.values())).model
        by_hour: dict[Subject, dict[int, Totals]] = {}
        for each in self._totals(rule, model, since, until, "hour"):
            manifest = manifests.get(each.totals.manifest)
            if manifest is None or not since <= each.start < until:
                continue
            hours = by_hour.setdefault(_of_group(rule, manifest, each.group), {})
            there = hours.get(each.start)
            hours[each.start] = each.totals if there is None else there.merge(each.totals)
        return {subject: [hours[at] for at in sorted(hours)] for subject, hours in by_hour.items()}


def _verdict(
    rule: DriftRule, manifests: Mapping[str, Manifest], hours: Sequence[Totals]
) -> DriftVerdict | None:
    """Judge the hours of one window against the baseline of their release."""
    if not hours:
        return None
    return drift_verdict(
        manifests[hours[0].manifest],
        hours,
        DriftPolicy(rule.false_discoveries, rule.min_effect, rule.min_samples),
    )


def drift_verdict(
    manifest: Manifest, hours: Sequence[Totals], policy: DriftPolicy
) -> DriftVerdict | None:
    """Return whether the counts of these spans of time drifted; None without a baseline."""
    baseline = manifest.baseline
    if baseline is None:
        return None
    drifts: dict[str, FeatureDrift | None] = {}
    for place, feature in enumerate(baseline.features):
        reference = reference_counts(feature)
        rows = [each.drift.get(place, ()) for each in hours]
        rows = [row for row in rows if len(row) == len(reference)]
        drifts[feature.name] = _compared(reference, rows, policy.samples)
    if baseline.predicted:
        classes = range(len(baseline.predicted))
        rows = [tuple(each.predicted.get(n, 0) for n in classes) for each in hours]
        every = baseline.every or 1
        drifts["answers"] = _compared(baseline.predicted, rows, policy.samples, 0, every)
    return judge(drifts, policy)


def _compared(
    reference: Sequence[int],
    rows: Sequence[Sequence[int]],
    samples: int,
    apart: int = 2,
    every: int = 1,
) -> FeatureDrift | None:
    if not rows:
        return None
    live = [sum(column) // every for column in zip(*rows, strict=True)]
    return feature_drift(reference, live, design_effect(rows), apart, samples)


def _served(scene: Scene, model: str | None, chosen: frozenset[str]) -> list[_Served]:
    """Return the releases that the chosen devices serve."""
    on: dict[str, set[str]] = {}
    for device in scene.devices:
        if device.id in chosen and device.reported is not None:
            for serving in device.reported.serving:
                on.setdefault(serving.manifest, set()).add(device.id)
    return [
        _Served(scene.manifests[digest], digest, frozenset(devices))
        for digest, devices in sorted(on.items())
        if digest in scene.manifests and model in (None, scene.manifests[digest].model)
    ]


def _release(manifest: Manifest) -> Subject:
    return Subject(str(manifest.ref), manifest.model, manifest.version)


def _subject(
    rule: ModelRule, manifest: Manifest, device: str, facts: Mapping[str, str]
) -> Subject | None:
    match rule.per:
        case "device":
            name = f"{manifest.ref} on {device}"
            return Subject(name, manifest.model, manifest.version, device)
        case "release" | "model":
            return _of_group(rule, manifest, "")
        case label:
            value = facts.get(label, "")
            return _of_group(rule, manifest, value) if value else None


def _of_group(rule: ModelRule, manifest: Manifest, group: str) -> Subject:
    if rule.per == "model":
        return Subject(manifest.model, manifest.model)
    if rule.per == "release":
        return _release(manifest)
    label = f"{rule.per}={group}"
    return Subject(f"{manifest.ref} {label}", manifest.model, manifest.version, label=label)


def _good(rule: AccuracyRule | RateRule, row: DeviceCounts) -> tuple[int, int]:
    """Return (good, all) of what a rule counts."""
    if isinstance(rule, RateRule):
        if rule.kind == "drops":
            return row.requests, row.requests + row.drops
        bad = row.errors if rule.kind == "errors" else row.slo_misses
        return max(0, row.requests - bad), max(row.requests, bad)
    match rule.evidence:
        case "labelled":
            return min(row.correct, row.labelled), row.labelled
        case "golden":
            return min(row.golden_correct, row.golden_labelled), row.golden_labelled
        case "estimated":
            right = round(row.estimate_sum_p / MILLION)
            return min(right, row.estimate_samples), row.estimate_samples


def _below(counts: list[tuple[int, int]], bound: float, alpha: float) -> Below:
    if len(counts) == 1:
        return below_on_device(*counts[0], bound, alpha)
    return below_on_fleet(counts, bound, alpha)


def _usual(cells: Mapping[Subject, Mapping[str, tuple[int, int]]]) -> dict[str, float]:
    """Return the share that half of the devices of each release reach."""
    shares: dict[str, list[float]] = {}
    for subject, cell in cells.items():
        mine = shares.setdefault(subject.release, [])
        mine += [good / total for good, total in cell.values() if total]
    return {name: median(each) for name, each in shares.items() if len(each) >= _CONFORMING}


def _bounds(
    rule: AccuracyRule, manifest: Manifest, usual: float | None
) -> tuple[float, float] | None:
    """Return below which share it is bad, and from which on it is good; None: nobody says."""
    if rule.below is not None:
        return rule.below, rule.below if rule.clear is None else rule.clear
    assert rule.drop is not None
    should = usual if rule.evidence == "golden" else stated_accuracy(manifest, rule.metric)
    if should is None:
        return None
    bound = should - rule.drop
    clear = bound if rule.clear is None else should - rule.clear
    return (bound, clear) if 0 < bound < 1 else None


def stated_accuracy(manifest: Manifest, metric: str | None = None) -> float | None:
    """Return the accuracy that a release states of itself."""
    names = STATED if metric is None else (metric,)
    return next((manifest.metrics[name] for name in names if name in manifest.metrics), None)


def _value(rule: GaugeRule, health: Health) -> tuple[float | None, str]:
    """Return a gauge and its words; None: the device does not tell."""
    match rule.kind:
        case "disk":
            total = health.disk_total_bytes
            free = 100 * health.disk_free_bytes / total if total else None
            return free, f"{free or 0:.1f}% of the disk free"
        case "memory":
            total = health.memory_total_bytes
            left = 100 * health.memory_available_bytes / total if total else None
            return left, f"{left or 0:.1f}% of memory available"
        case "temperature":
            degrees = health.temperature_c
            return degrees, f"{degrees or 0:.0f} °C"
        case "pressure":
            share = health.pressure.get(rule.resource)
            return share, f"{share or 0:.0f}% of a minute waiting for {rule.resource}"
        case _:
            charge = None if health.battery_charging else health.battery_percent
            return charge, f"battery {charge or 0:.0f}%"


def _clock(rule: GaugeRule, device: Device, health: Health) -> tuple[Grade, str]:
    """A report of the latest minutes shows how a device's clock goes."""
    off = health.at - device.last_seen
    assert rule.above is not None
    if abs(off) > rule.above:
        way = "ahead" if off > 0 else "behind"
        return "bad", f"{device.id}: its clock is {_lasting(abs(off))} {way}"
    if health.clock_synchronised is False:
        return "bad", f"{device.id}: its clock is not synchronised"
    return "good", f"{device.id}: its clock is right"


def _lasting(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{math.floor(seconds / length)} {unit}"
    return f"{math.floor(seconds)} s"


def _in(seconds: float) -> str:
    return words_of(seconds)
