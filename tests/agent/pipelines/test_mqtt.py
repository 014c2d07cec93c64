"""A local topic at both ends, with a real broker that also goes away."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.agent.engine.harness import Listeners, Release, engine, eventually
from tests.agent.engine.models import onnx_classifier
from tests.agent.pipelines.harness import answered, frame, running
from tests.brokers import Broker, start_mosquitto

PASSWORD = "local secret"


class Bystander:
    """Somebody else at the broker: sends frames and keeps what is answered."""

    def __init__(self, broker: Broker) -> None:
        self.heard: list[dict[str, Any]] = []
        self._ready = threading.Event()
        # The broker keeps what comes while it is away.
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="bystander", clean_session=False
        )
        self.client.username_pw_set("app", PASSWORD)
        self.client.on_connect = lambda client, *_: client.subscribe("site/answers", 1)
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_message = lambda _c, _d, m: self.heard.append(json.loads(m.payload))
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self._ready.wait(10)

    def send(self, payload: bytes, topic: str = "cams/1/frame") -> None:
        self.client.publish(topic, payload, 1).wait_for_publish(10)

    def send_until(self, there: Any) -> None:
        """Send until the pipeline has subscribed and heard one."""

        def sent() -> Any:
            self.send(frame(0))
            return there()

        eventually(sent)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "pw").write_text(PASSWORD + "\n")
    with start_mosquitto(tmp_path, user="app", password=PASSWORD) as started:
        yield started


@pytest.fixture
def bystander(broker: Broker) -> Iterator[Bystander]:
    it = Bystander(broker)
    yield it
    it.close()


def config(broker: Broker, more: str = "", password: str = "pw") -> str:
    enter = f'broker = "mqtt://127.0.0.1:{broker.port}", username = "app", password_file = "{password}"'  # fmt: skip # noqa: E501
    return f"""
[[pipeline]]
name = "cams"
model = "digits"
{more}
source = {{ mqtt = "cams/+/frame", qos = 1, {enter} }}
sink = {{ mqtt = "site/answers", {enter} }}
"""


def test_messages_are_answered_on_a_topic(
    tmp_path: Path, api: str, broker: Broker, bystander: Bystander
) -> None:
    with running(api, tmp_path, config(broker)) as it:
        bystander.send_until(lambda: it.counts.get("cams", {}).get("taken"))
        bystander.send(frame(2), "cams/7/frame")
        bystander.send(b"no frame", "cams/8/frame")
        bystander.send(frame(1), "elsewhere")
        eventually(lambda: [r for r in bystander.heard if r["source"] == "cams/8/frame"])

    [right] = [record for record in bystander.heard if record["source"] == "cams/7/frame"]
    [wrong] = [record for record in bystander.heard if record["source"] == "cams/8/frame"]
    assert answered(right) == 2 and right["model_name"] == "digits"
    assert wrong["error"].startswith("input image: expected a multiple of")
    assert it.counts["cams"]["taken"] == len(bystander.heard)
    assert it.counts["cams"]["failed"] == {"unfit": 1}


def test_what_finds_no_room_is_dropped_and_counted(
    tmp_path: Path, listeners: Listeners, broker: Broker, bystander: Bystander
) -> None:
    with running(f"unix:{listeners.path}", tmp_path, config(broker, "queue = 4")) as it:
        bystander.send_until(lambda: it.counts.get("cams", {}).get("taken"))
        for _ in range(100):
            bystander.send(frame(1))
        counts = eventually(
            lambda: it.counts["cams"]["taken"] >= 101 and unchanged(it.counts["cams"], it)
        )
        # One waits at the door of an engine that is not there, four wait behind it.
        assert counts["taken"] == 5 + counts["dropped"]["queue full"]
        assert not bystander.heard
        with engine(listeners) as started:
            started.serve(Release(tmp_path / "release", onnx_classifier()))
            it.wait_for("cams", answered=5, failed={})
            eventually(lambda: len(bystander.heard) == 5)

    assert [answered(record) for record in bystander.heard[1:]] == [1] * 4


def unchanged(counts: dict[str, Any], it: Any) -> dict[str, Any] | None:
    threading.Event().wait(1.2)
    return counts if it.counts["cams"] == counts else None


def test_a_broker_that_was_away_is_found_again(
    tmp_path: Path, api: str, broker: Broker, bystander: Bystander
) -> None:
    with running(api, tmp_path, config(broker)) as it:
        bystander.send_until(lambda: len(bystander.heard))
        broker.stop()
        it.wait_until_said("the connection was lost")
        broker.start()
        before = len(bystander.heard)
        eventually(bystander.client.is_connected)
        bystander.send_until(lambda: len(bystander.heard) > before)
        it.wait_until_said("connected")


def test_no_answer_about_a_file_is_lost_with_the_broker(
    tmp_path: Path, api: str, broker: Broker, bystander: Bystander
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for place in range(150):
        (folder / f"{place:03}.raw").write_bytes(frame(place % 3))
    toml = config(broker, "max_per_s = 100")
    source = toml.index("source ="), toml.index("sink =")
    directory = 'source = { directory = "in", settle_s = 0, done = "delete" }\n'

    with running(api, tmp_path, toml[: source[0]] + directory + toml[source[1] :]) as it:
        for part in (30, 80):
            eventually(lambda part=part: it.counts.get("cams", {}).get("answered", 0) >= part)
            broker.restart()
        it.wait_for("cams", taken=150, answered=150, failed={}, retries=0)
        heard = eventually(
            lambda: (
                {r["source"]: r for r in bystander.heard}
                if len({r["source"] for r in bystander.heard}) == 150
                else None
            )
        )

    assert all(answered(record) == int(name[:3]) % 3 for name, record in heard.items())
    assert not list(folder.iterdir())


def test_a_wrong_password_is_told(tmp_path: Path, api: str, broker: Broker) -> None:
    (tmp_path / "wrong").write_text("guess")

    with running(api, tmp_path, config(broker, password="wrong")) as it:
        it.wait_until_said(f"broker 127.0.0.1:{broker.port}: refused us: Not authorized")
    assert "guess" not in "".join(it.said)
