"""Sums by time are exact, however windows came and whenever they were merged."""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.core.query import Query, Step
from fleet.core.scores import Totals
from fleet.shell.telemetry import DAY_S, HOUR_S, Entry, Message, Telemetry
from wire.ids import digest_of
from wire.packing import pack
from wire.telemetry import Batch, Estimate, Golden, Histogram, Item, ScoreWindow

T0 = 1_790_000_000 // DAY_S * DAY_S
SITES = {"cam-1": "berlin", "cam-2": "berlin", "cam-3": "oslo"}
STEPS: tuple[tuple[Step, int], ...] = (("hour", HOUR_S), ("day", DAY_S))
MANIFESTS = [digest_of(b"one"), digest_of(b"two")]


def window(device: str, seq: int, end: int, version: int, weight: int) -> ScoreWindow:
    return ScoreWindow(
        device=device,
        boot="b",
        seq=seq,
        model="digits",
        version=version,
        manifest=MANIFESTS[version - 1],
        variant="onnx-int8",
        start=end - 60,
        end=end,
        requests=10 * weight,
        errors=weight,
        latency=Histogram(bins={200 + weight: 9 * weight}),
        predicted={weight % 10: 9 * weight},
        confidence={19: 9 * weight},
        confidence_sum=8_900_000 * weight,
        labelled=4 * weight,
        correct=3 * weight,
        confusion={"1,1": 3 * weight, "1,7": weight},
        calibration={19: (4 * weight, 3_900_000 * weight, 3 * weight)},
        estimate=Estimate(samples=9 * weight, sum_p=8_000_000 * weight, spread=500_000),
        golden=Golden(runs=1, samples=20, labelled=20, correct=19),
        drift={0: (weight, 2, 0, 0)},
        slo_misses=weight,
    )


WINDOWS = st.lists(
    st.tuples(
        st.sampled_from(sorted(SITES)),
        st.integers(0, 3 * DAY_S),
        st.sampled_from([1, 2]),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=25,
)


def messages(drawn: list[tuple[str, int, int, int]]) -> list[Message]:
    found = []
    for seq, (device, after, version, weight) in enumerate(drawn, start=1):
        each = window(device, seq, T0 + after, version, weight)
        body = pack(Batch(device=device, windows=(each,)))
        found.append(Message(device, float(each.end), body, (Entry(each, each.end),)))
    return found


def opened(path: Path) -> Telemetry:
    return Telemetry(path, lambda device: {"site": SITES[device]})


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    store = opened(tmp_path / "telemetry.db")
    yield store
    store.close()


def whole(windows: list[ScoreWindow]) -> Totals:
    return reduce(Totals.plus, windows[1:], Totals.single(windows[0]))


def parted(
    windows: list[ScoreWindow], by: str, length: int
) -> dict[tuple[int, str], list[ScoreWindow]]:
    found: dict[tuple[int, str], list[ScoreWindow]] = {}
    for each in windows:
        groups = {"site": SITES[each.device], "variant": each.variant, "device": each.device}
        found.setdefault((each.end - each.end % length, groups[by]), []).append(each)
    return found


def named(totals: Totals) -> Totals:
    return replace(totals, device="")


@settings(max_examples=25, deadline=None)
@given(WINDOWS, st.lists(st.sampled_from(["merge", "restart", "again", "on"]), max_size=25))
def test_sums_are_exact_whatever_is_merged_restarted_or_said_twice(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, int, int, int]],
    acts: list[str],
) -> None:
    path = tmp_path_factory.mktemp("telemetry") / "telemetry.db"
    store = opened(path)
    came = messages(drawn)

    for place, message in enumerate(came):
        store.commit([message])
        act = acts[place] if place < len(acts) else "on"
        if act == "merge":
            store.merge(float(T0))
        elif act == "again":
            store.commit(came[: place + 1])
        elif act == "restart":
            store.close()
            store = opened(path)

    windows = [each.entries[0].item for each in came]
    assert all(isinstance(each, ScoreWindow) for each in windows)
    for version in (1, 2):
        mine = [each for each in windows if each.version == version]
        told = store.slices(Query("digits", version))
        if not mine:
            assert told == []
            continue
        assert named(told[0].totals) == named(whole(mine))
        [ever] = [each for each in store.fleet_totals() if each.version == version]
        assert ever == named(whole(mine))
        assert {each.device for each in store.totals()} == {each.device for each in windows}
        by_site = {
            each.group: each.totals for each in store.slices(Query("digits", version, by="site"))
        }
        for site in {SITES[each.device] for each in mine}:
            there = [each for each in mine if SITES[each.device] == site]
            assert named(by_site[site]) == named(whole(there))
        days = store.slices(Query("digits", version), "day")
        assert sum(each.totals.requests for each in days) == sum(each.requests for each in mine)
        devices = {each.device: each for each in store.devices(Query("digits", version))}
        for device, counts in devices.items():
            own = [each for each in mine if each.device == device]
            assert counts.labelled == sum(each.labelled for each in own)
            assert counts.correct == sum(each.correct for each in own)
            assert counts.predictions == sum(sum(each.predicted.values()) for each in own)
        for step, length in STEPS:
            steps = list(store.devices_by_step(Query("digits", version, by="site"), step))
            assert sorted({each.end - each.end % length for each in mine}) == sorted(
                start for start, _ in steps
            )
            for start, counts in steps:
                meant = Query("digits", version, start, start + length, "site")
                assert sorted(counts) == store.devices(meant)
            for by in ("site", "variant", "device"):
                told = [
                    (each.start, each.group, each.totals)
                    for each in store.slices_of_devices(Query("digits", version, by=by), step)
                ]
                assert told == sorted(
                    (
                        (start, group, named(whole(some)))
                        for (start, group), some in parted(mine, by, length).items()
                    ),
                    key=lambda each: each[:2],
                )
    store.close()


def test_a_query_is_answered_by_the_hour_while_hours_are_kept_and_by_the_day_after(
    telemetry: Telemetry,
) -> None:
    telemetry.commit(messages([("cam-1", HOUR_S // 2, 1, 1), ("cam-1", 5 * HOUR_S, 1, 2)]))
    telemetry.merge(float(T0))
    morning = Query("digits", 1, since=T0, until=T0 + HOUR_S)

    fresh = telemetry.slices(morning)
    while telemetry.prune(T0 + 40 * DAY_S):
        pass
    later = telemetry.slices(morning)

    assert [each.totals.requests for each in fresh] == [10]
    assert [each.totals.requests for each in later] == [30]


def test_what_is_old_goes_and_the_sums_of_its_days_stay(telemetry: Telemetry) -> None:
    telemetry.commit(messages([("cam-1", 60, 1, 1), ("cam-2", 120, 1, 3)]))
    telemetry.merge(float(T0))

    telemetry.prune(T0 + 9 * DAY_S)

    assert telemetry.windows("cam-1") == []
    assert [each.totals.requests for each in telemetry.slices(Query("digits"))] == [40]


def test_a_window_of_a_release_that_nobody_pushed_is_not_summed(telemetry: Telemetry) -> None:
    [message] = messages([("cam-1", 60, 1, 1)])
    unknown = replace(message, entries=(replace(message.entries[0], known=False),))

    telemetry.commit([unknown])
    telemetry.merge(float(T0))

    assert telemetry.slices(Query("digits")) == []


def test_a_device_that_counts_beyond_all_bounds_stops_no_merge(telemetry: Telemetry) -> None:
    came = messages([("cam-1", 60, 1, 1)] * 9 + [("cam-2", 60, 1, 1)])
    lies = [
        replace(message, entries=(replace(entry, item=_lie(entry.item)),))
        for message in came[:9]
        for entry in message.entries
    ]

    for lie in lies:
        telemetry.commit([lie])
        telemetry.merge(float(T0))
    telemetry.commit(came[9:])
    left = telemetry.merge(float(T0))

    counts = {each.device: each.requests for each in telemetry.devices(Query("digits"))}
    assert (left, counts) == (0, {"cam-1": 2**53, "cam-2": 10})
    assert telemetry.slices(Query("digits"))[0].totals.requests == 2**62


def _lie(item: Item) -> ScoreWindow:
    assert isinstance(item, ScoreWindow)
    most = 2**62  # more than a message may say, as many messages do together
    told = {"requests": most, "predicted": {1: most}, "drift": {0: (most, 1)},
            "latency": Histogram.model_construct(bins={2000: most})}  # fmt: skip
    return item.model_copy(update=told)
