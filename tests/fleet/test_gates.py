"""The gates of a rollout through a whole controller: what devices report, decided and kept."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.core.views import Refusal, RolloutRequest, RolloutStatus
from tests.brokers import start_mosquitto
from tests.fleet.test_controller import World, wait_for
from wire.codec import Document, encode
from wire.topics import RULES, Kind, Topic, build
from wire.twin import DeploymentReport, Finding, Phase, Reported, Status

IDS = [f"cam-{n:02}" for n in range(40)]


class Devices:
    """Many devices behind one connection, that report and take nothing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.username_pw_set("tester", "secret")
        self._client.max_inflight_messages_set(1000)
        self._client.connect(parts.hostname or "", parts.port or 0)
        self._client.loop_start()
        self._sequence = 0

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def come(self) -> None:
        for id in IDS:
            self._say(Kind.STATUS, id, Status(device=id, online=True, nonce="b", since=1))
            self.report(id)

    def report(self, id: str, latest: DeploymentReport | None = None) -> None:
        self._sequence += 1
        deployments = (latest,) if latest else ()
        report = Reported(
            device=id,
            desired_revision=0,
            agent="0.1.0",
            boot="b",
            sequence=self._sequence,
            deployments=deployments,
        )
        self._say(Kind.REPORTED, id, report)

    def _say(self, kind: Kind, id: str, body: Document) -> None:
        rule = RULES[kind]
        self._client.publish(build(Topic(kind, id)), encode(body), rule.qos, rule.retain)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    broker = stack.enter_context(start_mosquitto(tmp_path, user="tester", password="secret"))
    return World(tmp_path, broker, stack)


@pytest.fixture
def devices(world: World, stack: ExitStack) -> Devices:
    devices = Devices(world.broker.url)
    stack.callback(devices.stop)
    devices.come()
    wait_for(lambda: len(world.controller.devices()) == len(IDS), "devices")
    return devices


def test_a_wave_too_small_is_named_by_the_plan_and_started_when_approved(
    world: World, devices: Devices
) -> None:
    world.push(1)
    request = RolloutRequest(release="digits@1", waves=("2", "100%"))

    plan = world.controller.plan_rollout(request)
    with pytest.raises(Refusal, match="wave 1: 2 devices told by then are too few") as refused:
        world.controller.start_rollout(request)
    none = world.controller.rollouts()
    enough = world.controller.plan_rollout(
        RolloutRequest(release="digits@1", waves=("75%", "100%"))
    )
    approved = world.roll_out("digits@1", waves=("2", "100%"), approve_small_waves=True)

    assert [(wave.devices, bool(wave.too_small)) for wave in plan.waves] == [(2, True), (38, False)]
    assert plan.refusal == refused.value.error
    assert refused.value.status == 422 and "--approve-small-waves" in refused.value.next_step
    assert none == []
    assert enough.refusal == "" and sum(enough.alphas.values()) == pytest.approx(0.05)
    assert approved.status is RolloutStatus.RUNNING


def test_findings_that_devices_froze_end_a_rollout_and_the_verdict_outlives_the_controller(
    world: World, devices: Devices
) -> None:
    manifest = world.push(1)
    started = world.roll_out("digits@1", waves=("30", "100%"))
    for told in (each.id for each in started.devices if each.wave == 1):
        latest = DeploymentReport(
            model="digits",
            version=1,
            rollout=started.id,
            manifest=manifest.digest,
            phase=Phase.PROBATION,
            since=int(time.time()),
            finding=Finding(pairs=100, worse=6, better=1),
        )
        devices.report(told, latest)

    def aborted() -> bool:
        status = world.controller.rollout(started.id).status
        return status in (RolloutStatus.ROLLING_BACK, RolloutStatus.ABORTED)

    wait_for(aborted, "abort")
    world.restart_controller()
    view = world.controller.rollout(started.id)

    verdict = view.verdicts[-1]
    assert (verdict.gate, verdict.ruling, verdict.wave) == ("accuracy", "abort", 1)
    assert verdict.e is not None and verdict.limit is not None and verdict.e >= verdict.limit
    assert verdict.figures["worse"] == 6 * verdict.devices
    assert verdict.words in view.because
    assert [gate.gate for gate in view.gates][:2] == ["accuracy", "refusals"]
    assert any(verdict.words in event.text for event in world.controller.events(100))


def test_the_operator_approves_an_open_wave_once(world: World, devices: Devices) -> None:
    world.push(1)
    started = world.roll_out("digits@1", waves=("30", "100%"))

    view = world.controller.approve_rollout(started.id, "seen by eye")
    with pytest.raises(Refusal, match="wave 1 is approved already"):
        world.controller.approve_rollout(started.id, "again")

    assert view.verdicts[-1].words == "wave 1 of 2: approved by the operator: seen by eye"
    assert any("seen by eye" in event.text for event in world.controller.events(100))
