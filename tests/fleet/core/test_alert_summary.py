"""What a maintenance hook is told: numbers of a model, never an input, nor a device alone."""

import json

from fleet.core.alert_summary import summary
from fleet.core.alerts import Act, Alert, Subject
from tests.fleet.records import MemoryRecords
from tests.fleet.reports import NOW, pushed, window
from wire.telemetry import Golden, ScoreWindow

RELEASE = pushed(1, parent="digits@0", metrics={"accuracy": 0.95})
ABOUT = Subject("digits@1", "digits", 1)


class Numbers(MemoryRecords):
    def gaps(self, since: int) -> dict[str, int]:
        return {}


def told(about: Subject, *windows: ScoreWindow, sites: dict[str, str] | None = None) -> dict:
    labels = {device: {"site": site} for device, site in (sites or {}).items()}
    alert = Alert("a-1", "k", "drift", "warning", about, "drifted", NOW - 60.0, NOW - 60.0)
    act = Act("x-2", "a-1", "hook:retrain", about, "alert a-1", float(NOW))
    found = summary(
        act, alert, {RELEASE.digest: RELEASE}, labels, Numbers(list(windows), labels),
        window_s=86_400.0, now=float(NOW),
    )  # fmt: skip
    read: dict = json.loads(json.dumps(found))
    assert read == found
    return read


def busy(device: str, **counts: object) -> ScoreWindow:
    return window(
        device,
        days_ago=0.5,
        requests=100,
        labelled=50,
        correct=40,
        manifest=RELEASE.digest,
        **counts,
    )


def test_it_tells_what_was_asked_answered_and_right_each_kind_for_itself() -> None:
    found = told(
        ABOUT,
        busy("cam-1", predicted={0: 60, 2: 40}, golden=Golden(samples=9, labelled=9, correct=8)),
        busy("cam-2", errors=3),
    )

    assert (found["hook"], found["release"], found["parent"]) == ("retrain", "digits@1", "digits@0")
    assert (found["requests"], found["errors"], found["devices"]) == (200, 3, 2)
    assert found["accuracy"]["labelled"]["share"] == 0.8
    assert found["accuracy"]["golden"]["samples"] == 9
    assert found["accuracy"]["estimated"] is None
    assert found["stated_accuracy"] == 0.95
    assert found["classes"] == {"0": 60, "2": 40}
    assert found["until"] - found["since"] == 86_400


def test_it_tells_which_features_drifted_and_how_far() -> None:
    found = told(ABOUT, busy("cam-1", drift={0: (1000, 0, 0, 0, 0, 0), 1: (500, 500, 0, 0)}))

    features = {each["name"]: each for each in found["drift"]["features"]}
    assert found["drift"]["drifted"]
    assert features["brightness"]["drifted"] and not features["contrast"]["drifted"]
    assert features["brightness"]["effect"] > 0.3


def test_small_cohorts_are_told_together_or_not_at_all() -> None:
    sites = {f"cam-{n}": "berlin" for n in range(6)} | {"door-1": "oslo"}
    few = told(ABOUT, busy("cam-1"), busy("door-1"), sites=sites)
    many = told(ABOUT, *(busy(id) for id in sites), sites=sites)

    assert few["cohorts"] == {}
    assert set(many["cohorts"]) == {"site=(others)"}
    assert many["cohorts"]["site=(others)"]["devices"] == 7


def test_of_a_device_alone_it_tells_what_the_alert_is_and_no_more() -> None:
    found = told(Subject("cam-1", device="cam-1"))

    assert found["device"] == "cam-1"
    assert found["model"] is None
    assert "requests" not in found


def test_a_model_that_nobody_asked_yet_has_a_summary_all_the_same() -> None:
    found = told(ABOUT)

    assert (found["requests"], found["drift"], found["classes"]) == (0, None, {})
    assert found["accuracy"] == {"labelled": None, "golden": None, "estimated": None}
