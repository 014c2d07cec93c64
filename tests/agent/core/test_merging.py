"""Windows that nobody saw add up, whatever is in them and in whichever order."""

from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import merging
from agent.core.merging import compact, merge
from wire.ids import digest_of
from wire.telemetry import Estimate, Golden, Health, Histogram, ScoreWindow, Shadow

COUNTS = st.integers(0, 1000)


def counted(keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, int]]:
    return st.dictionaries(keys, COUNTS, max_size=6)


def part(kind: type[Any], **named: Any) -> st.SearchStrategy[Any]:
    counts = {name: COUNTS for name, f in kind.model_fields.items() if not f.is_required()}
    return st.none() | st.builds(kind, **counts, **named)


WINDOWS = st.builds(
    ScoreWindow,
    device=st.just("pi-1"), boot=st.just("b"), seq=st.just(1), model=st.just("digits"),
    version=st.just(1), manifest=st.just(digest_of(b"release")), variant=st.just("onnx-int8"),
    start=st.integers(0, 50), end=st.integers(50, 99),
    **dict.fromkeys(merging._SUMS, COUNTS),
    predicted=counted(st.integers(0, 9)), confidence=counted(st.integers(0, 19)),
    confusion=counted(st.sampled_from(["1,2", "2,1", "3,3"])),
    outcomes=counted(st.sampled_from(["matched", "missed"])),
    noised=counted(st.integers(0, 9)),
    latency=st.builds(Histogram, bins=counted(st.integers(0, 9))),
    value_errors=st.none() | st.builds(Histogram, bins=counted(st.integers(0, 9))),
    calibration=st.dictionaries(st.integers(0, 19), st.tuples(COUNTS, COUNTS, COUNTS)),
    drift=st.dictionaries(st.integers(0, 3), st.tuples(COUNTS, COUNTS, COUNTS)),
    estimate=part(Estimate), golden=part(Golden),
    shadow=part(Shadow, challenger=st.just(digest_of(b"challenger"))),
)  # fmt: skip


def numbered(windows: list[ScoreWindow]) -> list[ScoreWindow]:
    return [each.model_copy(update={"seq": at}) for at, each in enumerate(windows, 1)]


def window(seq: int, **changes: Any) -> ScoreWindow:
    values = {
        "device": "pi-1", "boot": "b", "seq": seq, "model": "digits", "version": 1,
        "manifest": digest_of(b"release"), "variant": "onnx-int8", "start": seq, "end": seq + 1,
        "requests": 1,
    }  # fmt: skip
    return ScoreWindow.model_validate(values | changes)


def health(seq: int) -> Health:
    return Health(
        device="pi-1", boot="b", seq=seq, at=seq, uptime_s=1, cpu_percent=1, load_1m=1,
        memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1, agent_cpu_percent=1,
        agent_rss_bytes=1,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(WINDOWS, min_size=2, max_size=6), st.data())
def test_however_they_are_grouped_the_sums_are_the_same(
    windows: list[ScoreWindow], data: st.DataObject
) -> None:
    windows = numbered(windows)
    cut = data.draw(st.integers(1, len(windows) - 1))

    whole = reduce(merge, windows)
    parts = merge(reduce(merge, windows[:cut]), reduce(merge, windows[cut:]))

    assert parts == whole
    if len({each.shadow is None for each in windows}) == 1:
        assert compact(windows) == [whole]
    assert (whole.first, whole.seq) == (1, len(windows))
    assert whole.requests == sum(each.requests for each in windows)
    assert whole.latency.count == sum(each.latency.count for each in windows)
    for feature, counts in whole.drift.items():
        assert sum(counts) == sum(sum(each.drift.get(feature, ())) for each in windows)
    goldens = [each.golden for each in windows if each.golden is not None]
    assert (whole.golden.runs if whole.golden else 0) == sum(golden.runs for golden in goldens)


def test_every_value_of_a_window_is_summed_or_tells_windows_apart() -> None:
    joined = {"latency", "value_errors", "calibration", "drift", "estimate", "golden", "shadow"}
    place = {"seq", "first", "start", "end"}
    alike = {"device", "boot", "model", "version", "manifest", "variant", "epsilon"}

    known = {*merging._SUMS, *merging._MAPS} | joined | place | alike | {"schema_version"}

    assert known == set(ScoreWindow.model_fields)


@pytest.mark.parametrize(
    "other",
    [
        {"boot": "c"},
        {"version": 2},
        {"manifest": digest_of(b"another")},
        {"variant": "tflite-int8"},
        {"shadow": {"challenger": digest_of(b"challenger")}},
        {"epsilon": 0.5},
    ],
)
def test_what_differs_is_not_added_to_each_other(other: dict[str, Any]) -> None:
    one, two, three = window(1), window(2, **other), window(3)

    assert [each.requests for each in compact([one, two, three])] == [1, 2]  # type: ignore[union-attr]


def test_of_health_the_latest_stands_for_all_and_no_number_is_left_out() -> None:
    items: list[ScoreWindow | Health] = [window(1), health(2), window(3), health(4), window(5)]

    fewer = compact(items)

    assert [(item.first, item.seq) for item in fewer] == [(1, 4), (None, 5)]
    assert fewer[0] == health(4).model_copy(update={"first": 1})
    assert isinstance(fewer[1], ScoreWindow)
    assert (fewer[1].requests, fewer[1].start, fewer[1].end) == (3, 1, 6)
