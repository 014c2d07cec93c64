"""A report on a model: counts, sums and a release's own words become numbers with intervals.

The unit of a fleet is the device: answers of one device resemble each other, so an interval over
devices is made of devices (statistics/intervals.py). Accuracy has three names, never blended.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add
from typing import Any, Protocol

from fleet.core.noise import deviation
from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.core.report_views import (
    AccuracyView,
    CalibrationView,
    ChangeView,
    ClassView,
    CohortView,
    DriftView,
    GoldenView,
    Kind,
    LabelsView,
    LatencyView,
    MistakeView,
    OutcomeView,
    RateView,
    ReleaseReportView,
    ReliabilityView,
    ReportView,
    ShadowView,
    StepView,
    ValuesView,
)
from fleet.core.scores import Totals
from fleet.core.statistics.calibration import (
    calibration_error,
    calibration_samples,
    estimated_accuracy,
    label_gap,
    reliability,
)
from fleet.core.statistics.drift import (
    APART,
    DesignEffect,
    FeatureDrift,
    design_effect,
    feature_drift,
    judge,
    reference_counts,
)
from fleet.core.statistics.intervals import Share, of_fleet, wilson
from fleet.core.suppression import MIN_DEVICES, fold
from wire.manifest import Manifest
from wire.telemetry import MILLION, Estimate, Golden

HOUR_S, DAY_S = 3600, 86_400
HOURLY_S = 3 * DAY_S
"""A report over more than this goes by days."""

MAX_RELEASES = 50
MAX_CLASSES = 1000
MAX_MISTAKES = 20
MAX_COHORTS = 200
PREDICTED = "predicted class"
"""What the distribution of answers is called among the features."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a report is about."""

    model: str
    version: int | None
    by: str | None
    since: int
    until: int
    step_s: int
    made_at: int
    min_devices: int = MIN_DEVICES
    """Of fewer than so many no group is told alone."""

    @classmethod
    def over(  # noqa: PLR0917 - as they are asked for
        cls,
        model: str,
        version: int | None,
        by: str | None,
        since: int,
        until: int,
        made_at: int,
        min_devices: int = MIN_DEVICES,
        hours_from: int = 0,
    ) -> "Frame":
        """Return the frame of whole hours, or whole days, that holds this time.

        It is of days where it begins before `hours_from`: no hours are kept of then.
        """
        hourly = until - since <= HOURLY_S and since >= hours_from
        step = HOUR_S if hourly else DAY_S
        since, until = since - since % step, until + -until % step
        # Who asks for devices by name is told of them.
        least = 1 if by == "device" else min_devices
        return cls(model, version, by, since, until, step, made_at, least)


@dataclass(frozen=True, slots=True)
class Material:
    """What a report is made of: what was asked of the telemetry, and what was pushed."""

    releases: Sequence[tuple[Manifest, str]]
    """Manifest and its digest, the newest first."""
    labels: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Version -> names of its classes."""
    steps: Sequence[Slice] = ()
    """By release and step."""
    groups: Sequence[Slice] = ()
    """By release and group, over the whole time; none without `by`, and none by device."""
    devices: Sequence[DeviceCounts] = ()
    """By device and release, over the whole time, with their group."""
    accuracies: Mapping[tuple[int, int], Sequence[AccuracyView]] = field(default_factory=dict)
    """(version, start of a step) -> those of the kinds that have any."""


class Records(Protocol):
    """The telemetry that a controller keeps."""

    def slices(self, query: Query, step: Step | None) -> list[Slice]:
        """Return the sums of windows by release, group and step."""

    def devices(self, query: Query) -> list[DeviceCounts]:
        """Return the counts of each device over the whole time."""

    def slices_of_devices(self, query: Query, step: Step) -> list[Slice]:
        """Return slices whose devices are those of `devices_by_step`; it may take a while."""

    def hours_from(self) -> int:
        """Return since when hours are known; before it there are days. Unix seconds."""

    def devices_by_step(
        self, query: Query, step: Step
    ) -> Iterator[tuple[int, Sequence[DeviceCounts]]]:
        """Yield the start of a step and the counts of each device in it, for one release.

        Each release and step comes once, as far as anything was counted.
        """


def gather(
    frame: Frame,
    records: Records,
    releases: Sequence[tuple[Manifest, str]],
    labels: Mapping[int, Sequence[str]],
    *,
    course: bool = True,
) -> Material:
    """Return what a report is made of; without `course` its steps tell no accuracy."""
    label = None if frame.by == "device" else frame.by
    query = Query(frame.model, frame.version, frame.since, frame.until)
    step: Step = "hour" if frame.step_s == HOUR_S else "day"
    steps = records.slices(query, step)
    devices: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    accuracies = {}
    lenses = {each.version: Lens.of(each, steps) for each, _ in releases}
    counted = replace(query, by=label)
    if not course:
        return Material(releases, labels, steps, devices=records.devices(counted))
    # A step at a time: all of them together are more than a controller's memory may hold.
    for start, counts in records.devices_by_step(counted, step):
        for each in counts:
            key, numbers = each[:_NAMED], each[_NAMED:]
            known = devices.get(key)
            devices[key] = numbers if known is None else tuple(map(add, known, numbers))
        lens = lenses.get(counts[0].version) if counts else None
        if lens is not None:
            told = _accuracies(lens.manifest, counts, lens.samples)
            accuracies[lens.manifest.version, start] = [
                each for each in told if each.accuracy is not None
            ]
    whole = [DeviceCounts(*key, *devices[key]) for key in sorted(devices)]
    if frame.by == "device":
        whole = [each._replace(group=each.device) for each in whole]
    groups = records.slices(replace(query, by=label), None) if label is not None else []
    return Material(releases, labels, steps, groups, whole, accuracies)


_NAMED = DeviceCounts._fields.index("requests")
"""How many fields of DeviceCounts are names; the rest are numbers that add up."""


def class_names(manifest: Manifest, labels: bytes) -> tuple[str, ...]:
    """Return what the classes of a release are called in its answers, from its file of labels."""
    lines = labels.decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\n")
    called = manifest.task.label_map or {}
    return tuple(called.get(line.strip(), line.strip()) for line in lines)


def report(frame: Frame, material: Material) -> ReportView:
    """Return the report."""
    views = [_release(frame, material, *each) for each in material.releases[:MAX_RELEASES]]
    by_version = {view.version: view for view in views}
    changed = [
        view.model_copy(update={"change": _change(frame.model, view, by_version)}) for view in views
    ]
    return ReportView(
        model=frame.model,
        version=frame.version,
        by=frame.by,
        min_devices=frame.min_devices,
        since=frame.since,
        until=frame.until,
        step_s=frame.step_s,
        made_at=frame.made_at,
        releases=tuple(changed),
    )


@dataclass(frozen=True, slots=True)
class Lens:
    """What the whole time told of a release that a part of it is looked at with."""

    manifest: Manifest
    samples: int
    """Golden ones with labels, each counted once."""
    designs: Mapping[str, DesignEffect] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, steps: Iterable[Slice]) -> "Lens":
        """Return what these steps tell of a release, all but the designs."""
        mine = (each.totals for each in steps if each.totals.version == manifest.version)
        golden = [each.golden for each in mine]
        labelled, runs = sum(each.labelled for each in golden), sum(each.runs for each in golden)
        return cls(manifest, round(labelled / runs) if runs else 0)

    @property
    def limit_ms(self) -> float | None:
        """The release's own limit."""
        budget = self.manifest.budget
        return budget.latency_ms if budget is not None else None


@dataclass(frozen=True, slots=True)
class Figures:
    """What can be told of a part: of some devices, of some time."""

    accuracy: tuple[AccuracyView, ...]
    labels: LabelsView
    latency: LatencyView
    calibration: CalibrationView
    drift: tuple[DriftView, ...]
    values: ValuesView | None


def lens_of(manifest: Manifest, steps: Sequence[Slice]) -> Lens:
    """Return what a part of the time, or of the devices, is looked at with."""
    mine = _by_start(each for each in steps if each.totals.version == manifest.version)
    features = _features(manifest, [totals for _, _, totals in mine])
    return replace(Lens.of(manifest, steps), designs={each.name: each.design for each in features})


def figures(lens: Lens, totals: Totals, devices: Sequence[DeviceCounts]) -> Figures:
    """Return what a part tells; `devices` are those that `totals` are of."""
    return Figures(
        accuracy=_accuracies(lens.manifest, devices, lens.samples),
        labels=_labels(totals),
        latency=_latency(totals, lens.limit_ms),
        calibration=_calibration(totals),
        drift=_drift(_features(lens.manifest, [totals], lens.designs)),
        values=_values(totals),
    )


def _release(
    frame: Frame, material: Material, manifest: Manifest, digest: str
) -> ReleaseReportView:
    version = manifest.version
    steps = _by_start(each for each in material.steps if each.totals.version == version)
    devices = [each for each in material.devices if each.version == version]
    totals = _merged(totals for _, _, totals in steps)
    lens = Lens.of(manifest, material.steps)
    view = ReleaseReportView(
        version=version,
        manifest=digest,
        parent=manifest.parent,
        task=manifest.task.kind,
        pushed_accuracy=manifest.metrics.get("accuracy"),
        accuracy=_accuracies(manifest, devices, lens.samples),
        latency=LatencyView(limit_ms=lens.limit_ms),
    )
    if totals is None:
        return view
    names = _Names(material.labels.get(version, ()))
    groups = [each for each in material.groups if each.totals.version == version]
    features = _features(manifest, [totals for _, _, totals in steps])
    lens = replace(lens, designs={each.name: each.design for each in features})
    shown = _shown(frame, devices)
    cohorts = _cohorts(lens, shown, groups, devices)
    known = {each.group for each in devices} if frame.by is not None else set()
    return view.model_copy(
        update={
            "variants": tuple(sorted({each.variant for each in devices if each.variant})),
            "devices": len({each.device for each in devices}),
            "requests": totals.requests,
            "errors": totals.errors,
            "drops": totals.drops,
            "first": totals.since or None,
            "last": totals.until or None,
            "labels": _labels(totals),
            "latency": _latency(totals, lens.limit_ms),
            "classes": _classes(totals, names),
            "mistakes": _mistakes(totals, names),
            "calibration": _calibration(totals),
            "drift": _drift(features),
            "golden": _golden(totals.golden),
            "shadow": _shadow(totals),
            "epsilon": totals.epsilon_spent / MILLION if totals.epsilon_windows else None,
            "values": _values(totals),
            "outcomes": tuple(OutcomeView(name=n, count=c)
                              for n, c in sorted(totals.outcomes.items())),
            "rates": tuple(_rates(totals)),
            "cohorts": tuple(cohorts[:MAX_COHORTS]),
            "cohorts_left_out": max(0, len(cohorts) - MAX_COHORTS),
            "cohorts_withheld": len(known) - len(shown),
            "steps": _steps(lens, steps, material.accuracies),
        }
    )  # fmt: skip


def _merged(totals: Iterable[Totals]) -> Totals | None:
    whole: Totals | None = None
    for each in totals:
        whole = each if whole is None else whole.merge(each)
    return whole


# Accuracy


def _accuracies(
    manifest: Manifest, devices: Sequence[DeviceCounts], samples: int
) -> tuple[AccuracyView, ...]:
    """Return all three kinds, each with a number or with the reason why there is none."""
    return (
        _labelled(devices),
        _golden_accuracy(devices, samples),
        _estimated(manifest, devices),
    )


def _labelled(devices: Sequence[DeviceCounts]) -> AccuracyView:
    pairs: dict[str, tuple[int, int]] = {}
    for each in devices:
        correct, labelled = pairs.get(each.device, (0, 0))
        labelled += each.labelled
        # A device that counts wrongly does not bring a share above one.
        pairs[each.device] = (min(correct + each.correct, labelled), labelled)
    share = of_fleet(pairs.values())
    if share is None:
        return AccuracyView(kind="labelled", note="no labels")
    return _shared("labelled", share, len(pairs), sum(correct for correct, _ in pairs.values()))


def _shared(kind: Kind, share: Share, there_are: int, correct: int) -> AccuracyView:
    """Return a share over devices; one device of several says nothing about the others."""
    view = AccuracyView(
        kind=kind,
        accuracy=share.share,
        samples=share.samples,
        correct=correct,
        devices=share.devices,
    )
    if share.devices == 1 and there_are > 1:
        return view.model_copy(update={"note": f"too few: 1 of {there_are} devices"})
    method = "wilson" if share.devices == 1 else "device-clustered"
    return view.model_copy(update={"low": share.low, "high": share.high, "interval": method})


def _golden_accuracy(devices: Sequence[DeviceCounts], samples: int) -> AccuracyView:
    """Return the share of right answers to the release's own `samples`.

    They are the same on every device and in every run: to run them again tells nothing new of
    the model. So each sample counts once, and the interval is Wilson's over samples.
    """
    having = [each for each in devices if each.golden_samples]
    labelled = sum(each.golden_labelled for each in having)
    if not having:
        return AccuracyView(kind="golden", note="not run")
    if not labelled or not samples:
        return AccuracyView(kind="golden", note="samples without labels")
    share = min(sum(each.golden_correct for each in having), labelled) / labelled
    correct = round(share * samples)
    low, high = wilson(correct, samples)
    return AccuracyView(
        kind="golden",
        accuracy=share,
        low=min(low, share),
        high=max(high, share),
        samples=samples,
        correct=correct,
        devices=len({each.device for each in having}),
        interval="wilson",
    )


def _estimated(manifest: Manifest, devices: Sequence[DeviceCounts]) -> AccuracyView:
    sums: dict[str, tuple[int, int]] = {}
    spread = 0
    for each in devices:
        if each.estimate_samples:
            sum_p, samples = sums.get(each.device, (0, 0))
            samples += each.estimate_samples
            # A device that counts wrongly does not bring a share above one.
            sums[each.device] = (min(sum_p + each.estimate_sum_p, samples * MILLION), samples)
            spread += each.estimate_spread
    samples = sum(samples for _, samples in sums.values())
    sum_p = sum(sum_p for sum_p, _ in sums.values())
    # No p (1 - p) is more than a quarter.
    spread = min(spread, samples * MILLION // 4)
    estimate = Estimate.model_construct(samples=samples, sum_p=sum_p, spread=spread)
    found = estimated_accuracy(estimate, calibration_samples(manifest), sums.values())
    if found is None:
        return AccuracyView(kind="estimated", note="no estimate")
    view = AccuracyView(
        kind="estimated",
        accuracy=found.share,
        samples=samples,
        correct=round(found.share * samples),
        devices=len(sums),
    )
    there_are = len({each.device for each in devices})
    if len(sums) == 1 and there_are > 1:
        return view.model_copy(update={"note": f"too few: 1 of {there_are} devices"})
    if found.low is None:
        return view.model_copy(update={"note": "size of the calibration set unknown"})
    return view.model_copy(update={"low": found.low, "high": found.high, "interval": "estimate"})


def _change(
    model: str, view: ReleaseReportView, by_version: Mapping[int, ReleaseReportView]
) -> ChangeView | None:
    """Return how a release differs from the one it was made from, where that is known, too.

    The interval of the difference is made of both intervals; devices that ran both make it
    wider than need be, never narrower.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures".
    """
    name, _, version = (view.parent or "").partition("@")
    parent = by_version.get(int(version)) if name == model and version.isdigit() else None
    if parent is None or not parent.requests or not view.requests:
        return None
    mine, theirs = view.accuracy[0], parent.accuracy[0]
    change = ChangeView(
        parent=f"{name}@{parent.version}",
        p95_ms=_less(view.latency.p95_ms, parent.latency.p95_ms),
        error_share=view.errors / view.requests - parent.errors / parent.requests,
    )
    if mine.accuracy is None or theirs.accuracy is None:
        return change
    difference = mine.accuracy - theirs.accuracy
    change = change.model_copy(update={"accuracy": difference})
    if None in (mine.low, mine.high, theirs.low, theirs.high):
        return change
    assert mine.low is not None and mine.high is not None
    assert theirs.low is not None and theirs.high is not None
    down = math.hypot(mine.accuracy - mine.low, theirs.high - theirs.accuracy)
    up = math.hypot(mine.high - mine.accuracy, theirs.accuracy - theirs.low)
    return change.model_copy(update={"low": difference - down, "high": difference + up})


def _less(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine - theirs


# Labels, classes, confidence


def _labels(totals: Totals) -> LabelsView:
    answers = sum(totals.predicted.values()) or totals.requests
    confident = sum(totals.confidence.values())
    confidence_sum = min(totals.confidence_sum, confident * MILLION)
    gap = label_gap(_calibrated(totals), totals.confidence, confidence_sum)
    view = LabelsView(
        answers=answers,
        labelled=totals.labelled,
        coverage=min(1.0, totals.labelled / answers) if answers else None,
        orphans=totals.orphan_labels,
        confidence=confidence_sum / MILLION / confident if confident else None,
    )
    if gap is None or view.confidence is None:
        return view
    told = {"confidence_labelled": view.confidence + gap.gap, "gap": gap.gap}
    return view.model_copy(update={**told, "typical": gap.typical})


class _Names:
    """What classes are called: as in the release, or by their number."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels

    def __getitem__(self, number: int) -> str:
        return self._labels[number] if number < len(self._labels) else str(number)


def _confusion(totals: Totals) -> dict[tuple[int, int], int]:
    """Return (true, answered) -> count; what is no pair of classes is left out."""
    pairs = {}
    for key, count in totals.confusion.items():
        true, _, answered = key.partition(",")
        if true.isdecimal() and answered.isdecimal() and len(key) < 24 and count:
            pairs[int(true), int(answered)] = count
    return pairs


def _classes(totals: Totals, names: _Names) -> tuple[ClassView, ...]:
    labels: dict[int, int] = {}
    answers: dict[int, int] = {}
    correct: dict[int, int] = {}
    for (true, answered), count in _confusion(totals).items():
        labels[true] = labels.get(true, 0) + count
        answers[answered] = answers.get(answered, 0) + count
        if true == answered:
            correct[true] = count
    every = sorted(
        {*labels, *answers, *totals.predicted, *totals.noised},
        key=lambda each: -labels.get(each, 0),
    )
    views = []
    for number in sorted(every[:MAX_CLASSES]):
        right, true, said = correct.get(number, 0), labels.get(number, 0), answers.get(number, 0)
        views.append(
            ClassView(
                number=number,
                name=names[number],
                labels=true,
                answers=said,
                correct=right,
                precision=right / said if said else None,
                recall=right / true if true else None,
                predicted=totals.predicted.get(number, 0),
                noised=totals.noised.get(number),
                noise_deviation=deviation(totals) if number in totals.noised else None,
            )
        )
    return tuple(views)


def _mistakes(totals: Totals, names: _Names) -> tuple[MistakeView, ...]:
    pairs = _confusion(totals)
    labels: dict[int, int] = {}
    for (true, _), count in pairs.items():
        labels[true] = labels.get(true, 0) + count
    wrong = [(count, pair) for pair, count in pairs.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda each: (-each[0], each[1]))
    return tuple(
        MistakeView(
            true=names[true], answered=names[answered], count=count, share=count / labels[true]
        )
        for count, (true, answered) in wrong[:MAX_MISTAKES]
    )


def _calibrated(totals: Totals) -> dict[int, tuple[int, int, int]]:
    """Return what labels say of the confidence, in shares of at most one."""
    return {
        place: (n, min(score, n * MILLION), min(correct, n))
        for place, (n, score, correct) in totals.calibration.items()
    }


def _calibration(totals: Totals) -> CalibrationView:
    calibration = _calibrated(totals)
    error = calibration_error(calibration)
    if error is None:
        return CalibrationView()
    return CalibrationView(
        error=error.ece,
        by_chance=error.by_chance,
        overconfidence=error.overconfidence,
        answers=error.samples,
        bins=tuple(
            ReliabilityView(
                low=each.low,
                high=each.high,
                answers=each.accuracy.samples,
                confidence=each.confidence,
                accuracy=each.accuracy.share,
            )
            for each in reliability(calibration)
        ),
    )


# Latency, drift and the rest


def _latency(totals: Totals, limit_ms: float | None) -> LatencyView:
    p50, p95, p99 = (totals.latency.quantile_us(q) for q in (0.5, 0.95, 0.99))
    return LatencyView(
        p50_ms=_thousandth(p50),
        p95_ms=_thousandth(p95),
        p99_ms=_thousandth(p99),
        limit_ms=limit_ms,
        slo_misses=totals.slo_misses,
        miss_share=totals.slo_misses / totals.requests
        if totals.requests and limit_ms is not None
        else None,
    )


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000


@dataclass(frozen=True, slots=True)
class _Feature:
    """One feature: what the baseline counted, and what the devices did."""

    name: str
    reference: tuple[int, ...]
    live: tuple[int, ...]
    apart: int
    """Of the last bins, how many are no places on its scale."""
    design: DesignEffect

    def drift(self) -> FeatureDrift | None:
        """Return how far they are apart; None with too few samples."""
        return feature_drift(self.reference, self.live, self.design, self.apart)


def _features(
    manifest: Manifest,
    totals: Sequence[Totals],
    designs: Mapping[str, DesignEffect] | None = None,
) -> list[_Feature]:
    """Return what can be compared with the baseline, from the totals of steps in order.

    Samples that come together resemble each other (the same hour, the same devices), so steps
    differ more than chance has it: that is measured, unless it is known (`designs`), and the
    samples weigh so many times less.
    """
    baseline = manifest.baseline
    if baseline is None:
        return []
    features = []
    for place, feature in enumerate(baseline.features):
        reference = reference_counts(feature)
        rows = [row for each in totals if len(row := each.drift.get(place, ())) == len(reference)]
        features.append(_feature(feature.name, reference, rows, APART, designs))
    if baseline.predicted:
        classes = range(len(baseline.predicted))
        rows = [tuple(each.predicted.get(number, 0) for number in classes) for each in totals]
        features.append(_feature(PREDICTED, tuple(baseline.predicted), rows, 0, designs))
    return features


def _feature(
    name: str,
    reference: tuple[int, ...],
    rows: Sequence[tuple[int, ...]],
    apart: int,
    designs: Mapping[str, DesignEffect] | None,
) -> _Feature:
    live = tuple(map(sum, zip(*rows, strict=True))) if rows else (0,) * len(reference)
    design = design_effect(rows) if designs is None else designs.get(name, DesignEffect())
    return _Feature(name, reference, live, apart, design)


def _drift(features: Sequence[_Feature]) -> tuple[DriftView, ...]:
    drifts = {each.name: each.drift() for each in features}
    found = {each.name: each for each in judge(drifts).findings}
    views = []
    for each in features:
        samples = sum(each.live)
        view = DriftView(
            name=each.name,
            samples=samples,
            reference=sum(each.reference),
            nan_share=each.live[-2] / samples if each.apart and samples else 0.0,
            outside_share=each.live[-1] / samples if each.apart and samples else 0.0,
            note="" if each.name in found else "too few",
        )
        if each.name in found:
            drift = found[each.name].drift
            view = view.model_copy(
                update={
                    "p": drift.p,
                    "q": found[each.name].adjusted_p,
                    "effect": drift.effect,
                    "js": drift.distance,
                    "psi": drift.psi,
                    "drifted": found[each.name].alarm,
                }
            )
        views.append(view)
    views.sort(key=lambda view: (not view.drifted, -(view.effect or -1.0), view.name))
    return tuple(views)


def _golden(golden: Golden) -> GoldenView | None:
    if not golden.runs:
        return None
    return GoldenView(
        runs=golden.runs,
        samples=golden.samples,
        flips=golden.flips,
        deviating=golden.deviating,
    )


def _shadow(totals: Totals) -> ShadowView | None:
    if not totals.shadow_pairs:
        return None
    return ShadowView(
        pairs=totals.shadow_pairs,
        disagreements=totals.shadow_disagreements,
        labelled=totals.shadow_labelled,
        worse=totals.shadow_worse,
        better=totals.shadow_better,
    )


def _values(totals: Totals) -> ValuesView | None:
    errors = totals.value_errors
    if not errors.count:
        return None
    p50, p95 = (errors.quantile_us(q) for q in (0.5, 0.95))
    return ValuesView(
        answers=errors.count,
        p50=None if p50 is None else p50 / MILLION,
        p95=None if p95 is None else p95 / MILLION,
    )


def _rates(totals: Totals) -> list[RateView]:
    """Return what outcomes say as shares and rates."""
    counts = totals.outcomes
    matched, found = counts.get("matched", 0), counts.get("spurious", 0)
    true = matched + counts.get("missed", 0)
    shares = [
        ("box recall", matched, true),
        ("box precision", matched, matched + found if true else 0),
        ("within tolerance", counts.get("within", 0),
         counts.get("within", 0) + counts.get("beyond", 0)),
    ]  # fmt: skip
    rates = [
        RateView(name=name, value=part / whole, unit="share")
        for name, part, whole in shares
        if whole
    ]
    labelled_s = counts.get("labelled_s", 0)
    if labelled_s:
        value = counts.get("false_accepts", 0) * HOUR_S / labelled_s
        rates.append(RateView(name="false accepts", value=value, unit="per hour"))
    return rates


# Cohorts and steps


def _shown(frame: Frame, devices: Sequence[DeviceCounts]) -> dict[str, str]:
    """Return the groups that are told of, each with the name of its row."""
    members: dict[str, set[str]] = {}
    for each in devices if frame.by is not None else ():
        members.setdefault(each.group, set()).add(each.device)
    return fold(members, frame.min_devices)


def _cohorts(
    lens: Lens,
    shown: Mapping[str, str],
    groups: Sequence[Slice],
    devices: Sequence[DeviceCounts],
) -> list[CohortView]:
    """Return a row for each group of devices, those with the lowest labelled accuracy first."""
    by_group: dict[str, list[DeviceCounts]] = {}
    for device in devices:
        if device.group in shown:
            by_group.setdefault(shown[device.group], []).append(device)
    slices: dict[str, list[Totals]] = {}
    for each in groups:
        if each.group in shown:
            slices.setdefault(shown[each.group], []).append(each.totals)
    together = Counter(shown.values())
    views = []
    for group, members in by_group.items():
        totals = _merged(slices.get(group, ()))
        view = CohortView(
            group=group,
            groups=together[group],
            devices=len({each.device for each in members}),
            requests=sum(each.requests for each in members),
            errors=sum(each.errors for each in members),
            drops=sum(each.drops for each in members),
            accuracy=_accuracies(lens.manifest, members, lens.samples),
        )
        if totals is not None:
            drift = _drift(_features(lens.manifest, [totals], lens.designs))
            known = [each for each in drift if each.effect is not None]
            told = (
                {"worst_feature": known[0].name, "worst_effect": known[0].effect} if known else {}
            )
            view = view.model_copy(
                update={
                    "latency": _latency(totals, lens.limit_ms),
                    "drifted": sum(each.drifted for each in drift) if known else None,
                    **told,
                }
            )
        views.append(view)

    def worst_first(view: CohortView) -> tuple[float, str]:
        share = view.accuracy[0].accuracy
        return (2.0 if share is None else share), view.group

    return sorted(views, key=worst_first)


def _by_start(slices: Iterable[Slice]) -> list[tuple[int, int, Totals]]:
    """Return start, end and totals of each step in order, all variants together."""
    steps: dict[int, tuple[int, Totals]] = {}
    for each in slices:
        if each.start in steps:
            end, before = steps[each.start]
            steps[each.start] = (max(end, each.end), before.merge(each.totals))
        else:
            steps[each.start] = (each.end, each.totals)
    return [(start, *steps[start]) for start in sorted(steps)]


def _steps(
    lens: Lens,
    steps: Iterable[tuple[int, int, Totals]],
    accuracies: Mapping[tuple[int, int], Sequence[AccuracyView]],
) -> tuple[StepView, ...]:
    views = []
    for start, end, totals in steps:
        features = _features(lens.manifest, [totals], lens.designs)
        effects = [(each.name, each.drift()) for each in features]
        views.append(
            StepView(
                start=start,
                end=end,
                requests=totals.requests,
                errors=totals.errors,
                accuracy=tuple(accuracies.get((lens.manifest.version, start), ())),
                latency=_latency(totals, lens.limit_ms),
                drift=tuple((name, drift.effect) for name, drift in effects if drift is not None),
            )
        )
    return tuple(views)
