"""The controller's connection to real brokers."""

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.core.views import Refusal
from fleet.shell.link import IN_FLIGHT, Drained, Heard, Link, LinkDown, LinkUp
from tests.brokers import Broker, free_port, start_mosquitto, start_nats
from tests.fleet.core.worlds import report, status
from wire.codec import encode
from wire.topics import Kind, Topic, build
from wire.transfer import FetchRequest

BROKERS = {"mosquitto": start_mosquitto, "nats": start_nats}
FETCH = FetchRequest.of("sha256:" + "a" * 64, "data", [1])


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    with BROKERS[request.param](tmp_path, user="controller", password="secret") as broker:
        yield broker


@pytest.fixture
def events() -> "queue.Queue[Any]":
    return queue.Queue(1000)


@pytest.fixture
def link(broker: Broker, events: "queue.Queue[Any]") -> Iterator[Link]:
    link = Link(broker.url, "controller", "secret", events)
    link.start()
    assert isinstance(events.get(timeout=10), LinkUp)
    time.sleep(0.5)  # its subscriptions are on their way, and QoS 0 waits for nobody
    yield link
    link.stop()


@pytest.fixture
def stranger(broker: Broker) -> Iterator[mqtt.Client]:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.username_pw_set("controller", "secret")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    deadline = time.monotonic() + 10
    while not client.is_connected() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield client
    client.disconnect()
    client.loop_stop()


def next_heard(events: "queue.Queue[Any]") -> Heard:
    while True:
        event = events.get(timeout=10)
        if isinstance(event, Heard):
            return event


def test_messages_of_devices_become_events(
    link: Link, events: "queue.Queue[Any]", stranger: mqtt.Client
) -> None:
    stranger.publish(build(Topic(Kind.STATUS, "cam-1")), encode(status("cam-1")), 1, True)
    first = next_heard(events)
    link.subscribe()
    retained = next_heard(events)

    assert first == Heard(Topic(Kind.STATUS, "cam-1"), status("cam-1"), False)
    assert retained == Heard(Topic(Kind.STATUS, "cam-1"), status("cam-1"), True)


@pytest.mark.parametrize("start", BROKERS.values(), ids=BROKERS)
def test_a_broker_that_asks_nobody_who_they_are_is_entered_without_a_name(
    tmp_path: Path, events: "queue.Queue[Any]", start: Callable[[Path], Broker]
) -> None:
    with start(tmp_path) as broker:
        link = Link(broker.url, "", "", events)

        link.start()

        assert isinstance(events.get(timeout=10), LinkUp)
        link.stop()


def test_what_is_wrong_is_dropped_and_counted_and_the_link_lives_on(
    link: Link, events: "queue.Queue[Any]", stranger: mqtt.Client
) -> None:
    topic = build(Topic(Kind.FETCH, "cam-1"))
    stranger.publish(topic, encode(FETCH), 0, retain=True)
    live = next_heard(events)
    link.subscribe()
    bad = [
        ("farflung/d/zz/cam-1/fetch", encode(FETCH)),
        (topic, b"\xff\x00"),
        (topic, b"[" * 100_000),
        (build(Topic(Kind.REPORTED, "cam-1")), encode(report("cam-2", 1))),
    ]
    for where, body in bad:
        stranger.publish(where, body, 0)
    stranger.publish(topic, encode(FETCH), 0)

    last = next_heard(events)

    assert (live.body, last.body) == (FETCH, FETCH)
    deadline = time.monotonic() + 10
    expected = {"topic": 1, "malformed": 2, "device": 1, "retained": 1}
    while dict(link.dropped) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert dict(link.dropped) == expected


def test_an_error_of_ours_never_ends_the_network_thread(
    link: Link,
    events: "queue.Queue[Any]",
    stranger: mqtt.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = build(Topic(Kind.FETCH, "cam-1"))
    with monkeypatch.context() as patch:
        patch.setattr("fleet.shell.link.decode", lambda *_: 1 / 0)
        # At QoS 0 what comes before the subscription is lost, so it is said until it is heard.
        deadline = time.monotonic() + 10
        while not link.dropped["error"] and time.monotonic() < deadline:
            stranger.publish(topic, encode(FETCH), 0)
            time.sleep(0.2)
        assert link.dropped["error"] >= 1
        assert events.empty()

    stranger.publish(topic, encode(FETCH), 0)

    assert next_heard(events).body == FETCH


def test_it_comes_back_after_the_broker_was_killed(
    link: Link, broker: Broker, events: "queue.Queue[Any]"
) -> None:
    broker.kill()
    down = events.get(timeout=10)
    published = link.publish(Topic(Kind.ACK, "cam-1"), b"{}")
    broker.start()

    seen = down
    while not isinstance(seen, LinkUp):
        seen = events.get(timeout=15)

    assert isinstance(down, LinkDown)
    assert not published
    assert link.connected and link.has_room()


def test_a_full_link_says_when_there_is_room_again(link: Link, events: "queue.Queue[Any]") -> None:
    topic = Topic(Kind.DATA, "sha256:" + "a" * 64)
    filled = False
    for _ in range(20 * IN_FLIGHT):
        link.publish(topic, bytes(60_000))
        if not link.has_room():
            filled = True
            break

    assert filled
    assert isinstance(events.get(timeout=10), Drained)
    assert link.has_room()


def test_a_broker_that_is_not_there_is_named(events: "queue.Queue[Any]") -> None:
    port = free_port()
    link = Link(f"mqtt://127.0.0.1:{port}", None, None, events)
    link.start()

    down = events.get(timeout=10)
    link.stop()

    assert down == LinkDown(f"no broker at 127.0.0.1:{port}")


def test_a_wrong_password_is_named(broker: Broker, events: "queue.Queue[Any]") -> None:
    link = Link(broker.url, "controller", "wrong", events)
    link.start()

    down = events.get(timeout=10)
    link.stop()

    assert isinstance(down, LinkDown)
    assert "ot authorized" in down.reason or "password" in down.reason.lower()


def test_a_url_that_makes_no_sense_is_refused(events: "queue.Queue[Any]") -> None:
    with pytest.raises(Refusal, match="expected mqtt://HOST:PORT, got 'localhost:1883'"):
        Link("localhost:1883", None, None, events)
