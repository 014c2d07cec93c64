"""Reports and exports of devices that lie, or have nothing to say: numbers, and no crash."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.cli import report_lines
from fleet.core.export import Asked, export, head_of
from fleet.core.report_page import svg
from fleet.core.views import View
from tests.fleet.records import MemoryRecords
from tests.fleet.reports import NOW, made, pushed, window
from wire.manifest import Budget

MOST = 2**53
COUNT = st.sampled_from([0, 1, 2, 1000, MOST])


def counts(keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, int]]:
    return st.dictionaries(keys, COUNT, max_size=4)


WINDOW = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("requests", "errors", "drops", "labelled", "correct", "confidence_sum",
             "slo_misses", "orphan_labels"), COUNT,
        ),
        "latency": st.fixed_dictionaries({"bins": counts(st.sampled_from([0, 1, 400, 2000]))}),
        "value_errors": st.fixed_dictionaries({"bins": counts(st.sampled_from([0, 2000]))}),
        "predicted": counts(st.sampled_from([0, 1, 2, 3, 2**31 - 1])),
        "confidence": counts(st.sampled_from([0, 19, 20, 2**31 - 1])),
        "confusion": counts(st.sampled_from(["0,0", "9,9", "", ",", "x,1", "-1,2", "1,2,3"])),
        "calibration": st.dictionaries(
            st.integers(0, 19), st.tuples(COUNT, COUNT, COUNT), max_size=3
        ),
        "estimate": st.fixed_dictionaries(
            dict.fromkeys(("samples", "sum_p", "spread"), COUNT)
        ),
        "golden": st.fixed_dictionaries(
            dict.fromkeys(("runs", "samples", "flips", "labelled", "correct", "deviating"), COUNT)
        ),
        "drift": st.dictionaries(
            st.integers(0, 3), st.lists(COUNT, max_size=7), max_size=3
        ),
        "outcomes": counts(
            st.sampled_from(["matched", "missed", "spurious", "within", "labelled_s",
                             "false_accepts"])
        ),
    },
)  # fmt: skip


def numbers(value: Any) -> list[float]:
    """Return every real number in a view, however deep."""
    if isinstance(value, View):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["cam-1", "cam-2"]), WINDOW), max_size=4))
def test_whatever_devices_count_a_report_and_an_export_are_numbers(
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    windows = [
        window(device, place + 1, seq=place + 1, **counted)
        for place, (device, counted) in enumerate(told)
    ]
    labels = {"cam-1": {"site": "ulm"}}

    view = made(*windows, by="site", labels=labels)
    head = head_of(Asked("digits", by="site", min_devices=1), NOW, ("site",), 0)
    lines = list(export(head, MemoryRecords(windows, labels), [(pushed(), pushed().digest)]))

    assert all(map(math.isfinite, numbers(view)))
    for accuracy in (each for release in view.releases for each in release.accuracy):
        if accuracy.accuracy is not None and accuracy.low is not None:
            assert accuracy.high is not None
            assert 0 <= accuracy.low <= accuracy.accuracy + 1e-9 <= accuracy.high + 2e-9 <= 1 + 3e-9
    assert "nan" not in svg(view).lower()
    assert report_lines.report(view)
    rows = [line.row for line in lines if line.row is not None]
    assert all(math.isfinite(number) for row in rows for number in numbers(row))
    assert all(row.requests < 2**63 for row in rows)
    assert lines[-1].end is not None


@pytest.mark.parametrize("told", [-1e300, -1.0, 0.0, 7.0, 1e300])
def test_what_a_release_says_of_itself_may_be_no_share(told: float) -> None:
    release = pushed(metrics={"accuracy": told, "calibration_samples": told},
                     budget=Budget(latency_ms=1e300))  # fmt: skip

    view = made(window(requests=5, slo_misses=1, estimate={"samples": 5, "sum_p": 4_000_000}),
                releases=(release,))  # fmt: skip

    assert all(map(math.isfinite, numbers(view)))
    assert "nan" not in svg(view).lower()
    assert "nan" not in "\n".join(report_lines.report(view)).lower()


@pytest.mark.parametrize("by", [None, "site", "variant", "device"])
@pytest.mark.parametrize("devices", [0, 1])
def test_a_fleet_of_none_or_one_has_an_honest_report(by: str | None, devices: int) -> None:
    windows = [window(f"cam-{n}", requests=3) for n in range(devices)]

    view = made(*windows, by=by, labels={"cam-9": {"site": "x"}}, min_devices=5)

    [release] = view.releases
    assert (release.devices, release.requests) == (devices, 3 * devices)
    assert [each.note for each in release.accuracy] == ["no labels", "not run", "no estimate"]
    assert len(release.cohorts) == (devices if by == "device" else 0)
    assert svg(view) and report_lines.report(view)
