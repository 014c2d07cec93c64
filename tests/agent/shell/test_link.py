import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
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
    TwinSeen,
)
from agent.shell.link import FIRST_DELAY_S, HANDSHAKE_S, Link
from tests.brokers import Broker, free_port, start_mosquitto, start_nats
from wire import topics
from wire.codec import decode, encode
from wire.command import Command
from wire.ids import digest_of
from wire.seal import Sealer, Verifier
from wire.telemetry import Ack
from wire.topics import Kind, Topic
from wire.transfer import ChunkFrame
from wire.twin import Desired, Status

SEALER = Sealer(bytes(32))
STRANGER = Sealer(bytes(31) + b"\x01")
DEVICE = "pi-1"
TRANSFER = digest_of(b"a transfer")
LAUNCHERS = {"mosquitto": start_mosquitto, "nats": start_nats}


@pytest.fixture(params=["mosquitto", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    with LAUNCHERS[request.param](tmp_path) as running:
        yield running


class Peer:
    """The controller's side: publishes, and keeps what it hears."""

    def __init__(self, broker: Broker) -> None:
        self._heard: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="peer", protocol=mqtt.MQTTv311
        )
        granted = queue.Queue[int]()
        self._client.on_message = lambda _c, _d, message: self._heard.put(message)
        self._client.on_subscribe = lambda *_: granted.put(1)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._client.subscribe(topics.device_base(DEVICE) + "/#", 1)
        granted.get(timeout=5)

    def publish(self, topic: Topic, body: bytes, *, retain: bool | None = None) -> None:
        self.send(topic, body, retain=retain).wait_for_publish(5)

    def send(
        self, topic: Topic, body: bytes, *, retain: bool | None = None
    ) -> mqtt.MQTTMessageInfo:
        rule = topics.RULES[topic.kind]
        return self._client.publish(
            topics.build(topic), body, rule.qos, rule.retain if retain is None else retain
        )

    def status(self, wanted: Callable[[Status], bool], timeout_s: float = 8.0) -> None:
        """Wait for a status that `wanted` accepts."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._heard.get(timeout=max(0.01, deadline - time.monotonic()))
            topic = topics.parse(message.topic)
            if topic is not None and topic.kind is Kind.STATUS:
                status = decode(Status, bytes(message.payload))
                if wanted(status):
                    return

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def peer_of(broker: Broker) -> Iterator[Peer]:
    peer = Peer(broker)
    try:
        yield peer
    finally:
        peer.close()


@contextmanager
def flood(peer: Peer) -> Iterator[None]:
    """Keep the broker busy with sending to the device."""
    over = threading.Event()

    def publish() -> None:
        while not over.is_set():
            sent = [peer.send(Topic(Kind.ACK, DEVICE), bytes(8000)) for _ in range(200)]
            sent[-1].wait_for_publish(5)

    thread = threading.Thread(target=publish)
    thread.start()
    yield
    over.set()
    thread.join()


class Ear:
    """Events of one link."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def next(self, kind: type[Event], timeout_s: float = 8.0) -> Event:
        """Return the next event of `kind`, passing over others."""
        deadline = time.monotonic() + timeout_s
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, kind):
                return event

    def all_within(self, seconds: float) -> list[Event]:
        time.sleep(seconds)
        return [self.events.get() for _ in range(self.events.qsize())]


def wait_until_said(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until a log line holds these words, and for what a next try would say."""
    deadline = time.monotonic() + 15
    while not any(words in record.getMessage() for record in caplog.records):
        assert time.monotonic() < deadline, caplog.messages
        time.sleep(0.02)
    time.sleep(FIRST_DELAY_S + 0.3)


@contextmanager
def linked(
    url: str,
    *,
    nonce: str = "n1",
    post: Callable[[Event], None] | None = None,
    password: str | None = None,
    ca_file: Path | None = None,
    resubscribe_s: tuple[float, float] = (60.0, 60.0),
) -> Iterator[tuple[Link, Ear]]:
    ear = Ear()
    link = Link(
        BrokerConfig(url=url, ca_file=ca_file, username=password and "user", password=password),
        device=DEVICE,
        verifier=Verifier((SEALER.public,)),
        nonce=nonce,
        started_at=1000,
        post=post or ear.events.put,
        resubscribe_s=resubscribe_s,
    )
    link.start()
    try:
        yield link, ear
    finally:
        link.stop(publish_offline=False)


def test_orders_frames_and_acknowledgements_become_events(broker: Broker) -> None:
    desired = Desired(device=DEVICE, revision=3)
    command = Command(device=DEVICE, id="c-1", verb="ping", expires_at=2_000_000_000)
    frame = ChunkFrame("data", 5, b"bytes")
    with peer_of(broker) as peer, linked(broker.url) as (link, ear):
        ear.next(Connected)
        link.listen(TRANSFER)
        time.sleep(0.3)

        peer.publish(Topic(Kind.DESIRED, DEVICE), SEALER.seal(desired))
        peer.publish(Topic(Kind.COMMAND, DEVICE, "ping", "c-1"), SEALER.seal(command))
        peer.publish(Topic(Kind.ACK, DEVICE), encode(Ack(device=DEVICE, seq=9)))
        peer.publish(Topic(Kind.DATA, TRANSFER), frame.encode())

        came = {type(event): event for event in ear.all_within(0.5)}
        assert came == {
            DesiredCame: DesiredCame(desired),
            CommandCame: CommandCame(command),
            AckCame: AckCame(9),
            FramesCame: FramesCame(TRANSFER, (frame,)),
        }

        link.unlisten(TRANSFER)
        time.sleep(0.3)
        peer.publish(Topic(Kind.DATA, TRANSFER), frame.encode())

        assert ear.all_within(0.5) == []


def test_a_device_that_leaves_a_wave_hears_what_is_sent_to_it_alone(broker: Broker) -> None:
    alone = Topic(Kind.OWN_DATA, DEVICE, id=TRANSFER)
    frames = [ChunkFrame("data", number, b"bytes") for number in range(3)]
    with peer_of(broker) as peer, linked(broker.url) as (link, ear):
        ear.next(Connected)
        link.listen(TRANSFER)
        time.sleep(0.3)
        peer.publish(alone, frames[0].encode())
        peer.publish(Topic(Kind.DATA, TRANSFER), frames[1].encode())
        together = ear.all_within(0.5)

        link.listen(TRANSFER, own=True)
        time.sleep(0.3)
        peer.publish(alone, frames[2].encode())
        peer.publish(Topic(Kind.DATA, TRANSFER), frames[1].encode())

        assert together == [FramesCame(TRANSFER, (frames[1],))]
        assert ear.all_within(0.5) == [FramesCame(TRANSFER, (frames[2],))]


def test_the_way_of_a_batch_to_the_broker_and_back_is_timed(broker: Broker) -> None:
    with peer_of(broker), linked(broker.url) as (link, ear):
        ear.next(Connected)
        before = link.rtt_ms
        began = time.monotonic()
        for _ in range(3):
            link.publish(Topic(Kind.BATCH, DEVICE), bytes(1000))
            time.sleep(0.3)

    assert before is None
    assert link.rtt_ms is not None
    assert 0 < link.rtt_ms < (time.monotonic() - began) * 1000


def test_the_broker_owes_a_report_until_it_acknowledged_it(broker: Broker) -> None:
    with linked(broker.url) as (link, ear):
        ear.next(Connected)

        link.publish(Topic(Kind.FETCH, DEVICE), b"{}")
        without = ear.all_within(0.5)
        link.publish(Topic(Kind.REPORTED, DEVICE), b"{}")

        assert without == []
        assert ear.next(ReportHeard) == ReportHeard()


def test_an_unreachable_broker_costs_one_log_line_and_is_joined_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with start_mosquitto(tmp_path) as broker:
        broker.kill()
        with linked(broker.url) as (link, ear):
            wait_until_said(caplog, "no broker at")

            assert not link.publish(Topic(Kind.REPORTED, DEVICE), b"{}")
            assert [record.getMessage() for record in caplog.records] == [
                f"no broker at {broker.url}: Connection refused; trying again"
            ]

            broker.start()

            assert isinstance(ear.next(Connected, 12), Connected)


def test_a_wrong_password_and_an_unknown_host_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_mosquitto(tmp_path, user="user", password="right") as broker:
        with linked(broker.url, password="right") as (_, ear):
            ear.next(Connected)
        with linked(broker.url, password="wrong"):
            wait_until_said(caplog, "refused")
        with linked("mqtt://nowhere.invalid"):
            wait_until_said(caplog, "nowhere.invalid")

    lines = [record.getMessage() for record in caplog.records]
    assert f"no broker at {broker.url}: refused: Not authorized; trying again" in lines
    assert sum("refused" in line for line in lines) == 1
    assert sum("nowhere.invalid" in line for line in lines) == 1


def test_tls_needs_a_certificate_that_the_ca_file_vouches_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = certificate(tmp_path / "mine"), certificate(tmp_path / "other")
    settings = [f"certfile {mine}", f"keyfile {mine.with_name('key.pem')}"]
    with start_mosquitto(tmp_path, settings=settings) as broker:
        url = f"mqtts://localhost:{broker.port}"
        with linked(url, ca_file=mine) as (_, ear):
            ear.next(Connected)
        with linked(url, ca_file=other) as (_, ear):
            wait_until_said(caplog, "certificate verify failed")
            assert ear.events.empty()


def certificate(directory: Path) -> Path:
    """Make a self-signed certificate for localhost, its key beside it."""
    directory.mkdir()
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
        "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return directory / "cert.pem"


def test_after_a_killed_broker_it_returns_with_all_its_subscriptions(broker: Broker) -> None:
    frame = ChunkFrame("index", 0, bytes(32))
    with linked(broker.url) as (link, ear):
        ear.next(Connected)
        link.listen(TRANSFER)

        broker.kill()
        ear.next(Disconnected)
        assert not link.publish(Topic(Kind.REPORTED, DEVICE), b"{}")
        broker.start()
        ear.next(Connected, 12)
        with peer_of(broker) as peer:
            peer.publish(Topic(Kind.INDEX, TRANSFER), frame.encode())

            assert ear.next(FramesCame) == FramesCame(TRANSFER, (frame,))


def test_it_subscribes_a_second_time_and_hears_retained_state_again(broker: Broker) -> None:
    desired = Desired(device=DEVICE, revision=1)
    with peer_of(broker) as peer:
        peer.publish(Topic(Kind.DESIRED, DEVICE), SEALER.seal(desired))
        with linked(broker.url, resubscribe_s=(0.2, 0.5)) as (_, ear):
            ear.next(Connected)
            heard = [ear.next(DesiredCame) for _ in range(2)]
            more = ear.all_within(0.7)

    assert heard == [DesiredCame(desired)] * 2
    assert not {Connected(), DesiredCame(desired)} & {*more}


def test_a_clean_stop_says_offline_and_a_killed_agent_lets_its_will_speak(broker: Broker) -> None:
    with peer_of(broker) as peer:
        with linked(broker.url) as (link, ear):
            ear.next(Connected)
            assert link.publish_online()
            peer.status(lambda s: s.online and s.nonce == "n1" and s.since == 1000)
            began = time.monotonic()
            link.stop()
            assert time.monotonic() - began < HANDSHAKE_S / 2
            peer.status(lambda s: not s.online and s.nonce == "n1")

        child = subprocess.Popen(
            [sys.executable, "-c", AGENT, broker.url], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child:
            assert child.stdout.readline() == "connected\n"
            peer.status(lambda s: s.online and s.nonce == "child")
            child.kill()

        peer.status(lambda s: not s.online and s.nonce == "child")


AGENT = """
import queue, sys, time
from agent.config import BrokerConfig
from agent.core.events import Connected
from agent.shell.link import Link
from wire.seal import Verifier
events = queue.Queue()
link = Link(BrokerConfig(url=sys.argv[1]), device="pi-1", verifier=Verifier((bytes(32),)),
            nonce="child", started_at=1, post=events.put)
link.start()
assert events.get(timeout=8) == Connected()
link.publish_online()
print("connected", flush=True)
time.sleep(30)
"""


def test_two_agents_with_one_id_see_each_other_and_one_can_yield_silently(
    broker: Broker,
) -> None:
    with (
        peer_of(broker) as peer,
        linked(broker.url, nonce="old") as (old, old_ear),
        linked(broker.url, nonce="new") as (new, new_ear),
    ):
        old_ear.next(Connected)
        new_ear.next(Connected)
        new.publish_online()
        assert old_ear.next(TwinSeen) == TwinSeen("new", 1000)
        old.publish_online()
        assert new_ear.next(TwinSeen) == TwinSeen("old", 1000)

        new.yield_for(1.5)
        new_ear.next(Disconnected)

        assert [event for event in old_ear.all_within(0.3) if event != TwinSeen("new", 1000)] == []
        with pytest.raises(queue.Empty):
            peer.status(lambda s: not s.online, 0.5)
        new_ear.next(Connected)


def test_a_yield_is_silent_even_while_the_broker_is_talking(broker: Broker) -> None:
    with peer_of(broker) as peer, linked(broker.url) as (link, ear):
        for _ in range(4):
            ear.next(Connected)
            with flood(peer):
                time.sleep(0.3)
                link.yield_for(0.5)
                ear.next(Disconnected)

        with pytest.raises(queue.Empty):
            peer.status(lambda s: not s.online, 2.0)


def test_what_an_earlier_life_left_retained_is_no_other_agent(broker: Broker) -> None:
    before = encode(Status(device=DEVICE, online=True, nonce="before", since=500))
    with peer_of(broker) as peer:
        peer.publish(Topic(Kind.STATUS, DEVICE), before)

        with linked(broker.url, resubscribe_s=(0.2, 0.3)) as (_, ear):
            ear.next(Connected)

            assert ear.all_within(1.0) == []


@pytest.mark.parametrize("nonce", ["n1", "before"])
def test_a_late_last_will_of_ours_is_contradicted(broker: Broker, nonce: str) -> None:
    will = encode(Status(device=DEVICE, online=False, nonce=nonce, since=1000))
    with peer_of(broker) as peer, linked(broker.url) as (_, ear):
        ear.next(Connected)

        peer.publish(Topic(Kind.STATUS, DEVICE), will)

        peer.status(lambda s: not s.online)
        peer.status(lambda s: s.online and s.nonce == "n1")


def test_bad_messages_are_refused_with_a_reason_and_never_end_the_link(broker: Broker) -> None:
    other = Desired(device="pi-2", revision=1)
    command = Command(device=DEVICE, id="c-1", verb="ping", expires_at=2_000_000_000)
    desired = Topic(Kind.DESIRED, DEVICE)
    with peer_of(broker) as peer, linked(broker.url) as (link, ear):
        ear.next(Connected)
        link.listen(TRANSFER)
        time.sleep(0.3)

        peer.publish(desired, b"\xff\x00", retain=False)
        peer.publish(desired, STRANGER.seal(Desired(device=DEVICE, revision=1)), retain=False)
        peer.publish(desired, SEALER.seal(other), retain=False)
        peer.publish(desired, b"[" * 100_000, retain=False)
        peer.publish(desired, b" " * 200_000, retain=False)
        peer.publish(Topic(Kind.COMMAND, DEVICE, "ping", "c-2"), SEALER.seal(command))
        peer.publish(Topic(Kind.ACK, DEVICE), b"{}")
        peer.publish(Topic(Kind.DATA, TRANSFER), b"Ff")
        peer.publish(Topic(Kind.DATA, TRANSFER), ChunkFrame("index", 0, b"").encode())
        for _ in range(30):
            peer.publish(Topic(Kind.ACK, DEVICE), b"flood")
        peer.publish(Topic(Kind.ACK, DEVICE), encode(Ack(device=DEVICE, seq=1)))

        events = ear.all_within(1.5)
        broken = [event.text for event in events if isinstance(event, FrameBroken)]
        assert len(broken) == 2
        assert "expected at least" in broken[0]
        assert "expected part data, got index" in broken[1]
        refused = [event.text for event in events if isinstance(event, Refused)]
        assert len(refused) == 12
        for text, expected in zip(
            refused,
            [
                "expected JSON",
                "expected a signature by",
                "device: expected pi-1, got pi-2",
                "expected JSON",
                "expected at most",
                "command: expected ping c-2 as in its topic, got ping c-1",
                "Ack: device",
            ],
            strict=False,
        ):
            assert expected in text
            assert len(text) < 500
        assert events[-1] == AckCame(1)


def test_retained_commands_and_cleared_orders_are_ignored(broker: Broker) -> None:
    command = Command(device=DEVICE, id="c-1", verb="ping", expires_at=2_000_000_000)
    with peer_of(broker) as peer:
        peer.publish(Topic(Kind.COMMAND, DEVICE, "ping", "c-1"), SEALER.seal(command), retain=True)
        with linked(broker.url) as (_, ear):
            ear.next(Connected)
            peer.publish(Topic(Kind.DESIRED, DEVICE), b"")

            assert ear.all_within(1.0) == []


def test_a_failing_consumer_does_not_kill_the_thread(tmp_path: Path) -> None:
    heard: queue.Queue[Event] = queue.Queue()

    def post(event: Event) -> None:
        if event == AckCame(1):
            raise RuntimeError("boom")
        heard.put(event)

    with (
        start_mosquitto(tmp_path) as broker,
        peer_of(broker) as peer,
        linked(broker.url, post=post),
    ):
        assert heard.get(timeout=8) == Connected()

        peer.publish(Topic(Kind.ACK, DEVICE), encode(Ack(device=DEVICE, seq=1)))
        peer.publish(Topic(Kind.ACK, DEVICE), encode(Ack(device=DEVICE, seq=2)))

        refused = heard.get(timeout=5)
        assert isinstance(refused, Refused)
        assert "boom" in refused.text
        assert heard.get(timeout=5) == AckCame(2)


def test_a_stalled_consumer_holds_the_broker_back_and_loses_nothing(tmp_path: Path) -> None:
    narrow: queue.Queue[Event] = queue.Queue(maxsize=2)
    with (
        start_mosquitto(tmp_path) as broker,
        peer_of(broker) as peer,
        linked(broker.url, post=narrow.put),
    ):
        assert narrow.get(timeout=8) == Connected()

        for seq in range(20):
            peer.publish(Topic(Kind.ACK, DEVICE), encode(Ack(device=DEVICE, seq=seq)))
        time.sleep(0.3)

        assert [narrow.get(timeout=5) for _ in range(20)] == [AckCame(seq) for seq in range(20)]


def test_stopping_without_a_broker_is_quick() -> None:
    with linked(f"mqtt://127.0.0.1:{free_port()}") as (link, _):
        time.sleep(0.2)
        began = time.monotonic()

        link.stop()

        assert time.monotonic() - began < HANDSHAKE_S / 2
