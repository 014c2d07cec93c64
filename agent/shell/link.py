"""The line to the fleet: MQTT in, events out. It reconnects by itself and never dies of a message.

Nothing is queued for a broker that is not there: what must arrive is published again by those
who own it, on Connected or until it is acknowledged above MQTT.
"""

import contextlib
import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.config import BrokerConfig
from agent.core.events import (
    AckCame,
    CommandCame,
    Connected,
    DesiredCame,
    Disconnected,
    Event,
    FrameBroken,
    FramesCame,
    Refused,
    ReportHeard,
    SampleAckCame,
    TwinSeen,
)
from wire import topics
from wire.codec import DecodeError, decode, encode
from wire.command import Command
from wire.seal import SealError, Verifier
from wire.telemetry import Ack
from wire.topics import RULES, Kind, Topic
from wire.transfer import ChunkFrame
from wire.twin import Desired, Status

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 60.0
SETTLED_S = 10.0
"""A connection that lived this long was a good one: the next attempt waits little again."""
HANDSHAKE_S = 20.0
"""From the TCP connection until the broker granted our subscriptions."""
RESUBSCRIBE_S = (5.0, 15.0)
"""NATS, just restarted, withholds retained messages from the first to subscribe."""
GOODBYE_S = 1.0
MAX_INFLIGHT = 64
MAX_QUEUED = 256
REFUSALS_PER_MINUTE = 12


class Link:
    """One device's connection to the broker, kept by a thread of its own."""

    def __init__(
        self,
        broker: BrokerConfig,
        *,
        device: str,
        verifier: Verifier,
        nonce: str,
        started_at: int,
        post: Callable[[Event], None],
        resubscribe_s: tuple[float, float] = RESUBSCRIBE_S,
        samples: bool = False,
    ) -> None:
        """Prepare; `start` connects. `post` may block: that holds the broker back."""
        self._broker = broker
        self._device = device
        self._verifier = verifier
        self._nonce = nonce
        self._started_at = started_at
        self._post = post
        self._resubscribe_s = resubscribe_s
        self._samples = samples
        """Whether this device may be asked for samples."""
        self._random = random.Random()  # noqa: S311 - spreads load, hides nothing
        self._lock = threading.Lock()
        self._indexes: dict[str, bool] = {}
        """Index digest -> whether its frames come on our own topic."""
        self._report_mid: int | None = None
        self._acked_mids: deque[int] = deque(maxlen=MAX_INFLIGHT)
        self.rtt_ms: float | None = None
        """From a batch of telemetry to the broker's acknowledgement of it, the latest."""
        self._batch_sent: tuple[int, float] | None = None
        self._heard_last: tuple[int, float] | None = None
        self._client: mqtt.Client | None = None
        self._subscribing = False
        self._granted = False
        self._awaited_mid: int | None = None
        self._resubscribe_at: float | None = None
        self._reason = ""
        self._told = ""
        self._refusals = _Allowance(REFUSALS_PER_MINUTE)
        self._away_until = 0.0
        self._wake = threading.Event()
        self._leaving = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        """Connect, and stay connected until `stop`."""
        self._thread.start()

    def stop(self, publish_offline: bool = True) -> None:
        """Leave for good within a few seconds; the last will is not published by the broker."""
        self._leaving = True
        client = self._client
        if client is not None and self._granted and publish_offline:
            info = client.publish(
                self._text(Kind.STATUS), self._status(online=False), RULES[Kind.STATUS].qos, True
            )
            try:
                info.wait_for_publish(2.0)
            except (ValueError, RuntimeError) as error:
                log.info("could not say goodbye: %s", error)
        self._stopping = True
        self._hang_up()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def publish(self, topic: Topic, body: bytes) -> bool:
        """Send; the topic's kind says how. False: not connected or choked, and `body` dropped."""
        client = self._client
        if client is None or not self._granted:
            return False
        rule = RULES[topic.kind]
        text = topics.build(topic, self._broker.root)
        began = time.monotonic()
        sent = client.publish(text, body, rule.qos, rule.retain)
        if topic.kind is Kind.BATCH:
            self._batch_sent = (sent.mid, began)
            self._clock_rtt()
        if topic.kind is Kind.REPORTED and self._report_mid is None:
            self._report_mid = sent.mid
        return sent.rc == mqtt.MQTT_ERR_SUCCESS

    def publish_online(self) -> bool:
        """Publish our retained status. False: not connected."""
        return self.publish(Topic(Kind.STATUS, self._device), self._status(online=True))

    def listen(self, index: str, own: bool = False) -> None:
        """Receive the frames of this index, also after reconnecting, until `unlisten`.

        With `own`, those that are sent to us alone, and the others only as far as they are on
        their way.
        """
        with self._lock:
            before = self._indexes.get(index)
            self._indexes[index] = own
            if self._client is not None and self._subscribing:
                self._client.subscribe(self._filter(index, own), 0)
                if before not in (None, own):
                    self._client.unsubscribe(self._filter(index, not own))

    def unlisten(self, index: str) -> None:
        """Receive them no more."""
        with self._lock:
            own = self._indexes.pop(index, False)
            if self._client is not None and self._subscribing:
                self._client.unsubscribe(self._filter(index, own))

    def _filter(self, index: str, own: bool) -> str:
        if own:
            return topics.own_filter(self._device, index, self._broker.root)
        return topics.artifact_filter(index, self._broker.root)

    def yield_for(self, seconds: float) -> None:
        """Leave the broker silently and return later: our id belongs to another agent.

        Neither the last will nor an offline status is published: the retained one is theirs.
        """
        self._away_until = time.monotonic() + seconds
        self._hang_up()

    # ---- the thread

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            away = self._away_until - time.monotonic()
            if away > 0:
                self._wake.wait(away)
                self._wake.clear()
                continue
            began = time.monotonic()
            try:
                self._connect_once()
            except OSError as error:
                self._reason = error.strerror or str(error)
            except Exception as error:  # a broker's surprise must not leave the device deaf
                self._reason = repr(error)
            if self._stopping:
                return
            if self._away_until > time.monotonic():
                continue
            if time.monotonic() - began > SETTLED_S:
                failures = 0
            self._tell(
                f"no broker at {self._broker.url}: {self._reason}; trying again", logging.WARNING
            )
            ceiling = min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures, 10))
            failures += 1
            self._wake.wait(self._random.uniform(0.05, ceiling))
            self._wake.clear()

    def _connect_once(self) -> None:
        """Connect, serve the connection until it ends, and leave why in `_reason`."""
        # A client of its own for each connection: paho would send again, unasked and late,
        # what an earlier connection left unacknowledged.
        client = self._new_client()
        self._reason = "the connection was lost"
        self._report_mid = None
        self._acked_mids.clear()
        self._batch_sent = self._heard_last = None
        client.connect(self._broker.host, self._broker.port, self._broker.keepalive_s)
        deadline = time.monotonic() + HANDSHAKE_S
        self._client = client
        try:
            while client.loop(1.0) == mqtt.MQTT_ERR_SUCCESS:
                now = time.monotonic()
                if self._report_mid in self._acked_mids:
                    self._report_mid = None
                    self._post(ReportHeard())
                if self._stopping or self._away_until > now:
                    client.disconnect()
                elif not self._granted:
                    if now > deadline:
                        self._reason = f"no subscription granted in {HANDSHAKE_S:.0f} s"
                        return
                elif self._resubscribe_at is not None and now > self._resubscribe_at:
                    self._resubscribe_at = None
                    self._subscribe(client)
        finally:
            was_granted, self._granted = self._granted, False
            self._subscribing = False
            self._client = None
            _close(client)
            if was_granted:
                self._post(Disconnected())

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            # The nonce keeps two agents with one device id from throwing each other out in
            # turns; they see each other by their statuses instead.
            client_id=f"{self._device}-{self._nonce}",
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.max_queued_messages_set(MAX_QUEUED)
        if self._broker.username is not None:
            client.username_pw_set(self._broker.username, self._broker.password)
        if self._broker.tls:
            ca_file = self._broker.ca_file
            client.tls_set(ca_certs=None if ca_file is None else str(ca_file))
        client.will_set(
            self._text(Kind.STATUS), self._status(online=False), RULES[Kind.STATUS].qos, True
        )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_socket_open = _no_delay
        client.on_socket_close = _hear_out
        # With somebody to tell, other threads leave the writing to ours.
        client.on_socket_register_write = _written_by_the_loop
        return client

    def _subscribe(self, client: mqtt.Client) -> int | None:
        root = self._broker.root
        with self._lock:
            filters = topics.device_filters(self._device, root, samples=self._samples)
            filters += [self._filter(*each) for each in sorted(self._indexes.items())]
            _, mid = client.subscribe([(text, 0) for text in filters])
            self._subscribing = True
        return mid

    def _hang_up(self) -> None:
        self._wake.set()
        client = self._client
        if client is not None:
            client.disconnect()

    def _tell(self, line: str, level: int = logging.INFO) -> None:
        if line != self._told:
            self._told = line
            log.log(level, "%s", line)

    # ---- paho's callbacks, in the thread

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, code: Any, _properties: Any
    ) -> None:
        if code.is_failure:
            self._reason = f"refused: {code}"
            return
        self._awaited_mid = self._subscribe(client)

    def _on_subscribe(
        self, client: mqtt.Client, _data: Any, mid: int, codes: list[Any], _properties: Any
    ) -> None:
        if any(code.is_failure for code in codes):
            self._reason = "it denied us a subscription: check this device's permissions there"
            client.disconnect()
        elif mid == self._awaited_mid and not self._granted:
            self._granted = True
            self._resubscribe_at = time.monotonic() + self._random.uniform(*self._resubscribe_s)
            self._tell(f"connected to {self._broker.url}")
            self._post(Connected())

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, mid: int, _code: Any, _properties: Any
    ) -> None:
        # Not posted from here: paho holds a lock that `publish` needs, and posting may wait.
        self._acked_mids.append(mid)
        self._heard_last = (mid, time.monotonic())
        self._clock_rtt()

    def _clock_rtt(self) -> None:
        """Take the time, from either thread: the answer may come before `publish` returns."""
        sent, heard = self._batch_sent, self._heard_last
        if sent is not None and heard is not None and sent[0] == heard[0]:
            self.rtt_ms = round(max(heard[1] - sent[1], 0.0) * 1000, 1)
            self._batch_sent = None

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = topics.parse(message.topic, self._broker.root)
            if topic is not None:
                event = self._understand(topic, message)
                if event is not None:
                    self._post(event)
        except (DecodeError, SealError) as error:
            self._refuse(message, str(error))
        except Exception as error:  # paho's thread would die of it and leave us deaf
            self._refuse(message, f"unexpected {error!r}")

    def _understand(self, topic: Topic, message: mqtt.MQTTMessage) -> Event | None:
        """Return what a message says, None when it is nothing to us.

        Raises:
            DecodeError: malformed, or meant for another device.
            SealError: not signed by the controller.
        """
        body = bytes(message.payload)
        if topic.kind in (Kind.INDEX, Kind.DATA):
            return self._frame(topic.owner, topic.kind.value, body)
        if topic.owner != self._device or not body:
            return None
        match topic.kind:
            case Kind.DESIRED:
                desired = self._verifier.open(Desired, body)
                self._check_device(desired.device)
                return DesiredCame(desired)
            case Kind.COMMAND if not message.retain:
                return self._command(topic, body)
            case Kind.OWN_INDEX | Kind.OWN_DATA:
                return self._frame(topic.id, topic.kind.removeprefix("own_"), body)
            case Kind.ACK:
                ack = decode(Ack, body)
                self._check_device(ack.device)
                return AckCame(ack.seq)
            case Kind.SAMPLE_ACK if self._samples:
                return SampleAckCame(body)
            case Kind.STATUS:
                return self._own_status(decode(Status, body), retained=bool(message.retain))
        return None

    def _frame(self, index: str, part: str, body: bytes) -> Event | None:
        """Return what came as a frame; whoever fetches counts what is none."""
        with self._lock:
            wanted = index in self._indexes
        if not wanted:
            return None
        try:
            frame = ChunkFrame.decode(body)
        except DecodeError as error:
            return FrameBroken(index, str(error))
        if frame.part != part:
            return FrameBroken(index, f"frame: expected part {part}, got {frame.part}")
        return FramesCame(index, (frame,))

    def _command(self, topic: Topic, body: bytes) -> Event:
        command = self._verifier.open(Command, body)
        self._check_device(command.device)
        if (command.verb, command.id) != (topic.verb, topic.id):
            raise DecodeError(
                f"command: expected {topic.verb} {topic.id} as in its topic, "
                f"got {command.verb} {command.id}"
            )
        return CommandCame(command)

    def _own_status(self, status: Status, *, retained: bool) -> Event | None:
        self._check_device(status.device)
        if status.online:
            # What is retained may be our own from before a power cut, never contradicted. Another
            # agent that lives answers our status with its own.
            twin = status.nonce != self._nonce and not retained
            return TwinSeen(status.nonce, status.since) if twin else None
        if not retained and self._granted and not self._leaving:
            # The last will of a connection that was given up, by us or in our life before.
            self.publish_online()
        return None

    def _check_device(self, device: str) -> None:
        if device != self._device:
            raise DecodeError(f"device: expected {self._device}, got {device}")

    def _refuse(self, message: mqtt.MQTTMessage, why: str) -> None:
        if self._refusals.take(time.monotonic()):
            self._post(Refused(f"{message.topic[:120]}: {why[:300]}"))

    # ---- words

    def _text(self, kind: Kind) -> str:
        return topics.build(Topic(kind, self._device), self._broker.root)

    def _status(self, *, online: bool) -> bytes:
        return encode(
            Status(device=self._device, online=online, nonce=self._nonce, since=self._started_at)
        )


class _Allowance:
    """So many a minute, and no more: a flood of bad messages must not become one of ours."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._left = float(per_minute)
        self._at = 0.0

    def take(self, now: float) -> bool:
        refill = (now - self._at) * self._per_minute / 60
        self._left, self._at = min(float(self._per_minute), self._left + refill), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _no_delay(_client: mqtt.Client, _data: Any, sock: Any) -> None:
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _written_by_the_loop(_client: mqtt.Client, _data: Any, _sock: Any) -> None:
    """Do nothing: `loop` asks paho itself what is left to write."""


def _hear_out(_client: mqtt.Client, _data: Any, sock: Any) -> None:
    """Let the broker read our DISCONNECT; closing while it sends would reset the connection.

    It would then publish our last will.
    """
    deadline = time.monotonic() + GOODBYE_S
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(65536):
                return


def _close(client: mqtt.Client) -> None:
    """Drop the socket without a DISCONNECT, unless one was sent."""
    sock = client.socket()
    if isinstance(sock, socket.socket):
        sock.close()
