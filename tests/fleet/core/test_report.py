"""Reports against numbers that were worked out by hand."""

import math

import pytest

from fleet.core.report import Frame
from fleet.core.report_asked import frame, moment_of
from fleet.core.report_views import AccuracyView, Kind, ReleaseReportView
from fleet.core.report_words import folded
from fleet.core.statistics.intervals import of_fleet
from fleet.core.suppression import OTHERS
from fleet.core.views import Refusal
from tests.fleet.reports import DAY, NOW, SINCE, latency, made, one, pushed, window

MILLION = 1_000_000


def kind(release: ReleaseReportView, name: Kind) -> AccuracyView:
    [view] = [each for each in release.accuracy if each.kind == name]
    return view


def about(value: float) -> object:
    return pytest.approx(value, abs=5e-4)


# Accuracy by kind


def test_within_one_device_the_interval_is_wilsons():
    release = one(window(requests=500, labelled=100, correct=90))

    labelled = kind(release, "labelled")
    assert (labelled.accuracy, labelled.samples, labelled.correct) == (0.9, 100, 90)
    assert (labelled.low, labelled.high) == (about(0.8256), about(0.9448))
    assert (labelled.interval, labelled.devices) == ("wilson", 1)


def test_over_a_fleet_the_interval_is_made_of_devices():
    counts = [(95, 100), (70, 100), (90, 100), (99, 100)]
    release = one(
        *(window(f"cam-{n}", labelled=total, correct=right) for n, (right, total) in
          enumerate(counts))
    )  # fmt: skip

    labelled, whole = kind(release, "labelled"), of_fleet(counts)
    assert whole is not None
    assert labelled.accuracy == 354 / 400
    assert (labelled.low, labelled.high) == (whole.low, whole.high)
    assert labelled.high - labelled.low > 2 * (0.9129 - 0.8500), "a pooled Wilson is too narrow"
    assert (labelled.interval, labelled.devices) == ("device-clustered", 4)


def test_windows_and_variants_of_one_device_are_one_device():
    release = one(
        window(labelled=50, correct=45),
        window(days_ago=2, labelled=50, correct=45),
        window(days_ago=3, labelled=100, correct=90, variant="float-onnx"),
    )

    labelled = kind(release, "labelled")
    assert (labelled.devices, labelled.samples, labelled.interval) == (1, 200, "wilson")
    assert release.variants == ("float-onnx", "int8-onnx")


def test_one_labelled_device_of_three_is_too_few_for_an_interval():
    release = one(
        window("cam-1", requests=10, labelled=10, correct=9),
        window("cam-2", requests=10),
        window("cam-3", requests=10),
    )

    labelled = kind(release, "labelled")
    assert (labelled.accuracy, labelled.samples) == (0.9, 10)
    assert (labelled.low, labelled.high, labelled.interval) == (None, None, "")
    assert labelled.note == "too few: 1 of 3 devices"


def test_golden_samples_count_once_however_often_and_wherever_they_ran():
    golden = {"runs": 5, "samples": 1000, "labelled": 1000, "correct": 980, "flips": 5}

    release = one(*(window(f"cam-{n}", golden=golden) for n in range(40)))

    view = kind(release, "golden")
    assert (view.accuracy, view.samples, view.correct, view.devices) == (0.98, 200, 196, 40)
    assert (view.low, view.high, view.interval) == (about(0.9497), about(0.9922), "wilson")
    assert release.golden is not None
    assert (release.golden.runs, release.golden.flips) == (200, 200)


def test_an_estimate_knows_the_size_of_its_calibration_set():
    # Mean confidence 0.9 of 1000 answers; the calibration set has 400.
    estimate = {"samples": 1000, "sum_p": 900 * MILLION, "spread": 90 * MILLION}

    view = kind(one(window(estimate=estimate)), "estimated")

    half = 1.95996 * math.hypot(math.sqrt(90) / 1000, math.sqrt(0.9 * 0.1 / 400))
    assert (view.accuracy, view.samples, view.correct) == (0.9, 1000, 900)
    assert (view.low, view.high) == (about(0.9 - half), about(0.9 + half))
    assert view.interval == "estimate"


def test_an_estimate_without_a_calibration_set_has_no_interval():
    estimate = {"samples": 10, "sum_p": 9 * MILLION, "spread": MILLION}

    view = kind(one(window(estimate=estimate), releases=(pushed(calibration=()),)), "estimated")

    assert (view.accuracy, view.low, view.note) == (
        0.9,
        None,
        "size of the calibration set unknown",
    )


def test_the_three_kinds_are_never_blended():
    golden = {"runs": 1, "samples": 10, "labelled": 10, "correct": 10}
    estimate = {"samples": 10, "sum_p": 5 * MILLION, "spread": 2 * MILLION}
    labelled = {"labelled": 10, "correct": 8}

    alone = one(window(**labelled))
    together = one(window(**labelled, golden=golden, estimate=estimate))

    assert kind(alone, "labelled") == kind(together, "labelled")
    assert [each.accuracy for each in together.accuracy] == [0.8, 1.0, 0.5]
    assert [each.note for each in alone.accuracy] == ["", "not run", "no estimate"]


def test_a_device_that_counts_wrongly_brings_no_share_above_one():
    release = one(window(labelled=3, correct=900))

    assert kind(release, "labelled").accuracy == 1.0


def test_a_release_that_nobody_ran_has_no_numbers_and_says_so():
    release = one()

    assert [each.note for each in release.accuracy] == ["no labels", "not run", "no estimate"]
    assert (release.devices, release.requests, release.steps) == (0, 0, ())


# Classes, labels, confidence


CONFUSION = {"0,0": 8, "0,1": 2, "1,1": 9, "1,0": 1, "2,0": 4}


def test_recall_and_precision_by_class():
    release = one(window(confusion=CONFUSION, predicted={0: 130, 1: 110, 7: 3}))

    cat, dog, owl, seven = release.classes
    assert (cat.name, cat.labels, cat.recall, cat.precision) == ("cat", 10, 0.8, 8 / 13)
    assert (dog.name, dog.labels, dog.recall, dog.precision) == ("dog", 10, 0.9, 9 / 11)
    assert (owl.name, owl.labels, owl.recall, owl.precision) == ("owl", 4, 0.0, None)
    assert (seven.name, seven.labels, seven.recall, seven.predicted) == ("7", 0, None, 3)


def test_the_worst_mistakes_come_first():
    release = one(window(confusion={**CONFUSION, "nonsense": 5, "1": 2}))

    told = [(each.true, each.answered, each.count, each.share) for each in release.mistakes]
    assert told == [("owl", "cat", 4, 1.0), ("cat", "dog", 2, 0.2), ("dog", "cat", 1, 0.1)]


def test_who_gets_labels_and_how_sure_the_model_is_of_those():
    release = one(
        window(
            requests=100,
            predicted={0: 100},
            confidence={18: 80, 10: 20},
            confidence_sum=int(84.5 * MILLION),
            labelled=20,
            correct=12,
            calibration={18: (10, 9_250_000, 9), 10: (10, 5_250_000, 3)},
            orphan_labels=2,
        )
    )

    labels, calibration = release.labels, release.calibration
    assert (labels.answers, labels.coverage, labels.orphans) == (100, 0.2, 2)
    assert labels.confidence == pytest.approx(0.845)
    assert labels.confidence_labelled == pytest.approx(0.725)
    assert labels.gap == pytest.approx(-0.12)
    assert calibration.error == pytest.approx(0.5 * 0.025 + 0.5 * 0.225)
    assert calibration.overconfidence == pytest.approx(0.125)
    told = [(each.low, each.answers, each.accuracy) for each in calibration.bins]
    assert told == [(0.5, 10, 0.3), (0.9, 10, 0.9)]


# Latency, drift and the rest


def test_latency_quantiles_are_those_of_all_answers_together():
    slow = latency(*(1000.0 * n for n in range(51, 101)))
    quick = latency(*(1000.0 * n for n in range(1, 51)))

    release = one(
        window("cam-1", requests=50, latency=quick.model_dump()),
        window("cam-2", days_ago=9, requests=50, latency=slow.model_dump(), slo_misses=81),
    )

    told = release.latency
    assert told.p50_ms == pytest.approx(50.0, rel=0.01)
    assert told.p95_ms == pytest.approx(95.0, rel=0.01)
    assert told.p99_ms == pytest.approx(99.0, rel=0.01)
    assert (told.limit_ms, told.slo_misses, told.miss_share) == (20.0, 81, 0.81)
    assert [len(release.steps), release.steps[0].latency.p50_ms] == [
        2, pytest.approx(75.0, rel=0.02)
    ]  # fmt: skip


def test_a_feature_that_moved_is_told_from_those_that_did_not():
    dark = {0: (700, 100, 100, 100, 0, 0), 1: (495, 505, 0, 0)}

    release = one(window(drift=dark, predicted={0: 500, 1: 250, 2: 250}))

    moved, *others = release.drift
    assert (moved.name, moved.drifted, moved.samples, moved.reference) == (
        "brightness", True, 1000, 400,
    )  # fmt: skip
    assert moved.q is not None and moved.q < 1e-6
    assert moved.effect is not None and 0.2 < moved.effect < moved.js < 0.5  # type: ignore[operator]
    # 0.25 -> 0.7 and 0.25 -> 0.1 three times.
    assert moved.psi == pytest.approx(0.45 * math.log(2.8) + 3 * 0.15 * math.log(2.5))
    assert {each.name for each in others} == {"contrast", "predicted class"}
    assert not any(each.drifted for each in others)
    [step] = release.steps
    assert dict(step.drift)["brightness"] == pytest.approx(moved.effect)


def test_a_few_samples_say_nothing_about_drift():
    release = one(window(drift={0: (7, 0, 0, 0, 0, 0)}))

    assert [(each.note, each.drifted, each.q) for each in release.drift] == [
        ("too few", False, None)
    ] * 3


def test_bins_that_are_not_those_of_the_baseline_are_left_out():
    release = one(window(drift={0: (700, 100), 9: (1, 2, 3)}))

    assert [each.samples for each in release.drift] == [0, 0, 0]


def test_what_tasks_count_beside_classes_becomes_rates():
    outcomes = {"matched": 90, "missed": 10, "spurious": 30, "within": 3, "beyond": 1,
                "labelled_s": 7200, "false_accepts": 3, "listened_s": 90_000}  # fmt: skip

    release = one(window(outcomes=outcomes, value_errors={"bins": {700: 4}}))

    told = {each.name: (each.value, each.unit) for each in release.rates}
    assert told == {
        "box recall": (0.9, "share"),
        "box precision": (0.75, "share"),
        "within tolerance": (0.75, "share"),
        "false accepts": (1.5, "per hour"),
    }
    assert release.values is not None and release.values.answers == 4


def test_challengers_beside_a_release_are_counted():
    shadow = {"challenger": pushed(2).digest, "pairs": 100, "disagreements": 9, "labelled": 20,
              "worse": 1, "better": 3}  # fmt: skip

    release = one(window(shadow=shadow), window("cam-2", shadow=shadow))

    assert release.shadow is not None
    assert release.shadow.model_dump() == {
        "pairs": 200, "disagreements": 18, "labelled": 40, "worse": 2, "better": 6,
    }  # fmt: skip


# Side by side, cohorts, steps


def test_a_release_is_compared_with_the_one_it_was_made_from():
    view = made(
        window(version=1, requests=100, labelled=100, correct=90, latency={"bins": {300: 9}}),
        window(version=2, requests=100, labelled=100, correct=80, errors=5),
        releases=(pushed(2, parent="digits@1"), pushed(1, parent="other@7")),
        version=None,
    )

    new, old = view.releases
    assert old.change is None and new.change is not None
    assert new.change.parent == "digits@1"
    assert new.change.accuracy == pytest.approx(-0.1)
    # Wilson: 0.8256 to 0.9448 of the old one, 0.7112 to 0.8667 of the new one.
    assert new.change.low == about(-0.1 - math.hypot(0.8 - 0.7112, 0.9448 - 0.9))
    assert new.change.high == about(-0.1 + math.hypot(0.8667 - 0.8, 0.9 - 0.8256))
    assert (new.change.error_share, new.change.p95_ms) == (0.05, None)


def test_by_a_label_each_cohort_has_its_own_numbers_the_worst_first():
    labels = {"cam-1": {"site": "ulm"}, "cam-2": {"site": "kiel"}}
    view = one(
        window("cam-1", requests=9, labelled=10, correct=10, latency={"bins": {400: 9}}),
        window("cam-2", requests=8, labelled=10, correct=5, errors=2),
        window("cam-3", requests=7),
        by="site",
        labels=labels,
    )

    told = [(c.group, c.devices, c.requests, c.accuracy[0].accuracy) for c in view.cohorts]
    assert told == [("kiel", 1, 8, 0.5), ("ulm", 1, 9, 1.0), ("", 1, 7, None)]
    assert view.cohorts[1].latency.p50_ms == pytest.approx(2.98, rel=0.02)
    assert kind(view, "labelled").accuracy == 0.75


def test_groups_of_few_devices_are_told_together():
    sites = {"ulm": 6, "kiel": 2, "bonn": 1, "": 3}
    devices = [(site, f"cam{site}-{n}") for site, count in sites.items() for n in range(count)]
    view = made(
        *(window(device, requests=10, labelled=10, correct=9, latency={"bins": {400: 10}})
          for _, device in devices),
        by="site",
        labels={device: {"site": site} for site, device in devices if site},
        min_devices=5,
    )  # fmt: skip

    [release] = view.releases
    told = {c.group: (c.groups, c.devices, c.requests) for c in release.cohorts}
    assert told == {"ulm": (1, 6, 60), OTHERS: (3, 6, 60)}
    assert all(c.latency.p50_ms is not None for c in release.cohorts)
    assert folded(view, release) == "(others): 3 groups, for some are of fewer than 5 devices"


def test_where_all_groups_together_are_few_none_is_told():
    view = made(window("cam-1", requests=5), window("cam-2", requests=6), by="site",
                labels={"cam-1": {"site": "ulm"}}, min_devices=5)  # fmt: skip

    [release] = view.releases
    assert (release.cohorts, release.cohorts_withheld, release.requests) == ((), 2, 11)
    assert folded(view, release) == "2 groups withheld: together fewer than 5 devices"


def test_a_report_goes_by_the_day_where_no_hours_are_kept():
    told = Frame.over("digits", 1, None, NOW - 2 * DAY, NOW, NOW, hours_from=NOW - DAY)

    assert told.step_s == DAY


def test_by_device_there_is_a_row_for_each():
    view = one(
        window("cam-1", requests=5, labelled=10, correct=9), window("cam-2", requests=6),
        by="device",
    )  # fmt: skip

    assert [(c.group, c.accuracy[0].note) for c in view.cohorts] == [
        ("cam-1", ""), ("cam-2", "no labels"),
    ]  # fmt: skip
    assert view.cohorts[0].latency.p95_ms is None


def test_by_variant_a_device_may_be_in_two_cohorts():
    view = one(window(requests=5), window(requests=6, variant="float-onnx"), by="variant")

    assert {(c.group, c.requests, c.devices) for c in view.cohorts} == {
        ("int8-onnx", 5, 1), ("float-onnx", 6, 1),
    }  # fmt: skip
    assert view.devices == 1


def test_days_of_a_month_have_intervals_of_their_own():
    view = one(
        window("cam-1", days_ago=2, labelled=10, correct=9),
        window("cam-2", days_ago=2, labelled=10, correct=8),
        window("cam-1", days_ago=5, labelled=100, correct=90),
    )

    early, late = view.steps
    assert (early.start, early.end) == (NOW - 5 * DAY, NOW - 4 * DAY)
    assert (early.accuracy[0].low, early.accuracy[0].high) == (about(0.8256), about(0.9448))
    assert (late.accuracy[0].accuracy, late.accuracy[0].devices) == (0.85, 2)


def test_a_short_report_goes_by_the_hour():
    view = made(window(days_ago=0.5, requests=5), since=NOW - DAY)

    [step] = view.releases[0].steps
    assert (view.step_s, step.end - step.start) == (3600, 3600)


# What is asked


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW), ("30d", NOW - 30 * DAY), ("2h", NOW - 7200), ("1w", NOW - 7 * DAY),
        ("2024-10-01", NOW - 3 * DAY), ("2024-10-01T12:00", NOW - 2.5 * DAY),
        ("2024-10-01T12:00+02:00", NOW - 2.5 * DAY - 7200), ("1727740800", 1_727_740_800),
    ],
)  # fmt: skip
def test_times_are_written_as_people_do(text, at):
    assert moment_of(text, NOW) == at


@pytest.mark.parametrize(
    "text", ["", "yesterday", "30", "3y", "-3d", "2024-13-01", "1066-10-14", "20241001", "١d"]
)
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="expected 30d, 12h, 2026-11-01 or 2026-11-01T12:00"):
        moment_of(text, NOW)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"since": "soon"}, "since: expected 30d, 12h"),
        ({"since": "1d", "until": "2d"}, "since: expected a time before until, got 1d and 2d"),
        ({"since": "999d"}, "since: expected at most 400 days in a report, got 999"),
        (
            {"by": "sit"},
            "by: expected device, variant or a label of devices, got 'sit'; nearest is",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(asked, error):
    whole = {"by": None, "since": "30d", "until": "now", **asked}

    with pytest.raises(Refusal) as caught:
        frame("digits", 1, now=NOW, labels={"site"}, **whole)

    assert caught.value.status == 422
    assert caught.value.error.startswith(error)
    assert caught.value.next_step


def test_a_report_is_about_whole_hours_or_days():
    day = Frame.over("m", 1, None, SINCE + 5, NOW - 7, NOW)
    hour = Frame.over("m", 1, None, NOW - 5000, NOW - 1, NOW)

    assert (day.since, day.until, day.step_s) == (SINCE, NOW, DAY)
    assert (hour.since, hour.until, hour.step_s) == (NOW - 7200, NOW, 3600)
