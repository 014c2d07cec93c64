"""What a device's telemetry costs on its line: bytes per window, health and MQTT included.

The core, the outbox and the link of an agent, minute after minute of a made-up clock, through a
mosquitto to a controller's part that acknowledges every batch. A window has 6,000 requests on 10
classes, a tenth of them labelled, with confidence, confusion, calibration, estimated accuracy and
8 features in 20 bins, all drawn at random: latency of a log-normal shape with a slow mode, classes
and features that wander. A relay before the broker counts what goes by, in both directions.

The bars are on what the telemetry itself costs: batch, topic, MQTT's header and acknowledgement,
and its pings, which are added by the clock: a pair every 30 s. What the controller's word costs
that its store has it, on another topic, is told beside; TCP's and IP's headers are in none.
"""

import queue
import socket
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.config import BrokerConfig
from agent.core import actions as do
from agent.core import events as ev
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import step
from agent.shell.link import Link
from agent.shell.outbox import Outbox
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from scripts.benches._minutes import BOOT, DAY, DEVICE, Minutes
from tests.brokers import start_mosquitto
from wire import topics
from wire.codec import encode
from wire.packing import unpack
from wire.seal import Verifier
from wire.telemetry import Ack
from wire.topics import Kind, Topic
from wire.twin import Capabilities

BARS = [Bar("bytes_per_window", at_most=900.0), Bar("mb_per_day", at_most=1.3)]
PUBACK_BYTES = 4
PINGS_A_MINUTE = 2 * (2 + 2)
"""A PINGREQ and a PINGRESP of two bytes each, every 30 s."""
ANSWER_S = 10.0


def measure(quick: bool) -> Result:
    """Bytes on the line of windows and health, one of each a minute."""
    minutes = 120 if quick else DAY
    with (
        tempfile.TemporaryDirectory() as home,
        start_mosquitto(Path(home)) as broker,
        closing(_Relay(broker.url)) as relay,
        closing(_Controller(broker.port)) as controller,
        closing(_Device(Path(home) / "outbox", relay, controller)) as device,
    ):
        payload = [device.minute() for _ in range(minutes)]
    sent, heard = device.up / minutes, device.down / minutes - PUBACK_BYTES
    header = sent - mean(payload)
    whole = sent + PUBACK_BYTES + PINGS_A_MINUTE
    note(
        f"{minutes} windows: {mean(payload):.0f} bytes a batch, {header:.1f} of topic and MQTT "
        f"header, {PUBACK_BYTES} of acknowledgement by the broker, {PINGS_A_MINUTE} of pings; "
        f"beside it {heard:.1f} of acknowledgement by the controller"
    )
    return Result(
        figures={
            "bytes_per_window": whole,
            "mb_per_day": whole * DAY / 1e6,
            "payload_bytes": mean(payload),
            "topic_and_header_bytes": header,
            "controller_ack_bytes": heard,
            "mb_per_day_with_controller": (whole + heard) * DAY / 1e6,
            "windows": minutes,
        },
        runs={"payload_bytes": payload},
    )


class _Device:
    """A device without engine and probe: what these would say is drawn."""

    def __init__(self, outbox: Path, relay: "_Relay", controller: "_Controller") -> None:
        self.up = self.down = 0
        self._relay, self._controller = relay, controller
        self._model = Minutes()
        self._now = Instant(0.0, 1_790_000_000.0)
        self._outbox = Outbox(outbox, 4 * 1024 * 1024)
        self._heard: queue.Queue[ev.Event] = queue.Queue()
        self._link = Link(
            BrokerConfig(url=relay.url),
            device=DEVICE,
            verifier=Verifier((bytes(32),)),
            nonce=BOOT,
            started_at=int(self._now.wall),
            post=self._heard.put,
            resubscribe_s=(0.0, 0.0),
        )
        self._state = AgentState(
            Settings(DEVICE, BOOT, "bench", int(self._now.wall), health_s=1e12)
        )
        self._batch = b""
        self._give(ev.Booted(Journal(), Capabilities(), frozenset()))
        self._link.start()
        self._give(self._next(ev.Connected))
        time.sleep(1.5)  # subscribing once more is no telemetry
        relay.settle()

    def minute(self) -> int:
        """Live for a minute; return the bytes of the batch at its end."""
        self._now = Instant(self._now.mono + 60, self._now.wall + 60)
        window, health = self._model.minute(int(self._now.wall))
        self._give(ev.ScoresCame(1, (window,), ()))
        self._give(ev.HealthSampled(health))
        self._batch = b""
        for _ in range(2):  # the outbox lingers
            self._now = Instant(self._now.mono + 1, self._now.wall + 1)
            self._give(ev.Ticked())
        self._controller.expect(self._batch)
        self._give(self._next(ev.AckCame))
        assert self._outbox.waiting == 0
        up, down = self._relay.settle()
        self.up, self.down = self.up + up, self.down + down
        return len(self._batch)

    def close(self) -> None:
        """Leave."""
        self._link.stop()
        self._outbox.close()

    def _next(self, kind: type[ev.Event]) -> ev.Event:
        try:
            while not isinstance(event := self._heard.get(timeout=ANSWER_S), kind):
                pass
        except queue.Empty:
            raise CannotMeasureError(f"expected {kind.__name__} within {ANSWER_S:.0f} s") from None
        return event

    def _give(self, event: ev.Event) -> None:
        self._state, actions = step(self._state, event, self._now)
        for action in actions:
            if isinstance(action, do.Enqueue):
                self._outbox.enqueue(action.item)
            elif isinstance(action, do.Forget):
                self._outbox.forget(action.seq)
            elif isinstance(action, do.SendOutbox):
                outgoing = self._outbox.batch()
                if outgoing is not None:
                    self._batch = outgoing.body
                    self._link.publish(Topic(Kind.BATCH, DEVICE), outgoing.body)


class _Controller:
    """Acknowledges every batch of the device."""

    def __init__(self, port: int) -> None:
        self._batches: queue.Queue[bytes] = queue.Queue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="controller")
        granted = threading.Event()
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: granted.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(topics.build(Topic(Kind.BATCH, DEVICE)), 1)
        if not granted.wait(ANSWER_S):
            raise CannotMeasureError("the broker granted no subscription")

    def expect(self, body: bytes) -> None:
        """See that this batch came.

        Raises:
            CannotMeasureError: another one did, or none.
        """
        try:
            if self._batches.get(timeout=ANSWER_S) != body:
                raise CannotMeasureError("a batch came as another")
        except queue.Empty:
            raise CannotMeasureError(f"no batch came within {ANSWER_S:.0f} s") from None

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        body = bytes(message.payload)
        self._batches.put(body)
        ack = Ack(device=DEVICE, seq=unpack(body).items()[-1].seq)
        client.publish(topics.build(Topic(Kind.ACK, DEVICE)), encode(ack), 0)


class _Relay:
    """A line to the broker that counts the bytes of both directions."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._broker = (address.hostname, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._counts = [0, 0]
        self._lock = threading.Lock()
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def settle(self) -> tuple[int, int]:
        """Return the bytes to the broker and from it since the last call."""
        time.sleep(0.01)  # the broker's own acknowledgement may be the last to come
        with self._lock:
            up, down = self._counts
            self._counts = [0, 0]
        return up, down

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                broker = socket.create_connection(self._broker)
                for way, ends in enumerate(((device, broker), (broker, device))):
                    threading.Thread(target=self._carry, args=(way, *ends), daemon=True).start()

    def _carry(self, way: int, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    self._counts[way] += len(data)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main("telemetry-size", BARS, measure))
