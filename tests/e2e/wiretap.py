"""A client of the broker that belongs to neither side: it listens, and it may lie."""

import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from wire.topics import Kind, Topic, build, parse
from wire.transfer import ChunkFrame

ANSWER_S = 10.0


class Wiretap:
    """Hears what is published under `pattern`, what was retained first."""

    def __init__(self, url: str, pattern: str = "farflung/#") -> None:
        self.retained: dict[Topic, bytes] = {}
        self.latest: dict[Topic, bytes] = {}
        self.heard: Counter[Topic] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        """Transfer -> bytes of its data frames that were published."""
        self._pattern = pattern
        self._listening = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._listening.set()
        self._client.on_message = self._on_message
        address = urlsplit(url)
        assert address.hostname and address.port
        self._client.connect(address.hostname, address.port)
        self._client.loop_start()
        assert self._listening.wait(ANSWER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: Topic, body: bytes, *, retain: bool = False) -> None:
        """Publish, and return when the broker has it."""
        self._client.publish(build(topic), body, 1, retain).wait_for_publish(ANSWER_S)

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(self._pattern, 1)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        topic = parse(message.topic)
        if topic is None:
            return
        body = bytes(message.payload)
        if message.retain:
            self.retained[topic] = body
        self.latest[topic] = body
        self.heard[topic] += 1
        if topic.kind is Kind.DATA:
            self.sent_bytes[topic.owner] += len(ChunkFrame.decode(body).payload)
