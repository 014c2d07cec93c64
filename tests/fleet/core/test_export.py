"""Rows for other tools: they add up to what a report says, and none is of few devices."""

import math
from typing import Any

import pytest

from fleet.core.export import MAX_ROWS, Asked, export, head_of
from fleet.core.export_views import ExportEnd, ExportLine, ExportRow
from fleet.core.suppression import OTHERS
from fleet.core.views import Refusal
from tests.fleet.records import MemoryRecords
from tests.fleet.reports import DAY, NOW, made, pushed, window
from wire.manifest import Manifest
from wire.telemetry import ScoreWindow

FULL: dict[str, Any] = {
    "requests": 10, "errors": 1, "drops": 2, "slo_misses": 3, "labelled": 8, "correct": 6,
    "latency": {"bins": {300: 6, 400: 4}}, "predicted": {0: 6, 2: 4}, "confidence": {19: 10},
    "confidence_sum": 9_700_000, "confusion": {"0,0": 6, "2,0": 2},
    "calibration": {19: (8, 7_800_000, 6)}, "orphan_labels": 1,
    "estimate": {"samples": 10, "sum_p": 9_000_000, "spread": 900_000},
    "golden": {"runs": 1, "samples": 5, "labelled": 5, "correct": 4, "flips": 1, "deviating": 2},
    "outcomes": {"matched": 3},
}  # fmt: skip


def exported(
    *windows: ScoreWindow,
    labels: dict[str, dict[str, str]] | None = None,
    releases: tuple[Manifest, ...] = (pushed(),),
    **asked: Any,
) -> tuple[list[ExportRow], ExportEnd]:
    told = {"by": None, "min_devices": 1, **asked}
    keys = {key for each in (labels or {}).values() for key in each}
    head = head_of(Asked("digits", **told), NOW, keys, 0)
    lines = list(export(head, MemoryRecords(list(windows), labels or {}),
                        [(each, each.digest) for each in releases]))  # fmt: skip
    assert lines[0] == ExportLine(head=head)
    end = lines[-1].end
    assert end is not None
    rows = [line.row for line in lines if line.row is not None]
    assert end.rows == len(rows)
    assert [line.done for line in lines if line.done is not None][-1:] in ([], [1.0])
    return rows, end


def fleet(days: int = 3, **sites: int) -> tuple[list[ScoreWindow], dict[str, dict[str, str]]]:
    names = [(site, f"{site}{n}") for site, count in sites.items() for n in range(count)]
    windows = [window(id, day + 1, **FULL) for _, id in names for day in range(days)]
    return windows, {id: {"site": site} for site, id in names}


def test_a_row_a_day_adds_up_to_the_report():
    windows, labels = fleet(ulm=3, kiel=2)

    rows, _ = exported(*windows)

    [release] = made(*windows, labels=labels).releases
    assert [row.start for row in rows] == [NOW - n * DAY for n in (3, 2, 1)]
    assert sum(row.requests for row in rows) == release.requests == 150
    assert sum(row.errors for row in rows) == release.errors
    assert sum(row.labelled for row in rows) == release.accuracy[0].samples
    assert sum(row.labelled_correct for row in rows) == release.accuracy[0].correct
    assert sum(row.estimated for row in rows) == release.accuracy[2].samples
    for row, step in zip(rows, release.steps, strict=True):
        assert (row.start, row.end, row.requests) == (step.start, step.end, step.requests)
        assert (row.labelled_accuracy, row.labelled_low, row.labelled_high) == (
            step.accuracy[0].accuracy, step.accuracy[0].low, step.accuracy[0].high,
        )  # fmt: skip
        assert row.latency_p95_s == pytest.approx((step.latency.p95_ms or 0) / 1000)
    assert rows[0].latency_bins == {300: 30, 400: 20}
    assert rows[0].confusion == {"0,0": 30, "2,0": 10}


def test_by_a_label_rows_add_up_to_those_without():
    windows, labels = fleet(ulm=6, kiel=2, bonn=1, jena=7)

    by_site, end = exported(*windows, labels=labels, by="site", min_devices=5)
    whole, _ = exported(*windows, min_devices=5)

    assert {(row.group, row.devices) for row in by_site} == {(OTHERS, 9), ("jena", 7)}
    assert (end.rows, end.folded, end.withheld) == (6, 3, 0)
    for row in whole:
        parts = [each for each in by_site if each.start == row.start]
        assert sum(part.requests for part in parts) == row.requests
        assert sum(part.devices for part in parts) == row.devices


def test_a_day_of_few_devices_is_withheld_and_counted():
    windows, _ = fleet(ulm=5)

    rows, end = exported(*windows, window("kiel0", 9, **FULL), min_devices=5)

    assert len(rows) == 3
    assert (end.rows, end.withheld) == (3, 1)


def test_devices_are_told_singly_only_to_who_says_so():
    windows, labels = fleet(days=1, ulm=2)

    with pytest.raises(Refusal, match="every row would be of one device"):
        exported(*windows, labels=labels, by="device", min_devices=5)
    rows, _ = exported(*windows, labels=labels, by="device", min_devices=1)

    assert [(row.group, row.devices) for row in rows] == [("ulm0", 1), ("ulm1", 1)]
    assert rows[0].latency_bins == {300: 6, 400: 4}


def test_releases_come_one_after_the_other():
    rows, _ = exported(
        window("cam-1", 1, requests=3), window("cam-1", 2, version=2, requests=4),
        releases=(pushed(2), pushed(1)),
    )  # fmt: skip

    assert [(row.version, row.requests) for row in rows] == [(2, 4), (1, 3)]


def test_an_empty_fleet_has_no_rows():
    assert exported() == ([], ExportEnd())
    assert exported(releases=()) == ([], ExportEnd())


def test_what_nobody_counted_is_left_out_and_nothing_is_infinite():
    [row], _ = exported(window(requests=0))
    [full], _ = exported(window(**FULL))

    assert (row.devices, row.requests, row.labelled_accuracy, row.latency_p50_s) == (
        1,
        0,
        None,
        None,
    )
    assert (row.drifted, row.calibration_error, row.confidence_mean, row.drift) == (
        None, None, None, {},
    )  # fmt: skip
    for each in (row, full):
        values = [v for v in each.model_dump().values() if isinstance(v, float)]
        assert all(map(math.isfinite, values))


def test_counts_of_a_device_that_lies_stay_numbers_that_files_can_hold():
    most = 2**53
    lie = {"requests": most, "labelled": 1, "correct": most, "predicted": {2**31 - 1: most},
           "confusion": {"x,y": 1, "1,": 2, ",": 3}, "latency": {"bins": {2000: most}},
           "drift": {63: [1] * 66, 0: [1, 2]}, "calibration": {19: (1, most, most)},
           "estimate": {"samples": 1, "sum_p": most, "spread": most}}  # fmt: skip

    [row], _ = exported(*(window("cam-1", 1, seq=n + 1, **lie) for n in range(1100)))

    assert row.requests == 2**63 - 1
    assert row.predicted == {2**31 - 1: 2**63 - 1}
    assert row.labelled_accuracy == row.estimated_accuracy == 1.0


def test_more_rows_than_a_file_should_have_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fleet.core.export.MAX_ROWS", 2)
    windows, _ = fleet(ulm=1)
    head = head_of(Asked("digits", min_devices=1), NOW, (), 0)

    *_, last = export(head, MemoryRecords(windows), [(pushed(), pushed().digest)])

    assert MAX_ROWS == 200_000
    assert last.refused is not None and last.refused.error.startswith("export: expected at most")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"step": "week"}, "step: expected hour or day, got 'week'"),
        ({"by": "sit"}, "by: expected device, variant or a label of devices, got 'sit'"),
        ({"since": "soon"}, "since: expected 30d, 12h"),
        ({"since": "1d", "until": "2d"}, "since: expected a time before until"),
        ({"min_devices": 0}, "min-devices: expected 1 to"),
        ({"step": "hour", "since": "60d"}, "step: expected day before the last 30 days"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], error: str):
    with pytest.raises(Refusal) as refused:
        head_of(Asked("digits", **asked), NOW, ("site",), NOW - 30 * DAY)

    assert refused.value.status == 422
    assert refused.value.error.startswith(error)
