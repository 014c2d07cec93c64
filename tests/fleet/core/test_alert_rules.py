"""What the rules see: real telemetry in, readings out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.core.alert_policy import DEFAULT_RULES, Policy, read_policy
from fleet.core.alert_rules import Memory, Scene, look
from fleet.core.alerts import Reading
from fleet.core.census import Device
from fleet.shell.telemetry import Entry, Message, Telemetry
from fleet.upkeep import Figures
from tests.fleet.reports import pushed
from wire.manifest import Manifest
from wire.packing import pack
from wire.telemetry import Batch, DeviceEvent, Golden, Health, Histogram, Item, ScoreWindow
from wire.twin import Reported, Serving

NOW = 20_000 * 86_400 + 6 * 3600 + 1800.0
GOOD = pushed(2, metrics={"accuracy": 0.95})


def rules(*given: dict[str, Any]) -> Policy:
    return read_policy({"defaults": False, "rule": list(given)}, "alerts.toml")


class Fleet:
    """Devices that serve a release, their telemetry, and what the rules remember of them."""

    def __init__(self, path: Path) -> None:
        self.labels: dict[str, dict[str, str]] = {}
        self.telemetry = Telemetry(path, lambda device: self.labels.get(device, {}))
        self.devices: dict[str, Device] = {}
        self.memory = Memory()
        self.known: set[str] = set()
        self.seq = 0
        self.hearing_since: float | None = NOW - 86_400
        self.manifests: dict[str, Manifest] = {GOOD.digest: GOOD}

    def serve(self, *ids: str, manifest: Manifest | None = GOOD, **labels: str) -> None:
        for id in ids:
            self.labels[id] = labels
            serving = manifest and Serving(
                model=manifest.model, version=manifest.version, manifest=manifest.digest,
                variant="int8-onnx", runtime="onnxruntime", since=1,
            )  # fmt: skip
            reported = Reported(
                device=id, desired_revision=1, agent="1", boot="b", labels=labels,
                serving=(serving,) if serving else (),
            )  # fmt: skip
            self.devices[id] = Device(
                id, reported, agents=(("b", NOW, NOW),), last_seen=NOW, present_at=NOW
            )

    def health(self, id: str, at: float = NOW, **gauges: Any) -> None:
        said = Health.model_validate(
            {
                "device": id, "boot": "b", "seq": 1, "at": int(at), "uptime_s": 60,
                "cpu_percent": 1.0, "load_1m": 0.1, "memory_total_bytes": 100,
                "memory_available_bytes": 50, "disk_free_bytes": 50, "agent_cpu_percent": 1.0,
                "agent_rss_bytes": 1, **gauges,
            }
        )  # fmt: skip
        before = self.devices.get(id, Device(id))
        self.devices[id] = Device(
            id, before.reported, said, (("b", at, at),), last_seen=at, present_at=at
        )

    def count(self, id: str, ago: float = 600.0, manifest: Manifest = GOOD, **counts: Any) -> None:
        end = int(NOW - ago)
        self.seq += 1
        self.send(
            ScoreWindow.model_validate(
                {
                    "device": id, "boot": "b", "seq": self.seq, "model": manifest.model,
                    "version": manifest.version, "manifest": manifest.digest,
                    "variant": "int8-onnx", "start": end - 60, "end": end, **counts,
                }
            )
        )  # fmt: skip

    def gap(self, id: str, ago: float = 600.0) -> None:
        self.seq += 1
        self.send(DeviceEvent(device=id, boot="b", seq=self.seq, at=int(NOW - ago), kind="gap"))

    def send(self, item: Item) -> None:
        windows = (item,) if isinstance(item, ScoreWindow) else ()
        events = (item,) if isinstance(item, DeviceEvent) else ()
        body = pack(Batch(device=item.device, windows=windows, events=events))
        at = item.end if isinstance(item, ScoreWindow) else int(item.at)
        self.telemetry.commit([Message(item.device, NOW, body, (Entry(item, at),))])

    def see(self, policy: Policy, now: float = NOW) -> list[Reading]:
        devices = tuple(self.devices.values())
        scene = Scene(devices, self.manifests, self.hearing_since, frozenset(self.known))
        facts, self.memory = look(policy, scene, Figures(self.telemetry), self.memory, now)
        bad = {each.key for each in facts.readings if each.grade == "bad"}
        self.known |= bad
        return list(facts.readings)

    def grades(self, policy: Policy, now: float = NOW) -> dict[str, str]:
        return {each.subject.name: each.grade for each in self.see(policy, now)}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "telemetry.db")
    yield made
    made.telemetry.close()


# ---- models

ACCURACY = {"name": "accuracy", "kind": "accuracy", "drop": 0.05, "clear": 0.03}


def test_accuracy_below_what_the_release_states_is_bad_and_says_how_sure_that_is(
    fleet: Fleet,
) -> None:
    fleet.serve("cam-1")
    fleet.count("cam-1", requests=400, labelled=400, correct=300)

    (reading,) = fleet.see(rules(ACCURACY))

    assert (reading.subject.name, reading.grade) == ("digits@2", "bad")
    assert reading.text.startswith("digits@2: labelled accuracy 75.0% of 400 on one device, at")
    assert "below 90.0%" in reading.text


def test_few_labels_that_are_all_wrong_by_chance_alone_are_not_shown_to_be_bad(
    fleet: Fleet,
) -> None:
    fleet.serve("cam-1")
    fleet.count("cam-1", requests=400, labelled=40, correct=34)

    assert fleet.see(rules(ACCURACY)) == []


def test_fewer_samples_than_the_rule_wants_are_no_reading(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    fleet.count("cam-1", requests=400, labelled=29, correct=0)

    assert fleet.see(rules(ACCURACY)) == []


def test_accuracy_that_recovers_is_good_and_near_the_bound_neither(fleet: Fleet) -> None:
    fleet.serve("cam-1", "cam-2")
    policy = rules({**ACCURACY, "per": "device"})
    for id in ("cam-1", "cam-2"):
        fleet.count(id, requests=400, labelled=400, correct=300)
    assert set(fleet.grades(policy).values()) == {"bad"}

    fleet.count("cam-1", labelled=20_000, correct=19_500)
    fleet.count("cam-2", labelled=20_000, correct=18_200)

    assert fleet.grades(policy, NOW + 60) == {
        "digits@2 on cam-1": "good",
        "digits@2 on cam-2": "between",
    }


def test_windows_older_than_the_rule_looks_back_do_not_count(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    fleet.count("cam-1", ago=26 * 3600, requests=400, labelled=400, correct=100)

    assert fleet.see(rules(ACCURACY)) == []


def test_accuracy_of_each_kind_is_looked_at_for_itself(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    fleet.count(
        "cam-1",
        labelled=400,
        correct=390,
        golden=Golden(runs=1, samples=100, labelled=100, correct=60),
        estimate={"samples": 400, "sum_p": 240_000_000, "spread": 1},
    )

    found = fleet.see(
        rules(
            {**ACCURACY, "name": "labelled", "drop": None, "clear": None, "below": 0.9},
            {"name": "golden", "kind": "accuracy", "evidence": "golden", "below": 0.9},
            {"name": "estimated", "kind": "accuracy", "evidence": "estimated", "below": 0.9},
        )
    )

    assert {each.rule for each in found} == {"golden", "estimated"}
    assert "digits@2: golden accuracy 60.0% of 100: below 90.0%" in {each.text for each in found}


def test_a_device_whose_golden_answers_differ_from_the_others_is_found(fleet: Fleet) -> None:
    ids = [f"cam-{n}" for n in range(5)]
    fleet.serve(*ids)
    for id in ids:
        correct = 50 if id == "cam-3" else 95
        fleet.count(id, golden=Golden(runs=1, samples=100, labelled=100, correct=correct))

    rule = {"name": "golden", "kind": "accuracy", "evidence": "golden", "drop": 0.05,
            "per": "device"}  # fmt: skip
    assert fleet.grades(rules(rule)) == {"digits@2 on cam-3": "bad"}


def test_a_label_groups_devices_and_only_the_site_that_fails_is_told(fleet: Fleet) -> None:
    fleet.serve("cam-1", site="berlin")
    fleet.serve("cam-2", site="oslo")
    fleet.count("cam-1", labelled=400, correct=390)
    fleet.count("cam-2", labelled=400, correct=200)

    assert fleet.grades(rules({**ACCURACY, "per": "site"})) == {"digits@2 site=oslo": "bad"}


def test_a_rule_for_some_devices_sees_no_others(fleet: Fleet) -> None:
    fleet.serve("cam-1", site="berlin")
    fleet.serve("cam-2", site="oslo")
    fleet.count("cam-2", labelled=400, correct=200)

    assert fleet.see(rules({**ACCURACY, "to": "site=berlin"})) == []


def test_an_alert_about_a_release_that_nobody_serves_any_more_is_gone(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    fleet.count("cam-1", labelled=400, correct=200)
    policy = rules(ACCURACY)
    assert fleet.grades(policy) == {"digits@2": "bad"}

    newer = pushed(3, metrics={"accuracy": 0.95})
    fleet.manifests[newer.digest] = newer
    fleet.serve("cam-1", manifest=newer)
    (reading,) = fleet.see(policy, NOW + 60)

    assert reading.grade == "gone"
    assert reading.text == "digits@2 serves on no device any more"


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("errors", {"requests": 1000, "errors": 100}),
        ("slo", {"requests": 1000, "slo_misses": 100}),
        ("drops", {"requests": 900, "drops": 100}),
    ],
)
def test_too_large_a_share_of_bad_ends_is_seen_and_a_small_one_is_not(
    fleet: Fleet, kind: str, counts: dict[str, int]
) -> None:
    fleet.serve("cam-1")
    fleet.count("cam-1", **counts)

    def rule(above: float) -> Policy:
        return rules({"name": "rate", "kind": kind, "above": above})

    assert fleet.see(rule(0.2)) == []
    fleet.memory = Memory()
    (reading,) = fleet.see(rule(0.05))
    assert "10.0% of 1000 requests on one device, at least" in reading.text


def test_slow_answers_are_seen_in_the_quantile_that_the_rule_names(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    fast, slow = Histogram.bin_of(5_000), Histogram.bin_of(80_000)
    fleet.count("cam-1", requests=1000, latency=Histogram(bins={fast: 900, slow: 100}))

    def rule(quantile: float) -> Policy:
        return rules({"name": "slow", "kind": "latency", "quantile": quantile, "above_ms": 20})

    assert fleet.see(rule(0.5)) == []
    fleet.memory = Memory()
    assert fleet.grades(rule(0.99)) == {"digits@2": "bad"}


# ---- drift

DRIFT = {"name": "drift", "kind": "drift", "window": "1h", "needed": 3, "of": 3, "quiet": 2}


def drifting(fleet: Fleet, hour: int, bins: tuple[int, ...]) -> None:
    """Count an hour's inputs, in the bins of the brightness."""
    for minute in range(0, 60, 10):
        ago = NOW - (NOW // 3600 + hour) * 3600 - 60 * minute - 90
        fleet.count("cam-1", ago, requests=sum(bins), drift={0: (*bins, 0, 0)})


def test_drift_is_told_once_enough_windows_agree_and_over_once_enough_are_quiet(
    fleet: Fleet,
) -> None:
    fleet.serve("cam-1")
    policy = rules(DRIFT)

    seen = []
    for hour in range(8):
        drifting(fleet, hour, (400, 0, 0, 0) if hour < 4 else (100, 100, 100, 100))
        # A quarter of an hour after its end a window is judged.
        now = (NOW // 3600 + hour + 1) * 3600 + 901
        seen.append(fleet.grades(policy, now).get("digits@2"))

    assert seen[:4] == [None, None, "bad", "bad"]
    assert seen[5:7] == ["good", "good"]


def test_a_window_is_judged_once_however_often_is_looked(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    drifting(fleet, 0, (400, 0, 0, 0))
    policy = rules(DRIFT)

    for minute in range(20):
        assert fleet.see(policy, (NOW // 3600 + 1) * 3600 + 901 + 60 * minute) == []

    ((latch, _, _),) = fleet.memory.latches.values()
    assert latch.recent == (True,)


def test_hours_without_requests_change_nothing_about_drift(fleet: Fleet) -> None:
    fleet.serve("cam-1")
    policy = rules(DRIFT)
    for hour in range(3):
        drifting(fleet, hour, (400, 0, 0, 0))
        fleet.see(policy, (NOW // 3600 + hour + 1) * 3600 + 901)

    later = [fleet.grades(policy, (NOW // 3600 + hour) * 3600 + 901) for hour in range(5, 9)]

    assert later == [{"digits@2": "bad"}] * 4


# ---- devices


def gauge(kind: str, **settings: Any) -> Policy:
    return rules({"name": "gauge", "kind": kind, **settings})


@pytest.mark.parametrize(
    ("policy", "bad", "good"),
    [
        (
            gauge("disk", below=5),
            {"disk_total_bytes": 100, "disk_free_bytes": 4},
            {"disk_total_bytes": 100, "disk_free_bytes": 6},
        ),
        (gauge("memory", below=5), {"memory_available_bytes": 4}, {}),
        (gauge("temperature", above=85), {"temperature_c": 90.0}, {"temperature_c": 50.0}),
        (gauge("throttled"), {"throttled": True}, {"throttled": False}),
        (gauge("pressure", above=20), {"pressure": {"memory": 40.0}}, {"pressure": {"memory": 1}}),
        (gauge("clock", above=600), {"clock_synchronised": False}, {"clock_synchronised": True}),
        (
            gauge("battery", below=10),
            {"battery_percent": 5.0},
            {"battery_percent": 5.0, "battery_charging": True, "cpu_percent": 2.0},
        ),
    ],
)
def test_a_gauge_beyond_its_bound_is_bad_and_one_within_it_is_good(
    fleet: Fleet, policy: Policy, bad: dict[str, Any], good: dict[str, Any]
) -> None:
    fleet.health("cam-1", **bad)
    assert fleet.grades(policy) == {"cam-1": "bad"}

    fleet.health("cam-1", **good)

    # A battery that is being charged tells nothing: no data changes nothing.
    expected = {} if "battery_charging" in good else {"cam-1": "good"}
    assert fleet.grades(policy, NOW + 60) == expected


def test_a_gauge_that_a_device_does_not_have_is_no_reading(fleet: Fleet) -> None:
    fleet.health("cam-1")

    every = [
        gauge("temperature", above=1),
        gauge("battery", below=99),
        gauge("throttled"),
        gauge("pressure", above=1),
        gauge("disk", below=99),
    ]
    for policy in every:
        fleet.memory = Memory()
        assert fleet.see(policy) == []


def test_a_clock_that_is_years_off_is_told_as_such(fleet: Fleet) -> None:
    fleet.health("cam-1")
    device = fleet.devices["cam-1"]
    assert device.health is not None
    off = device.health.model_copy(update={"at": int(NOW) - 3 * 365 * 86_400})
    fleet.devices["cam-1"] = Device("cam-1", None, off, (("b", NOW, NOW),), NOW, NOW)

    (reading,) = fleet.see(gauge("clock", above=600))

    assert reading.text == "cam-1: its clock is 1095 days behind"


SILENT = rules({"name": "silent", "kind": "silent", "after": "15m"})


def test_a_device_that_says_nothing_is_silent_until_it_speaks_again(fleet: Fleet) -> None:
    fleet.health("cam-1", at=NOW - 1000)
    fleet.health("cam-2", at=NOW - 100)
    first = fleet.see(SILENT)

    fleet.health("cam-1", at=NOW + 50)

    assert [each.text for each in first] == ["cam-1 says nothing for 16 min"]
    assert fleet.grades(SILENT, NOW + 60) == {"cam-1": "good"}


def test_while_the_controller_is_deaf_nobody_is_silent_nor_speaks(fleet: Fleet) -> None:
    fleet.health("cam-1", at=NOW - 1000)
    fleet.see(SILENT)

    fleet.hearing_since = None
    deaf = fleet.see(SILENT, NOW + 60)
    fleet.hearing_since = NOW + 61
    just_back = fleet.see(SILENT, NOW + 120)

    assert deaf == []
    assert just_back == []


def test_a_device_never_heard_of_since_it_was_restored_is_not_silent(fleet: Fleet) -> None:
    fleet.devices["cam-1"] = Device("cam-1")

    assert fleet.see(SILENT) == []


CRASHES = rules({"name": "crashes", "kind": "crashes", "times": 3, "window": "15m"})


def test_restarts_of_agent_and_engine_are_counted_and_those_before_the_first_report_are_not(
    fleet: Fleet,
) -> None:
    fleet.health("cam-1", boot="b1", agent_starts=500, engine_restarts=70)
    assert fleet.see(CRASHES) == []

    fleet.health("cam-1", at=NOW + 60, boot="b2", agent_starts=502, engine_restarts=1)
    (reading,) = fleet.see(CRASHES, NOW + 60)

    assert reading.grade == "bad"
    assert reading.text == "cam-1: 3 restarts of the agent or its engine in 15m"


def test_a_restart_now_and_then_is_no_crash_loop(fleet: Fleet) -> None:
    for n in range(10):
        at = NOW + 1200 * n
        fleet.health("cam-1", at=at, boot=f"b{n}", agent_starts=n)
        assert fleet.see(CRASHES, at) == []


def test_items_dropped_from_an_outbox_are_told_and_so_are_gaps(fleet: Fleet) -> None:
    policy = rules(
        {"name": "dropped", "kind": "outbox-drops"},
        {"name": "gaps", "kind": "gaps", "more_than": 1},
    )
    fleet.health("cam-1", outbox_dropped=4)
    fleet.gap("cam-1", ago=7200)
    fleet.gap("cam-1")
    assert fleet.see(policy) == []

    fleet.health("cam-1", at=NOW + 60, outbox_dropped=9)
    fleet.gap("cam-1")

    assert [each.text for each in fleet.see(policy, NOW + 60)] == [
        "cam-1: 5 items dropped from its outbox for want of room in 1h",
        "cam-1: 2 gaps: windows lost at an unclean end, in 1h",
    ]


# ---- which rules look


def test_a_rule_is_looked_at_as_often_as_it_says_and_no_more(fleet: Fleet) -> None:
    policy = rules({"name": "disk", "kind": "disk", "below": 5, "every": "5m"})

    seen = []
    for minute in range(11):
        now = NOW + 60 * minute
        fleet.health("cam-1", at=now, disk_total_bytes=100, disk_free_bytes=1)
        seen.append(len(fleet.see(policy, now)))

    assert seen == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_the_rules_that_come_with_the_controller_say_nothing_of_a_healthy_fleet(
    fleet: Fleet,
) -> None:
    ids = [f"cam-{n}" for n in range(10)]
    fleet.serve(*ids, site="berlin")
    for id in ids:
        fleet.health(
            id, disk_total_bytes=100, temperature_c=60.0, throttled=False, agent_starts=3,
            pressure={"memory": 0.5}, clock_synchronised=True, battery_percent=80.0,
        )  # fmt: skip
        bins = {Histogram.bin_of(900): 1000}
        fleet.count(
            id, requests=1000, errors=1, slo_misses=2, latency={"bins": bins}, labelled=200,
            correct=190, golden=Golden(runs=1, samples=50, labelled=50, correct=48),
            estimate={"samples": 1000, "sum_p": 950_000_000, "spread": 1},
            drift={0: (250, 250, 250, 250, 0, 0)},
        )  # fmt: skip

    policy = Policy()
    assert [each for n in range(5) for each in fleet.see(policy, NOW + 60 * n)] == []
    assert policy.rules() == list(DEFAULT_RULES)
