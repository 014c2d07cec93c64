"""The controller on real brokers, with devices that follow the wire."""

import errno
import io
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.config import load_config
from agent.shell.bundle import read_seal, unpack
from fleet.controller import Controller
from fleet.core.export import Asked
from fleet.core.port import ControllerPort
from fleet.core.sender import ECHO_S
from fleet.core.views import Refusal, RolloutRequest, RolloutStatus, RolloutView
from fleet.shell.blobs import CHUNK_BYTES
from fleet.shell.telemetry import Telemetry
from tests.brokers import Broker, start_mosquitto, start_nats
from tests.fleet.device import Script, ScriptedDevice, commits, refuses
from tests.fleet.samples import sample_manifest
from wire.codec import Document, encode
from wire.ids import digest_hex, digest_of
from wire.manifest import Manifest
from wire.manners import Manners
from wire.seal import Verifier
from wire.telemetry import Histogram, ScoreWindow
from wire.topics import RULES, Kind, Topic, build
from wire.transfer import FetchRequest
from wire.twin import Desired, Reported, Status

T = TypeVar("T")
BROKERS = {"mosquitto": start_mosquitto, "nats": start_nats}


def wait_for(look: Callable[[], T], what: str, timeout_s: float = 15.0) -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.03)
    raise AssertionError(f"{what}: not within {timeout_s} s; last seen {look()!r}")


class World:
    """A broker, a controller that can be restarted, and devices; all ended after the test."""

    def __init__(self, directory: Path, broker: Broker, stack: ExitStack) -> None:
        self.directory = directory
        self.broker = broker
        self._stack = stack
        self.controller = self._controller()

    def _controller(self) -> Controller:
        data = self.directory / "controller"
        login = ("tester", "secret")
        controller = Controller(data, self.broker.url, *login, *login)
        controller.start()
        self._stack.callback(controller.stop)
        return controller

    def restart_controller(self) -> None:
        self.controller.stop()
        self.controller = self._controller()

    def device(
        self,
        id: str,
        script: Script = commits,
        labels: dict[str, str] | None = None,
        max_chunk_bytes: int = CHUNK_BYTES,
    ) -> ScriptedDevice:
        device = ScriptedDevice(
            self.broker.url,
            id,
            self.controller.public_key,
            script,
            labels,
            max_chunk_bytes=max_chunk_bytes,
        ).start()
        self._stack.callback(device.stop)
        wait_for(lambda: self.online(id), f"{id} online")
        return device

    def online(self, id: str) -> bool:
        return any(d.id == id and d.online and d.agent for d in self.controller.devices())

    def push(self, version: int, size: int = 200_000) -> Manifest:
        return self.push_bytes(
            version, random.Random(version).randbytes(size // 2) + bytes(size // 2)
        )

    def push_bytes(self, version: int, artifact: bytes) -> Manifest:
        manifest = sample_manifest(version, artifact)
        writer = self.controller.open_blob(digest_of(artifact))
        writer.write(artifact)
        writer.finish()
        self.controller.add_release(manifest)
        return manifest

    def roll_out(self, release: str, **request: object) -> RolloutView:
        return self.controller.start_rollout(
            RolloutRequest.model_validate({"release": release, **request})
        )

    def ended(self, id: str) -> RolloutView:
        def look() -> RolloutView | None:
            view = self.controller.rollout(id)
            return view if view.status.final else None

        return wait_for(look, f"{id} over")

    def say(self, kind: Kind, owner: str, body: Document, topic: str | None = None) -> None:
        """Publish something as a stranger would."""
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        client.username_pw_set("tester", "secret")
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        rule = RULES[kind]
        sent = client.publish(topic or build(Topic(kind, owner)), encode(body), 1, rule.retain)
        sent.wait_for_publish(5)
        client.disconnect()
        client.loop_stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    broker = stack.enter_context(start_mosquitto(tmp_path, user="tester", password="secret"))
    return World(tmp_path, broker, stack)


def window(release: Manifest, seq: int, boot: str = "boot-1") -> ScoreWindow:
    return ScoreWindow(
        device="cam-1",
        boot=boot,
        seq=seq,
        model=release.model,
        version=release.version,
        manifest=release.digest,
        variant="int8-onnx",
        start=seq,
        end=seq + 1,
        requests=10,
        latency=Histogram(bins={Histogram.bin_of(2000.0): 10}),
        labelled=10,
        correct=9,
    )


def test_the_controller_is_what_its_api_expects(world: World) -> None:
    port: ControllerPort = world.controller

    assert port.health().devices == 0
    wait_for(lambda: port.health().broker_connected, "connection")


@pytest.mark.parametrize("kind", BROKERS)
def test_a_release_reaches_every_device_wave_by_wave(
    kind: str, tmp_path: Path, stack: ExitStack
) -> None:
    broker = stack.enter_context(BROKERS[kind](tmp_path, user="tester", password="secret"))
    world = World(tmp_path, broker, stack)
    devices = [world.device(f"cam-{n}", labels={"site": "berlin"}) for n in range(3)]
    outsider = world.device("door-1", labels={"site": "paris"})
    manifest = world.push(1)

    started = world.roll_out("digits@1", to="site=berlin", waves=("1", "100%"))
    ended = world.ended(started.id)

    assert ended.status is RolloutStatus.COMPLETED, ended.because
    assert ended.because == "3 of 3 devices committed"
    assert [wave.counts for wave in ended.waves] == [{"committed": 1}, {"committed": 2}]
    assert all(d.files[manifest.digest] == encode(manifest) for d in devices)
    assert all(manifest.variants[0].artifact.digest in d.files for d in devices)
    assert outsider.desired == []
    view = world.controller.device("cam-0")
    assert view.desired_revision == view.reported_revision == 1
    assert view.serving[0].manifest == manifest.digest


def test_a_device_behind_a_broker_of_short_messages_gets_the_same_file_in_smaller_chunks(
    world: World,
) -> None:
    usual = world.device("cam-1")
    narrow = world.device("cam-2", max_chunk_bytes=20_000)
    manifest = world.push(1)

    ended = world.ended(world.roll_out("digits@1").id)

    assert ended.status is RolloutStatus.COMPLETED, ended.because
    artifact = manifest.variants[0].artifact.digest
    for device, chunk_bytes in ((usual, CHUNK_BYTES), (narrow, 16 * 1024)):
        offers = device.desired[-1].releases[0].offers
        assert {offer.chunk_bytes for offer in offers} == {chunk_bytes}
        assert digest_of(device.files[artifact]) == artifact


def test_who_has_the_release_before_is_offered_what_changed(world: World) -> None:
    first = random.Random(1).randbytes(150_000)
    second = bytearray(first)
    second[1000:1010] = b"0123456789"
    old, new = world.push_bytes(1, first), world.push_bytes(2, bytes(second))
    keeper = world.device("cam-1")
    world.ended(world.roll_out("digits@1", to="device=cam-1").id)
    newcomer = world.device("cam-2")

    ended = world.ended(world.roll_out("digits@2").id)
    world.restart_controller()

    artifact = new.variants[0].artifact.digest
    ways = {
        device.id: [offer for offer in device.taken if offer.file == artifact]
        for device in (keeper, newcomer)
    }
    assert ended.status is RolloutStatus.COMPLETED, ended.because
    assert [offer.base for offer in ways["cam-1"]] == [old.variants[0].artifact.digest]
    assert ways["cam-1"][0].transfer_bytes < 1000
    assert [offer.encoding for offer in ways["cam-2"]] == ["identity"]
    assert keeper.files[artifact] == newcomer.files[artifact] == bytes(second)


def test_a_release_that_too_many_devices_refuse_is_taken_back(world: World) -> None:
    devices = [world.device(f"cam-{n}", refuses(2) if n < 4 else commits) for n in range(5)]
    world.push(1)
    world.push(2)
    world.ended(world.roll_out("digits@1").id)

    ended = world.ended(world.roll_out("digits@2", max_refused_percent=60).id)

    assert ended.status is RolloutStatus.ABORTED
    assert "of 5 devices refused digits@2: worse_than_champion (cam-" in ended.because
    assert "27 worse, 6 better, E = 1024); limit 60%" in ended.because
    assert ended.because.endswith("5 of 5 devices on the release before")
    for device in devices:
        assert device.serving["digits"].version == 1
    last = wait_for(
        lambda: [d.desired[-1].releases[0] for d in devices if len(d.desired) == 3],
        "the recalls",
    )
    assert {release.version for release in last} == {1}
    for release in last:
        if release.purpose == "rollback":
            assert release.probation.labelled_pairs == 0
        else:
            assert release.rollout == "r-1", "a device that refused gets its old order back"


def test_the_operator_can_call_a_rollout_off(world: World) -> None:
    world.device("cam-1")
    device = world.device("cam-2")
    device.muted.set()
    world.push(1)
    started = world.roll_out("digits@1", to="device=cam-2")

    world.controller.abort_rollout(started.id, "wrong model")
    ended = world.ended(started.id)

    assert ended.status is RolloutStatus.ABORTED
    assert ended.because.startswith("by the operator: wrong model")
    with pytest.raises(Refusal, match="is aborted already"):
        world.controller.abort_rollout(started.id, "again")


def test_a_pause_reaches_the_devices_outlasts_a_restart_and_ends(world: World) -> None:
    device = world.device("cam-1")
    device.muted.set()
    world.push(1)
    manners = {"bytes_per_s": 1 << 20, "windows": ("01:00-05:00",), "spread_s": 9}
    started = world.roll_out("digits@1", **manners)

    def ordered() -> Manners:
        return open_desired(world, "cam-1").releases[0].manners

    first = ordered()
    paused = world.controller.pause_rollout(started.id, "lunch")
    held = ordered()
    world.restart_controller()
    still = world.controller.rollout(started.id)
    world.controller.resume_rollout(started.id)
    device.muted.clear()
    ended = world.ended(started.id)

    assert first == Manners.model_validate(manners)
    assert (paused.status, paused.because) == (RolloutStatus.PAUSED, "by the operator: lunch")
    assert held == first.model_copy(update={"held": True})
    assert still.status is RolloutStatus.PAUSED
    assert ended.status is RolloutStatus.COMPLETED, ended.because
    assert device.desired[-1].releases[0].manners == first


def test_a_rule_is_for_the_devices_with_its_label(world: World) -> None:
    slow = world.device("cam-1", labels={"link": "lte"})
    fast = world.device("cam-2", labels={"link": "wire"})
    world.push(1)
    rules = [
        {"to": "link=lte", "bytes_per_s": 4096},
        {"to": "link=wire", "windows": ["01:00-02:00"]},
    ]

    world.ended(world.roll_out("digits@1", bytes_per_s=1 << 20, rules=rules).id)

    assert slow.desired[-1].releases[0].manners == Manners(bytes_per_s=4096)
    assert fast.desired[-1].releases[0].manners == Manners(
        bytes_per_s=1 << 20, windows=("01:00-02:00",)
    )
    with pytest.raises(Refusal, match="no device has a label 'nonsense'"):
        world.roll_out("digits@1", rules=[{"to": "nonsense"}])


def open_desired(world: World, device: str) -> Desired:
    """Return the latest order for a device as the store has it."""
    rows = {row.device: row for row in world.controller._store.desired()}
    return Verifier((world.controller.public_key,)).open(Desired, rows[device].document)


def test_a_rollout_goes_on_after_the_controller_restarts(world: World) -> None:
    devices = [world.device(f"cam-{n}") for n in range(3)]
    for device in devices[1:]:
        device.muted.set()
    world.push(1)
    started = world.roll_out("digits@1", waves=("1", "2", "100%"))
    key = world.controller.public_key

    world.restart_controller()
    for device in devices:
        device.muted.clear()
    ended = world.ended(started.id)

    assert ended.status is RolloutStatus.COMPLETED, ended.because
    assert world.controller.public_key == key
    assert all(device.serving["digits"].version == 1 for device in devices)
    kinds = {event.kind for event in world.controller.events(100)}
    assert {"release", "rollout", "device", "deployment"} <= kinds


def test_a_rollout_survives_a_broker_that_forgets_everything(world: World) -> None:
    devices = [world.device(f"cam-{n}") for n in range(2)]
    for device in devices:
        device.muted.set()
    world.push(1)
    started = world.roll_out("digits@1")

    world.broker.kill()
    for file in (world.directory / "mosquitto").glob("*.db"):
        file.unlink()
    for device in devices:
        device.muted.clear()
    world.broker.start()
    ended = world.ended(started.id)

    assert ended.status is RolloutStatus.COMPLETED, ended.because


def test_a_newer_rollout_of_the_model_ends_the_one_under_way(world: World) -> None:
    device = world.device("cam-1")
    device.muted.set()
    world.push(1)
    world.push(2)
    older = world.roll_out("digits@1")

    device.muted.clear()
    newer = world.ended(world.roll_out("digits@2").id)

    assert world.controller.rollout(older.id).status is RolloutStatus.SUPERSEDED
    assert world.controller.rollout(older.id).because == "superseded by r-2"
    assert newer.status is RolloutStatus.COMPLETED
    assert [view.id for view in world.controller.rollouts()] == ["r-2", "r-1"]


def test_telemetry_is_acknowledged_once_it_is_stored_and_counted_once(world: World) -> None:
    release = world.push(1)
    device = world.device("cam-1")

    for seq in (1, 2, 2, 1, 3):
        device.send(window(release, seq))
    wait_for(lambda: device.acks and device.acks[-1] == 3, "ack 3")
    for _ in range(2):
        device.send(window(release, 5), complete=False)
    wait_for(
        lambda: [s.requests for s in world.controller.device("cam-1").scores] == [40], "4 windows"
    )

    assert max(device.acks) == 3, "5 went ahead of 4: the device must keep both"
    device.send(window(release, 4), window(release, 5))
    wait_for(lambda: device.acks[-1] == 5, "ack 5")
    score = world.controller.device("cam-1").scores[0]
    assert (score.requests, score.labelled, score.correct) == (50, 50, 45)
    assert score.accuracy == 0.9
    assert score.accuracy_low == pytest.approx(0.786, abs=0.001)
    assert score.accuracy_high == pytest.approx(0.957, abs=0.001)
    assert score.p95_ms == pytest.approx(2.0, rel=0.011)


def test_a_report_tells_of_a_window_as_soon_as_it_is_acknowledged_and_after_a_restart(
    world: World,
) -> None:
    release = world.push(1)
    device = world.device("cam-1")
    now = int(time.time())
    device.send(window(release, 1).model_copy(update={"start": now - 60, "end": now}))
    wait_for(lambda: device.acks, "the acknowledgement")

    before = world.controller.model_report(release.model, 1, None, "30d", "now")
    world.restart_controller()
    after = world.controller.model_report(release.model, 1, None, "30d", "now")

    [told], [again] = before.releases, after.releases
    assert (told.requests, again.requests) == (10, 10)
    [labelled] = [each for each in told.accuracy if each.kind == "labelled"]
    assert (labelled.samples, labelled.correct) == (10, 9)


def test_an_export_holds_what_a_report_does_and_names_nobody_unasked(world: World) -> None:
    release = world.push(1)
    devices = [world.device(id, labels={"site": "berlin"}) for id in ("cam-1", "cam-2")]
    now = int(time.time())
    for device in devices:
        told = {"device": device.id, "start": now - 60, "end": now}
        device.send(window(release, 1).model_copy(update=told))
    wait_for(lambda: all(device.acks for device in devices), "the acknowledgements")

    def rows(by: str | None, least: int) -> list[tuple[str, int, int]]:
        asked = Asked(release.model, 1, by, min_devices=least)
        lines = world.controller.telemetry_export(asked)
        told = [line.row for line in lines if line.row is not None]
        return [(row.group, row.devices, row.requests) for row in told]

    assert rows(None, 1) == [("", 2, 20)]
    assert rows("site", 2) == [("berlin", 2, 20)]
    assert rows("device", 1) == [("cam-1", 1, 10), ("cam-2", 1, 10)]
    assert rows("site", 3) == rows(None, 3) == []


def test_totals_and_acknowledgements_survive_a_restart(world: World) -> None:
    release = world.push(1)
    device = world.device("cam-1")
    for seq in (1, 2):
        device.send(window(release, seq))
    wait_for(lambda: device.acks and device.acks[-1] == 2, "ack 2")

    world.restart_controller()
    device.acks.clear()
    wait_for(lambda: world.controller.health().broker_connected, "connection")
    wait_for(lambda: (device.send(window(release, 2)), device.acks)[1], "an ack")
    device.send(window(release, 3))
    wait_for(lambda: device.acks[-1] == 3, "ack 3")

    assert world.controller.device("cam-1").scores[0].requests == 30


def test_a_device_whose_disk_was_wiped_is_heard_again(world: World) -> None:
    release = world.push(1)
    device = world.device("cam-1")
    for seq in (1, 2, 3):
        device.send(window(release, seq))
    wait_for(lambda: device.acks and device.acks[-1] == 3, "ack 3")

    device.acks.clear()
    device.send(window(release, 1, boot="boot-new"))
    wait_for(lambda: device.acks, "an ack")

    assert device.acks == [1]
    assert world.controller.device("cam-1").scores[0].requests == 40


def test_windows_of_a_release_that_nobody_pushed_are_acknowledged_and_not_counted(
    world: World,
) -> None:
    device = world.device("cam-1")

    device.send(window(sample_manifest(9), 1))

    wait_for(lambda: device.acks == [1], "ack 1")
    assert world.controller.device("cam-1").scores == ()


def test_a_disk_that_refuses_for_a_while_costs_no_telemetry(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = world.push(1)
    device = world.device("cam-1")

    def full(self: Telemetry, *rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "commit", full)
        device.send(window(release, 1))
        time.sleep(1.5)
        unacknowledged = list(device.acks)
        alive = world.controller.health()
    wait_for(lambda: device.acks and device.acks[-1] == 1, "ack 1")

    assert unacknowledged == []
    assert alive.devices_online == 1
    assert world.controller.device("cam-1").scores[0].requests == 10


def test_an_idle_controller_uses_next_to_no_processor_time(world: World) -> None:
    world.push(1)
    world.device("cam-1")
    world.ended(world.roll_out("digits@1").id)
    time.sleep(1)

    before = time.process_time()
    time.sleep(3)

    assert time.process_time() - before < 0.1, "with a device and two network threads"


def test_a_stopped_controller_says_so(world: World) -> None:
    world.controller.stop()

    with pytest.raises(Refusal, match="the controller is not running"):
        world.controller.health()


def test_chunks_are_served_only_for_what_a_device_should_run(world: World) -> None:
    manifest = world.push(1)
    device = world.device("cam-1")
    artifact = manifest.variants[0].artifact.digest
    world.ended(world.roll_out("digits@1").id)
    offer = next(o for o in device.desired[0].releases[0].offers if o.file == artifact)
    stranger = world.device("cam-2")

    stranger._client.subscribe(f"farflung/a/{offer.index[7:]}/+", 0)
    stranger.ask(FetchRequest.of(offer.index, "data", [0]))
    device.ask(FetchRequest.of(offer.index, "data", [10_000]))
    time.sleep(ECHO_S + 0.1)
    refused = stranger.frames
    device.ask(FetchRequest.of(offer.index, "data", [0]))

    assert refused == 0
    wait_for(lambda: stranger.frames == 1, "one frame, for all who listen")


def test_a_command_is_answered(world: World) -> None:
    world.device("cam-1")

    sent = world.controller.send_command("cam-1", "ping")
    answered = wait_for(
        lambda: (
            view
            if (view := world.controller.command("cam-1", sent.id)).outcome != "waiting"
            else None
        ),
        "an answer",
    )

    assert answered.outcome == "done"
    with pytest.raises(Refusal, match="expected one of ping, restart-engine, got 'reboot'"):
        world.controller.send_command("cam-1", "reboot")
    with pytest.raises(Refusal, match="no device 'cam-2'; nearest is cam-1"):
        world.controller.send_command("cam-2", "ping")


def test_what_comes_on_a_wrong_topic_or_malformed_changes_nothing(world: World) -> None:
    world.device("cam-1")
    status = Status(device="cam-9", online=True, nonce="x", since=1)
    report = Reported(device="cam-9", desired_revision=0, agent="9", boot="b")

    world.say(Kind.STATUS, "cam-9", status, topic="farflung/d/zz/cam-9/status")
    world.say(Kind.REPORTED, "cam-8", report)
    world.say(Kind.REPORTED, "cam-7", status)
    world.say(Kind.BATCH, "cam-1", report)
    device = world.device("cam-2")

    assert [view.id for view in world.controller.devices()] == ["cam-1", "cam-2"]
    assert world.controller._link.dropped["topic"] == 1
    assert world.controller._link.dropped["device"] == 1
    assert world.controller._link.dropped["malformed"] == 2
    assert device.desired == []


def test_two_agents_with_one_id_are_seen(world: World) -> None:
    world.device("cam-1")

    world.say(Kind.STATUS, "cam-1", Status(device="cam-1", online=True, nonce="other", since=9))

    world.say(Kind.STATUS, "cam-1", Status(device="cam-1", online=True, nonce="boot-1", since=1))
    wait_for(lambda: world.controller.device("cam-1").clash, "the clash")
    world.say(Kind.STATUS, "cam-1", Status(device="cam-1", online=False, nonce="other", since=9))
    wait_for(lambda: not world.controller.device("cam-1").clash, "its end")
    assert world.controller.device("cam-1").online


def test_a_device_that_knows_a_higher_revision_is_not_left_behind(world: World) -> None:
    device = world.device("cam-1")
    world.push(1)
    world.ended(world.roll_out("digits@1").id)

    device.revision = 40
    device.report()

    wait_for(lambda: device.desired[-1].revision == 41, "revision 41")
    assert device.desired[-1].releases == device.desired[0].releases


def test_refusals_say_what_would_work(world: World) -> None:
    manifest = world.push(1)
    world.device("cam-1", labels={"site": "berlin"})
    other = manifest.model_copy(update={"description": "other"})
    missing = sample_manifest(2, b"never sent")

    with pytest.raises(Refusal, match="digits@1 exists with other bytes") as taken:
        world.controller.add_release(other)
    with pytest.raises(Refusal, match=r"digits.onnx \(sha256:.* was not sent"):
        world.controller.add_release(missing)
    with pytest.raises(Refusal, match="no release digits@7; nearest is digits@1"):
        world.roll_out("digits@7")
    with pytest.raises(Refusal, match="no device has a label 'sight'; nearest is site"):
        world.roll_out("digits@1", to="sight=berlin")
    with pytest.raises(Refusal, match="expected sha256: and 64 hex digits"):
        world.controller.open_blob("sha256:12")

    assert (taken.value.status, taken.value.next_step) == (409, "push it as version 2")
    assert world.controller.add_release(manifest)[1] is False
    assert world.controller.next_version("digits") == 2
    assert world.controller.next_version("new") == 1


def test_a_device_joins_with_the_configuration_it_is_given(world: World, tmp_path: Path) -> None:
    text = world.controller.device_config("cam-1")
    (tmp_path / "agent.toml").write_text(text)

    config = load_config(tmp_path / "agent.toml")

    assert config.device == "cam-1"
    assert config.broker.url == world.broker.url
    assert (config.broker.username, config.broker.password) == ("tester", "secret")
    assert config.controller.public_keys == (world.controller.public_key,)
    key = world.directory / "controller" / "controller.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_desired_document_verifies_and_names_its_device(world: World) -> None:
    device = world.device("cam-1")
    world.push(1)

    world.ended(world.roll_out("digits@1").id)

    desired = device.desired[0]
    assert isinstance(desired, Desired)
    assert (desired.device, desired.revision) == ("cam-1", 1)
    assert desired.releases[0].rollout == "r-1"


def test_a_bundle_holds_what_a_device_needs_and_is_sealed(world: World, tmp_path: Path) -> None:
    manifest = world.push(1)

    bundle = world.controller.bundle("digits", 1, "cam-1", True)
    data = b"".join(bundle.pieces)

    assert len(data) == bundle.size_bytes
    file = io.BytesIO(data)
    seal, _ = read_seal(file, Verifier((world.controller.public_key,)), "cam-1")
    unpack(file, seal, tmp_path)
    assert (seal.release.ref, seal.device, seal.install) == (manifest.ref, "cam-1", True)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        digest_hex(digest)
        for digest in (manifest.digest, *(f.digest for f in manifest.all_files()))
    }


def test_files_alone_are_exported_byte_for_byte_alike_and_orders_never(world: World) -> None:
    world.push(1)

    def export(install: bool) -> bytes:
        return b"".join(world.controller.bundle("digits", 1, None, install).pieces)

    assert export(False) == export(False)
    assert export(True) != export(True)
    texts = [event.text for event in world.controller.events(10)]
    assert any(
        text.startswith("exported for any device, to be installed as local-") for text in texts
    )
