"""Batches into a real controller that is killed: what was sent is what it has, once."""

import random
import threading
import time
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.brokers import Broker
from tests.e2e.harness import SAMPLES, Fleet, wait_for
from wire.codec import decode
from wire.manifest import Manifest
from wire.packing import pack
from wire.telemetry import Ack, Batch, ScoreWindow
from wire.topics import Kind, Topic, build

DEVICE = "cam-1"
WINDOWS = 240
TOGETHER = 12
KILLS = 3
AGAIN_S = 1.0


class Device:
    """Sends windows until they are acknowledged, some twice, some too late, some ahead."""

    def __init__(self, broker: Broker, windows: list[ScoreWindow], rng: random.Random) -> None:
        self.acked = 0
        self._windows = windows
        self._rng = rng
        self._heard = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.subscribe(build(Topic(Kind.ACK, DEVICE)), 1)
        self._client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self) -> None:
        """Publish the oldest that waits, among copies of others."""
        acked, rng = self.acked, self._rng
        batches = [self._batch(acked, complete=True)] * rng.choice([1, 1, 2])
        if acked:
            batches.append(self._batch(rng.randrange(acked) // TOGETHER * TOGETHER, complete=True))
        if acked + 2 * TOGETHER <= len(self._windows):
            batches.append(self._batch(acked + TOGETHER, complete=False))
        rng.shuffle(batches)
        for batch in batches:
            self._client.publish(build(Topic(Kind.BATCH, DEVICE)), pack(batch), 1)

    def wait(self, before: int) -> None:
        """Wait until more than `before` is acknowledged, or for so long as a device does."""
        with self._heard:
            self._heard.wait_for(lambda: self.acked > before, AGAIN_S)

    def _batch(self, start: int, *, complete: bool) -> Batch:
        windows = tuple(self._windows[start : start + TOGETHER])
        return Batch(device=DEVICE, windows=windows, complete=complete)

    def _on_message(self, client: mqtt.Client, data: Any, message: mqtt.MQTTMessage) -> None:
        with self._heard:
            self.acked = max(self.acked, decode(Ack, message.payload).seq)
            self._heard.notify()


def windows_of(manifest: Manifest) -> list[ScoreWindow]:
    end = int(time.time())
    return [
        ScoreWindow(
            device=DEVICE, boot="b", seq=seq, model=manifest.model, version=manifest.version,
            manifest=manifest.digest, variant=manifest.variants[0].name, start=end - 60, end=end,
            requests=seq, labelled=seq, correct=seq // 2, predicted={seq % 10: seq},
        )
        for seq in range(1, WINDOWS + 1)
    ]  # fmt: skip


def test_a_controller_that_is_killed_at_any_moment_has_all_that_was_sent_once(
    mosquitto_fleet: Fleet, tmp_path: Path
) -> None:
    fleet, rng = mosquitto_fleet, random.Random(5)
    assert isinstance(fleet.broker, Broker)
    fleet.push(SAMPLES / "digits-1")
    manifest = fleet.client.release("digits", 1).manifest
    assert manifest is not None
    windows = windows_of(manifest)
    kills = rng.sample(range(TOGETHER, WINDOWS, TOGETHER), KILLS)

    with Device(fleet.broker, windows, rng) as device:
        deadline = time.monotonic() + 60
        while (before := device.acked) < WINDOWS:
            device.send()
            if before in kills:
                kills.remove(before)
                time.sleep(rng.uniform(0, 0.7))  # before its commit, in it, or after
                fleet.controller.kill()
                fleet.controller.start()
                fleet.wait_until_connected()
            device.wait(before)
            assert time.monotonic() < deadline, f"{device.acked} of {WINDOWS} acknowledged"
    fleet.controller.kill()
    fleet.controller.start()

    [score] = wait_for("what is known", lambda: fleet.client.device(DEVICE).scores)
    assert not kills
    assert score.requests == sum(window.requests for window in windows)
    assert score.labelled == sum(window.labelled for window in windows)
    assert score.correct == sum(window.correct for window in windows)
    assert fleet.client.device(DEVICE).missing == 0
