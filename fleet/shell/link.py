"""The controller's connection to the broker: paho's callbacks become events on a queue.

Reliability lives above MQTT, so sessions are clean. State is subscribed at QoS 1; requests for
chunks and telemetry at QoS 0, since devices repeat them until they are answered.
"""

import logging
import queue
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet.core.views import Refusal
from wire.codec import DecodeError, Document, decode
from wire.command import CommandResult
from wire.packing import unpack
from wire.sample import CaptureReport, Sample
from wire.topics import ROOT, RULES, Kind, Topic, build, controller_filters, parse
from wire.transfer import FetchRequest
from wire.twin import Reported, Status

log = logging.getLogger("fleet.link")

KEEPALIVE_S = 20
IN_FLIGHT = 128
"""Messages handed to the network thread and not yet written to the socket."""

_ENQUEUE_S = 5.0
_LOGGED = 10
"""Dropped messages of one kind that are logged one by one, before every thousandth."""

ROOM_BYTES = 65_536
"""Read at most at once."""

TOGETHER = 32
"""Messages taken before what waits to be sent has its turn."""

_BODIES: dict[Kind, type[Document]] = {
    Kind.REPORTED: Reported,
    Kind.STATUS: Status,
    Kind.FETCH: FetchRequest,
    Kind.RESULT: CommandResult,
    Kind.SAMPLE: Sample,
    Kind.CAPTURE: CaptureReport,
}


@dataclass(frozen=True, slots=True)
class Heard:
    """A well-formed message of a device, on its own topic."""

    topic: Topic
    body: Document
    retained: bool
    payload: bytes = b""
    """Of a batch: as it travelled."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The broker accepted us; the subscriptions are on their way."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection is gone, or was refused; the link tries again by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """There is room to publish again."""


LinkEvent = Heard | LinkUp | LinkDown | Drained


class Buffered:
    """A socket that reads ahead; it is the socket itself in all else."""

    def __init__(self, sock: Any) -> None:
        """Stand before `sock`, from which nothing was read yet."""
        self._sock = sock
        self._ahead = b""
        self._at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes; nothing at the end.

        Raises:
            OSError: as the socket says, BlockingIOError when there is nothing.
        """
        if self._at >= len(self._ahead):
            if size >= ROOM_BYTES:
                return bytes(self._sock.recv(size))
            self._ahead, self._at = self._sock.recv(ROOM_BYTES), 0
        data = self._ahead[self._at : self._at + size]
        self._at += len(data)
        if self._at >= len(self._ahead):
            self._ahead, self._at = b"", 0
        return data

    def pending(self) -> int:
        """Return how many bytes are there of which `select` knows nothing."""
        below = getattr(self._sock, "pending", None)
        return len(self._ahead) - self._at + (below() if below is not None else 0)


class Client(mqtt.Client):
    """A paho client that reads what is there at once, not a message by four reads and a wait.

    Every read lets other threads in, and waits for them before it goes on: that took a busy
    controller as long as many a thing it does with what it read.
    """

    reading = False
    """Whether messages are being taken; `on_read` is called when all are."""

    def __init__(self, on_read: Callable[[], None] = lambda: None, **options: Any) -> None:
        """Prepare as paho does, with `options`."""
        super().__init__(CallbackAPIVersion.VERSION2, **options)
        self._on_read = on_read

    def _create_socket(self) -> Any:
        # Not in paho's documents. A paho without it reads as it always did, and is only slower.
        return Buffered(super()._create_socket())

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Take what was read already, without a wait between messages."""
        self.reading = True
        try:
            for _ in range(TOGETHER):
                code = super().loop_read(max_packets)
                sock = self.socket()
                if code or not isinstance(sock, Buffered) or not sock.pending():
                    break
            return code
        finally:
            self.reading = False
            self._on_read()


class Link:
    """One MQTT 3.1.1 client. `events` gets Heard, LinkUp, LinkDown and Drained."""

    def __init__(
        self,
        url: str,
        username: str | None,
        password: str | None,
        events: "queue.Queue[Any]",
        *,
        root: str = ROOT,
    ) -> None:
        """Prepare; nothing is sent before `start`.

        Raises:
            Refusal: 422, the URL is not mqtt://HOST:PORT or mqtts://HOST:PORT.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise Refusal(422, f"broker: expected mqtt://HOST:PORT, got {url[:80]!r}")
        self._address = (parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883))
        self._events = events
        self._root = root
        self.dropped: Counter[str] = Counter()
        """Messages not followed, by why."""
        self._lock = threading.Lock()
        self._in_flight = 0
        self._clock: int | None = None
        """Of the network thread, once it has spoken."""
        self._full = False
        self._stopping = False
        self._read: list[LinkEvent] = []
        """Of the network thread: what it read and did not hand over yet."""
        self._client = Client(
            self._flush,
            client_id=f"farflung-controller-{random.getrandbits(64):016x}",
            protocol=mqtt.MQTTv311,
            clean_session=True,
        )
        if username:
            # An empty name is a name, and NATS turns it away even where nobody needs one.
            self._client.username_pw_set(username, password)
        if parts.scheme == "mqtts":
            self._client.tls_set(cert_reqs=ssl.CERT_REQUIRED)
        self._client.max_inflight_messages_set(IN_FLIGHT)
        self._client.on_socket_open = _no_delay
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._jitter()

    def start(self) -> None:
        """Connect in the background, and for ever again."""
        self._client.connect_async(*self._address, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Say goodbye and end the network thread."""
        self._stopping = True
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._client.is_connected()

    @property
    def cpu_s(self) -> float:
        """CPU time of the network thread, which reads and writes everything."""
        return time.clock_gettime(self._clock) if self._clock is not None else 0.0

    def has_room(self) -> bool:
        """Return whether to publish more now; after a no to a full link, Drained comes."""
        with self._lock:
            self._full = self._in_flight > IN_FLIGHT // 2
            return self.connected and not self._full

    def publish(self, topic: Topic, body: bytes) -> bool:
        """Send a message as its kind's rule says; False when there is no broker to send it to."""
        if not self.connected:
            return False
        rule = RULES[topic.kind]
        with self._lock:
            self._in_flight += 1
        sent = self._client.publish(
            build(topic, self._root), body, qos=rule.qos, retain=rule.retain
        )
        if sent.rc != mqtt.MQTT_ERR_SUCCESS:
            self._written()
        return sent.rc == mqtt.MQTT_ERR_SUCCESS

    def subscribe(self) -> None:
        """Ask for everything that is ours, and so for the retained state once more."""
        loose = {f"{self._root}/d/+/+/fetch", f"{self._root}/d/+/+/t/+"}
        filters = [(each, 0 if each in loose else 1) for each in controller_filters(self._root)]
        self._client.subscribe(filters)

    def _jitter(self) -> None:
        # paho doubles from the first to the last; fresh bounds keep many clients out of step.
        self._client.reconnect_delay_set(
            min_delay=random.uniform(0.3, 1.0),  # type: ignore[arg-type]  # noqa: S311
            max_delay=random.uniform(4.0, 8.0),  # type: ignore[arg-type]  # noqa: S311
        )

    def _on_connect(
        self,
        client: mqtt.Client,
        userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        if reason.is_failure:
            self._post(LinkDown(f"the broker refused us: {reason}"))
            return
        with self._lock:
            self._in_flight = 0
        self._jitter()
        self.subscribe()
        self._post(LinkUp())

    def _on_disconnect(
        self,
        client: mqtt.Client,
        userdata: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if not self._stopping:
            self._post(LinkDown(f"connection lost: {reason}"))

    def _on_connect_fail(self, client: mqtt.Client, userdata: object) -> None:
        host, port = self._address
        self._post(LinkDown(f"no broker at {host}:{port}"))

    def _on_publish(
        self,
        client: mqtt.Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: Properties,
    ) -> None:
        self._written()

    def _written(self) -> None:
        with self._lock:
            self._in_flight = max(0, self._in_flight - 1)
            drained = self._full and self._in_flight <= IN_FLIGHT // 2
            if drained:
                self._full = False
        if drained:
            with suppress(queue.Full):  # a loop with a full queue looks for room anyway
                self._events.put_nowait(Drained())

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        # An exception here would end paho's thread while it still claims to be connected.
        try:
            self._take(message)
        except Exception:
            self.dropped["error"] += 1
            log.exception("a message on %s could not be handled", message.topic)

    def _take(self, message: mqtt.MQTTMessage) -> None:
        topic = parse(message.topic, self._root)
        if topic is None or (topic.kind not in _BODIES and topic.kind is not Kind.BATCH):
            self._drop("topic", f"{message.topic}: not a topic of ours")
            return
        if message.retain and not RULES[topic.kind].retain:
            self._drop("retained", f"{message.topic}: retained, which it must not be")
            return
        payload = bytes(message.payload)
        packed = topic.kind is Kind.BATCH
        try:
            body = unpack(payload) if packed else decode(_BODIES[topic.kind], payload)
        except DecodeError as error:
            self._drop("malformed", f"{message.topic}: {error}")
            return
        if getattr(body, "device", topic.owner) != topic.owner:
            self._drop("device", f"{message.topic}: speaks for another device")
            return
        self._post(Heard(topic, body, message.retain, payload if packed else b""))

    def _drop(self, reason: str, text: str) -> None:
        self.dropped[reason] += 1
        count = self.dropped[reason]
        if count <= _LOGGED or count % 1000 == 0:
            log.warning("%s; dropped (%s: %d so far)", text, reason, count)

    def _post(self, event: LinkEvent) -> None:
        """Hand over an event; one that was read with others waits until all of those are."""
        if self._client.reading:
            self._read.append(event)
        else:
            self._put(event)

    def _flush(self) -> None:
        # Together: the loop is woken once, and not to run against us for every message.
        read, self._read = self._read, []
        for event in read:
            self._put(event)

    def _put(self, event: LinkEvent) -> None:
        """A loop that is busy slows the broker down, and at last loses it."""
        try:
            self._events.put(event, timeout=_ENQUEUE_S)
        except queue.Full:
            self.dropped["queue"] += 1


def _no_delay(client: mqtt.Client, userdata: object, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
