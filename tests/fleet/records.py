"""Telemetry in memory that answers as the controller's does, by adding up every window anew."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.core.scores import Totals
from wire.telemetry import Estimate, Golden, ScoreWindow

LENGTHS: Mapping[Step, int] = {"hour": 3600, "day": 86_400}


@dataclass
class MemoryRecords:
    """The seam of `fleet.core.report.Records`."""

    windows: list[ScoreWindow] = field(default_factory=list)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Device -> its labels."""
    kept_from: int = 0
    """Since when there are hours."""

    def slices(self, query: Query, step: Step | None) -> list[Slice]:
        sums: dict[tuple[int, str, int, str], list[ScoreWindow]] = {}
        for each in self._meant(query):
            length = LENGTHS[step] if step is not None else 0
            start = (each.end - 1) // length * length if length else query.since
            key = (each.version, self._group(query, each), start, each.variant)
            sums.setdefault(key, []).append(each)
        return [
            Slice(key[1], key[2], key[2] + LENGTHS[step] if step else query.until, _sum(windows))
            for key, windows in sorted(sums.items())
        ]

    def slices_of_devices(self, query: Query, step: Step) -> list[Slice]:
        return self.slices(query, step)

    def hours_from(self) -> int:
        return self.kept_from

    def devices_by_step(self, query: Query, step: Step) -> Iterator[tuple[int, list[DeviceCounts]]]:
        length = LENGTHS[step]
        steps = {((each.end - 1) // length * length, each.version) for each in self._meant(query)}
        for start, version in sorted(steps):
            told = replace(query, since=start, until=start + length, version=version)
            yield start, self.devices(told)

    def devices(self, query: Query) -> list[DeviceCounts]:
        sums: dict[tuple[str, int, str], list[ScoreWindow]] = {}
        for each in self._meant(query):
            sums.setdefault((each.device, each.version, each.variant), []).append(each)
        return [_counts(self._group(query, w[0]), w) for _, w in sorted(sums.items())]

    def _meant(self, query: Query) -> Iterable[ScoreWindow]:
        return (
            each
            for each in self.windows
            if each.model == query.model
            and query.version in (None, each.version)
            and query.since <= each.end - 1 < query.until
        )

    def _group(self, query: Query, window: ScoreWindow) -> str:
        if query.by is None:
            return ""
        if query.by == "variant":
            return window.variant
        if query.by == "device":
            return window.device
        return self.labels.get(window.device, {}).get(query.by, "")


def _sum(windows: list[ScoreWindow]) -> Totals:
    totals = Totals.single(windows[0])
    for each in windows[1:]:
        totals = totals.merge(Totals.single(each))
    return totals


def _counts(group: str, windows: list[ScoreWindow]) -> DeviceCounts:
    first = windows[0]
    golden = [each.golden or Golden() for each in windows]
    estimates = [each.estimate or Estimate() for each in windows]
    return DeviceCounts(
        device=first.device,
        version=first.version,
        manifest=first.manifest,
        variant=first.variant,
        group=group,
        requests=sum(each.requests for each in windows),
        errors=sum(each.errors for each in windows),
        drops=sum(each.drops for each in windows),
        slo_misses=sum(each.slo_misses for each in windows),
        labelled=sum(each.labelled for each in windows),
        correct=sum(each.correct for each in windows),
        confidence_sum=sum(each.confidence_sum for each in windows),
        predictions=sum(sum(each.predicted.values()) for each in windows),
        golden_samples=sum(each.samples for each in golden),
        golden_labelled=sum(each.labelled for each in golden),
        golden_correct=sum(each.correct for each in golden),
        estimate_samples=sum(each.samples for each in estimates),
        estimate_sum_p=sum(each.sum_p for each in estimates),
        estimate_spread=sum(each.spread for each in estimates),
    )
