"""Telemetry as rows for other tools: of each release and step of time, and of groups of devices.

Every row that leaves the fleet is made here, a few steps at a time. No row is of fewer devices
than was asked for (suppression.py).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

from fleet.core.export_views import ExportEnd, ExportHead, ExportLine, ExportRow
from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.core.report import DAY_S, HOUR_S, Lens, Records, figures, lens_of
from fleet.core.report_asked import check_by, check_min_devices, times
from fleet.core.report_views import AccuracyView, Kind
from fleet.core.scores import Totals
from fleet.core.suppression import MIN_DEVICES, OTHERS, fold
from fleet.core.views import ErrorView, Refusal
from wire.manifest import Manifest
from wire.telemetry import MILLION

WIDTH: Mapping[Step, int] = {"hour": HOUR_S, "day": DAY_S}
STEP: Step = "day"
K = TypeVar("K")

MAX_ROWS = 200_000
AT_ONCE = 8
"""Steps whose groups are read together."""

MOST = 2**63 - 1
"""What files of 64-bit numbers can hold; devices that lie may bring sums beyond it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be exported, as it was asked for."""

    model: str
    version: int | None = None
    by: str | None = None
    since: str = "30d"
    until: str = "now"
    step: str = STEP
    min_devices: int = MIN_DEVICES


def head_of(asked: Asked, now: int, labels: Collection[str], hours_from: int) -> ExportHead:
    """Return what the rows will be of: whole hours or days that hold the time asked for.

    Raises:
        Refusal: 422, something makes no sense, or no hours are kept of that time.
    """
    step = next((each for each in get_args(Step) if each == asked.step), None)
    if step is None:
        raise Refusal(422, f"step: expected hour or day, got {asked.step[:40]!r}", "--step day")
    since, until = times(asked.since, asked.until, now)
    check_by(asked.by, labels)
    check_min_devices(asked.min_devices)
    if asked.by == "device" and asked.min_devices > 1:
        raise Refusal(
            422,
            "by: every row would be of one device; expected min-devices 1 with it, got"
            f" {asked.min_devices}",
            "--by device --min-devices 1, if whoever gets the file may know of each device",
        )
    width = WIDTH[step]
    since, until = since - since % width, until + -until % width
    if step == "hour" and since < hours_from:
        back = max(0, now - hours_from) // DAY_S
        raise Refusal(
            422,
            f"step: expected day before the last {back} days, of which hours are kept; got hour",
            f"--step day, or --since {back}d",
        )
    return ExportHead(
        model=asked.model,
        version=asked.version,
        by=asked.by,
        since=since,
        until=until,
        step=step,
        min_devices=asked.min_devices,
        made_at=now,
    )


def export(
    head: ExportHead, records: Records, releases: Sequence[tuple[Manifest, str]]
) -> Iterator[ExportLine]:
    """Yield the head, the rows by release and time with how far that is, and the end.

    In place of the end there is a refusal when it is more than MAX_ROWS.
    """
    yield ExportLine(head=head)
    try:
        yield from _lines(head, records, releases)
    except Refusal as refusal:
        yield ExportLine(refused=ErrorView(error=refusal.error, next_step=refusal.next_step))


def _lines(
    head: ExportHead, records: Records, releases: Sequence[tuple[Manifest, str]]
) -> Iterator[ExportLine]:
    end = ExportEnd()
    for place, (manifest, digest) in enumerate(releases):
        for done, rows, withheld in _parts(head, records, manifest, digest):
            end = ExportEnd(
                rows=end.rows + len(rows),
                folded=end.folded + sum(each.group == OTHERS for each in rows),
                withheld=end.withheld + withheld,
            )
            if end.rows > MAX_ROWS:
                raise _too_many()
            for row in rows:
                yield ExportLine(row=row)
            yield ExportLine(done=(place + done) / len(releases))
    yield ExportLine(end=end)


def _too_many() -> Refusal:
    return Refusal(
        422,
        f"export: expected at most {MAX_ROWS} rows, got more",
        "ask for one release, a shorter time (--since), or --step day",
    )


def _parts(
    head: ExportHead, records: Records, manifest: Manifest, digest: str
) -> Iterator[tuple[float, list[ExportRow], int]]:
    """Yield how far it is, some rows of a release, and how many more are withheld."""
    query = Query(head.model, manifest.version, head.since, head.until)
    steps = records.slices(query, head.step)
    lens = lens_of(manifest, steps)
    starts = sorted({each.start for each in steps})
    # All devices of a step are many; groups of them are few.
    at_once = 1 if head.by == "device" else AT_ONCE
    for at in range(0, len(starts), at_once):
        some = starts[at : at + at_once]
        part = replace(query, since=some[0], until=some[-1] + WIDTH[head.step], by=head.by)
        members = _members(records, part, head)
        if head.by == "device" and sum(map(len, members.values())) > MAX_ROWS:
            raise _too_many()
        if head.by is None:
            groups: Iterable[Slice] = (each for each in steps if each.start in members)
        else:
            groups = records.slices_of_devices(part, head.step)
        cells: dict[int, dict[str, list[Totals]]] = defaultdict(lambda: defaultdict(list))
        for each in groups:
            cells[each.start][each.group].append(each.totals)
        rows, withheld = [], 0
        for start in sorted(members):
            shown = fold({g: {d.device for d in of} for g, of in members[start].items()},
                         head.min_devices)  # fmt: skip
            withheld += not shown
            for name in sorted(set(shown.values())):
                ours = [group for group, row in shown.items() if row == name]
                totals = [each for group in ours for each in cells[start][group]]
                devices = [each for group in ours for each in members[start][group]]
                if totals:
                    rows.append(_row(head, lens, digest, (name, start), totals, devices))
        yield (at + len(some)) / len(starts), rows, withheld


def _members(
    records: Records, query: Query, head: ExportHead
) -> dict[int, dict[str, list[DeviceCounts]]]:
    """Return the counts of devices by step and group."""
    found: dict[int, dict[str, list[DeviceCounts]]] = {}
    for start, devices in records.devices_by_step(query, head.step):
        groups = found.setdefault(start, {})
        for each in devices:
            group = each.device if head.by == "device" else each.group
            groups.setdefault(group, []).append(each)
    return found


def _row(  # noqa: PLR0917
    head: ExportHead,
    lens: Lens,
    digest: str,
    place: tuple[str, int],
    parts: Sequence[Totals],
    devices: Sequence[DeviceCounts],
) -> ExportRow:
    totals = parts[0]
    for each in parts[1:]:
        totals = totals.merge(each)
    told = figures(lens, totals, devices)
    effects = {each.name: each.effect for each in told.drift if each.effect is not None}
    worst = max(effects, key=lambda name: effects[name], default="")
    return ExportRow(
        model=head.model,
        version=lens.manifest.version,
        manifest=digest,
        group=place[0],
        start=place[1],
        end=place[1] + WIDTH[head.step],
        devices=len({each.device for each in devices}),
        variants=",".join(sorted({each.variant for each in parts})),
        requests=_number(totals.requests),
        errors=_number(totals.errors),
        drops=_number(totals.drops),
        slo_misses=_number(totals.slo_misses),
        latency_p50_s=_quantile(totals, 0.5),
        latency_p90_s=_quantile(totals, 0.9),
        latency_p95_s=_quantile(totals, 0.95),
        latency_p99_s=_quantile(totals, 0.99),
        predictions=_number(sum(totals.predicted.values())),
        confidence_mean=told.labels.confidence,
        labelled=_number(totals.labelled),
        labelled_correct=_number(totals.correct),
        **_accuracy("labelled", told.accuracy),
        label_coverage=told.labels.coverage,
        orphan_labels=_number(totals.orphan_labels),
        golden_runs=_number(totals.golden.runs),
        golden_samples=_number(totals.golden.samples),
        golden_flips=_number(totals.golden.flips),
        golden_deviating=_number(totals.golden.deviating),
        **_accuracy("golden", told.accuracy),
        estimated=_number(totals.estimate.samples),
        **_accuracy("estimated", told.accuracy),
        calibration_error=told.calibration.error,
        value_error_p50=told.values.p50 if told.values else None,
        value_error_p95=told.values.p95 if told.values else None,
        drifted=sum(each.drifted for each in told.drift) if effects else None,
        drift_feature=worst,
        drift_effect=effects.get(worst),
        shadow_pairs=_number(totals.shadow_pairs),
        shadow_disagreements=_number(totals.shadow_disagreements),
        shadow_labelled=_number(totals.shadow_labelled),
        shadow_worse=_number(totals.shadow_worse),
        shadow_better=_number(totals.shadow_better),
        epsilon=totals.epsilon_spent / MILLION if totals.epsilon_windows else None,
        drift=effects,
        latency_bins=_numbers(totals.latency.bins),
        confidence_bins=_numbers(totals.confidence),
        predicted=_numbers(totals.predicted),
        noised=_numbers(totals.noised),
        confusion=_numbers(totals.confusion),
        outcomes=_numbers(totals.outcomes),
    )


def _accuracy(kind: Kind, views: Iterable[AccuracyView]) -> dict[str, float | None]:
    [view] = [each for each in views if each.kind == kind]
    return {
        f"{kind}_accuracy": view.accuracy,
        f"{kind}_low": view.low,
        f"{kind}_high": view.high,
    }


def _quantile(totals: Totals, q: float) -> float | None:
    us = totals.latency.quantile_us(q)
    return None if us is None else us / MILLION


def _number(count: int) -> int:
    return max(-MOST, min(MOST, count))


def _numbers(counts: Mapping[K, int]) -> dict[K, int]:
    return {key: _number(count) for key, count in counts.items()}
