"""Batches of a real agent on a real broker: what is counted once, and what is told to be lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.brokers import Broker, free_port, start_mosquitto
from tests.e2e.harness import Agent, wait_for
from tests.e2e.source import DEVICE, PUBLIC_KEY
from wire.codec import encode
from wire.packing import unpack
from wire.telemetry import Ack, Batch, DeviceEvent, Health, Item
from wire.topics import Kind, Topic, build


class Controller:
    """Keeps every batch, and acknowledges those that are complete unless told not to."""

    def __init__(self, broker: Broker) -> None:
        self.batches: list[Batch] = []
        self.acknowledges = True
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def items(self) -> list[Item]:
        return [item for batch in list(self.batches) for item in batch.items()]

    def health(self) -> list[Health]:
        return [item for item in self.items() if isinstance(item, Health)]

    def events(self, kind: str) -> list[DeviceEvent]:
        items = self.items()
        return [i for i in items if isinstance(i, DeviceEvent) and i.kind == kind]

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(build(Topic(Kind.BATCH, DEVICE)), 1)

    def _on_message(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        batch = unpack(bytes(message.payload))
        self.batches.append(batch)
        if self.acknowledges and batch.complete:
            ack = Ack(device=DEVICE, seq=batch.items()[-1].seq)
            client.publish(build(Topic(Kind.ACK, DEVICE)), encode(ack), 0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with start_mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, broker: Broker) -> Iterator[Agent]:
    config = {
        "device": DEVICE,
        "data_dir": str(tmp_path / "data"),
        "broker": {"url": broker.url},
        "controller": {"public_keys": [PUBLIC_KEY]},
        "api": {"tcp": f"127.0.0.1:{(port := free_port())}"},
        "engine": {"runtimes": ["onnxruntime"]},
        "telemetry": {"health_s": 1},
    }
    running = Agent(DEVICE, tmp_path, port, config)
    try:
        yield running
    finally:
        running.kill()
        print(running.said()[-4000:])


def test_an_agent_that_was_killed_tells_of_the_gap_and_goes_on_counting(
    agent: Agent, broker: Broker
) -> None:
    with Controller(broker) as controller:
        wait_for("three reports", lambda: len(controller.health()) >= 3)
        agent.kill()
        last = controller.items()[-1].seq
        agent.start()
        wait_for("the gap", lambda: controller.events("gap"))
        wait_for("another report", lambda: controller.health()[-1].agent_starts == 2)
        assert agent.stop() == 0
        agent.start()
        wait_for("a third start", lambda: controller.health()[-1].agent_starts == 3)

    (gap,) = controller.events("gap")
    assert gap.seq > last
    assert gap.counts["since"] <= gap.counts["until"]
    keys = list(dict.fromkeys((item.boot, item.seq) for item in controller.items()))
    assert [seq for _, seq in keys] == list(range(1, len(keys) + 1)), "in order, and each once"
    repeats = len(controller.items()) - len(keys)
    assert repeats <= 4, "what was acknowledged is not sent again but for the latest batch"
    told = controller.health()[-1]
    assert told.kernel_boot is not None
    assert told.broker_rtt_ms is None or told.broker_rtt_ms > 0
    assert any(report.broker_rtt_ms for report in controller.health())
    assert told.outbox_bytes


def test_a_backlog_comes_in_batches_behind_the_newest_health_and_nothing_leaves_unheard(
    agent: Agent, broker: Broker
) -> None:
    with Controller(broker) as controller:
        controller.acknowledges = False
        wait_for("a first batch", lambda: controller.batches)
        path = agent.data_dir / "outbox"
        assert agent.stop() == 0
        waiting = sum(text.count(b'"kind"') for text in map(Path.read_bytes, path.glob("*.jsonl")))
        controller.batches.clear()
        fill_outbox(agent, 250)
        controller.acknowledges = True
        agent.start()
        wait_for(
            "all of it", lambda: sum(len(b.items()) for b in controller.batches) > 250 + waiting
        )

    ahead, *rest = controller.batches
    assert not ahead.complete
    assert len(ahead.health) == 1
    assert all(batch.complete or len(batch.items()) == 1 for batch in rest)
    sequences = [item.seq for batch in rest if batch.complete for item in batch.items()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert max(len(batch.items()) for batch in rest) <= 100


def fill_outbox(agent: Agent, reports: int) -> None:
    """Let days without a line go by."""
    from agent.shell.outbox import Outbox

    outbox = Outbox(agent.data_dir / "outbox", 4 * 1024 * 1024)
    for _ in range(reports):
        seq = outbox.last_seq() + 1
        outbox.enqueue(
            Health(
                device=DEVICE, boot="of-long-ago", seq=seq, at=seq, uptime_s=1, cpu_percent=1,
                load_1m=1, memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1,
                agent_cpu_percent=1, agent_rss_bytes=1,
            )
        )  # fmt: skip
    outbox.close()
