"""What alerts do to a fleet: a real controller and broker, and devices that follow the wire."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.core.alert_views import AlertView
from fleet.core.cohort import order
from fleet.core.views import Refusal, RolloutStatus
from tests.brokers import start_mosquitto
from tests.fleet.device import ScriptedDevice
from tests.fleet.test_controller import World, wait_for
from wire.alert import Alerts
from wire.codec import decode
from wire.manifest import Manifest
from wire.telemetry import Health, ScoreWindow

POLICY = """
defaults = false
every = "100ms"
[[rule]]
name = "accuracy"
kind = "accuracy"
below = 0.8
for = 0
severity = "critical"
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    broker = stack.enter_context(start_mosquitto(tmp_path, user="tester", password="secret"))
    return World(tmp_path, broker, stack)


def follow(world: World, policy: str) -> None:
    (world.directory / "controller" / "alerts.toml").write_text(policy)
    wait_for(lambda: world.controller.upkeep.policy().origin != "default", "the policy")


def fail(device: ScriptedDevice, release: Manifest, seq: int = 1) -> None:
    """Tell that nearly all answers of a release are wrong."""
    now = int(time.time())
    device.send(
        ScoreWindow(
            device=device.id, boot="boot-1", seq=seq, model=release.model,
            version=release.version, manifest=release.digest, variant="int8-onnx",
            start=now - 60, end=now, requests=400, labelled=400, correct=40,
        )
    )  # fmt: skip


def acted(world: World) -> AlertView:
    """Return the first alert, once all of its actions are over."""

    def look() -> AlertView | None:
        found = world.controller.upkeep.alerts(resolved=True)
        view = world.controller.upkeep.alert(found[-1].id) if found else None
        return view if view and view.actions and view.state == "firing" else None

    return wait_for(look, "an alert with actions")


def test_a_release_that_fails_where_it_is_stops_on_its_way_to_the_others(world: World) -> None:
    first, second = order("r-1", ["cam-1", "cam-2"])
    devices = {id: world.device(id) for id in (first, second)}
    devices[second].muted.set()
    release = world.push(1)
    world.roll_out("digits@1", waves=("1", "100%"))
    follow(world, POLICY + 'actions = ["pause"]\n')

    wait_for(lambda: world.controller.device(first).serving, "digits@1")
    fail(devices[first], release)
    (act,) = acted(world).actions
    rollout = world.controller.rollout("r-1")

    assert act.outcome == "done"
    assert act.detail == "r-1 is paused; fleet rollout resume r-1"
    assert rollout.status is RolloutStatus.PAUSED
    assert rollout.because.startswith("by alert a-1 (accuracy): digits@1: labelled accuracy 10.0%")


def test_a_release_that_fails_is_quarantined_and_taken_back_from_the_devices_that_have_it(
    world: World,
) -> None:
    device, other = world.device("cam-1"), world.device("door-1")
    old, release = world.push(1), world.push(2)
    world.ended(world.roll_out("digits@1").id)
    world.ended(world.roll_out("digits@2", to="device=cam-1").id)
    follow(world, POLICY + 'actions = ["quarantine", "rollback"]\n')

    fail(device, release)
    quarantine, rollback = acted(world).actions
    ended = world.ended("r-3")

    assert quarantine.outcome == "done"
    assert (rollback.outcome, rollback.detail) == (
        "done",
        "r-3 brings digits@1 back to device=cam-1",
    )
    assert (ended.release, ended.status) == ("digits@1", "completed")
    wait_for(lambda: device.serving["digits"].manifest == old.digest, "digits@1 again")
    assert len(other.desired) == 1
    assert "labelled accuracy 10.0%" in (world.controller.release("digits", 2).quarantined or "")
    with pytest.raises(Refusal, match="digits@2 is in quarantine"):
        world.roll_out("digits@2")
    # Nobody serves it any more.
    wait_for(lambda: not world.controller.upkeep.alerts(resolved=False), "the end of the alert")

    world.restart_controller()
    with pytest.raises(Refusal, match="digits@2 is in quarantine"):
        world.controller.bundle("digits", 2, None, True)
    world.controller.upkeep.release("digits", 2)
    assert world.controller.release("digits", 2).quarantined is None
    world.roll_out("digits@2")


def test_a_running_rollout_of_a_release_that_fails_is_called_off(world: World) -> None:
    first, second = order("r-2", ["cam-1", "cam-2"])
    devices = {id: world.device(id) for id in (first, second)}
    world.push(1)
    world.ended(world.roll_out("digits@1").id)
    devices[second].muted.set()
    release = world.push(2)
    world.roll_out("digits@2", waves=("1", "100%"))
    follow(world, POLICY + 'actions = ["rollback"]\n')

    wait_for(lambda: world.controller.device(first).serving[0].version == 2, "digits@2")
    fail(devices[first], release)
    (act,) = acted(world).actions

    assert act.detail == "r-2 is called off; its devices go back"
    wait_for(lambda: world.controller.device(first).serving[0].version == 1, "digits@1 again")


def test_what_makes_no_sense_is_refused_and_says_why(world: World) -> None:
    device = world.device("cam-1")
    release = world.push(1)
    world.ended(world.roll_out("digits@1").id)
    follow(world, POLICY + 'actions = ["pause", "rollback"]\n')

    fail(device, release)
    pause, rollback = acted(world).actions

    assert (pause.outcome, pause.detail) == ("refused", "no rollout of digits@1 is under way")
    assert rollback.outcome == "refused"
    assert rollback.detail == "there is no release before digits@1 to go back to"


def test_a_rollout_of_the_remedy_is_not_paused_by_what_it_is_to_remedy(world: World) -> None:
    device = world.device("cam-1")
    release = world.push(1)
    world.ended(world.roll_out("digits@1").id)
    device.muted.set()
    world.push(2)
    world.roll_out("digits@2")
    follow(world, POLICY + 'actions = ["pause", "rollback"]\n')

    fail(device, release)
    pause, rollback = acted(world).actions

    assert pause.detail == "r-2 brings digits@2, which this alert is not about"
    assert rollback.detail == "r-2 brings digits@2 to these devices already"
    assert world.controller.rollout("r-2").status is RolloutStatus.RUNNING


def test_a_device_that_is_unwell_is_sent_a_command_and_is_told_of_everywhere(
    world: World,
) -> None:
    heard: list[Alerts] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.username_pw_set("tester", "secret")
    client.on_message = lambda c, u, message: heard.append(decode(Alerts, message.payload))
    client.connect("127.0.0.1", world.broker.port)
    client.subscribe("farflung/alerts", 1)
    client.loop_start()
    device = world.device("cam-1")
    rule = 'name = "hot"\nkind = "temperature"\nabove = 85\nfor = 0\nactions = ["command:ping"]\n'
    follow(world, f'defaults = false\nevery = "100ms"\n[[rule]]\n{rule}')

    def feel(seq: int, temperature_c: float) -> None:
        device.send(
            Health(
                device="cam-1", boot="boot-1", seq=seq, at=int(time.time()), uptime_s=1,
                cpu_percent=1, load_1m=1, memory_total_bytes=1, memory_available_bytes=1,
                disk_free_bytes=1, agent_cpu_percent=1, agent_rss_bytes=1,
                temperature_c=temperature_c,
            )
        )  # fmt: skip

    feel(1, 91.0)
    (act,) = acted(world).actions
    shown = world.controller.device("cam-1").alerts
    firing = world.controller.health().alerts_firing
    page, _ = world.controller.metrics("text/plain", None)
    wait_for(lambda: heard and heard[-1].firing, "the document")
    feel(2, 50.0)
    wait_for(lambda: not heard[-1].firing, "an empty document")
    client.disconnect()
    client.loop_stop()

    assert (act.outcome, act.detail[:10]) == ("done", "sent as c-")
    assert shown == ("a-1 hot (warning): cam-1: 91 °C, above 85",)
    assert firing == {"warning": 1}
    assert b'farflung_alerts{rule="hot",severity="warning"} 1.0' in page
    told = [f"{each.kind}: {each.text}" for each in world.controller.events(50)]
    assert "alert: a-1 hot is over (warning): cam-1: 50 °C" in told
