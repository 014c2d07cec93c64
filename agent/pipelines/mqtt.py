"""MQTT topics of this device or its site: frames come from one, answers go to another."""

import contextlib
import hashlib
import logging
import secrets
import threading
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.pipelines.buffer import LOOK_S, Buffer, Frame, Stopping
from agent.pipelines.plan import MqttEnd

log = logging.getLogger("pipelines")

FIRST_DELAY_S = 1
LAST_DELAY_S = 30
KEEPALIVE_S = 30
ACK_LOOK_S = 0.2


class _Line:
    """A connection that paho's own thread keeps up."""

    def __init__(self, pipeline: str, end: MqttEnd) -> None:
        self._pipeline = pipeline
        self._end = end
        self._told = ""
        self.connected = threading.Event()
        broker = end.broker
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"farflung-{pipeline[:24]}-{secrets.token_hex(4)}",
            protocol=mqtt.MQTTv311,
        )
        self.client.reconnect_delay_set(FIRST_DELAY_S, LAST_DELAY_S)
        self.client.max_queued_messages_set(1)
        if broker.username is not None:
            self.client.username_pw_set(broker.username, broker.password)
        if broker.tls:
            self.client.tls_set(ca_certs=broker.ca_file)
        self.client.on_connect = self._on_connect
        self.client.on_connect_fail = self._on_connect_fail
        self.client.on_disconnect = self._on_disconnect

    def start(self) -> None:
        self.client.connect_async(self._end.broker.host, self._end.broker.port, KEEPALIVE_S)
        self.client.loop_start()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, client: mqtt.Client, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        if code.is_failure:
            self._tell(f"refused us: {code}", logging.WARNING)
            return
        self.connected.set()
        self._tell("connected", logging.INFO)
        self.greet(client)

    def greet(self, client: mqtt.Client) -> None:
        """Do what each new connection begins with."""

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        self._tell("no broker there; trying again", logging.WARNING)

    def _on_disconnect(self, _c: mqtt.Client, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        self.connected.clear()
        if code.is_failure:
            self._tell(f"the connection was lost: {code}; trying again", logging.WARNING)

    def _tell(self, text: str, level: int) -> None:
        if text != self._told:
            broker = self._end.broker
            where = f"{broker.host}:{broker.port}"
            log.log(level, "pipeline %s: broker %s: %s", self._pipeline, where, text)
        self._told = text


class MqttSource(_Line):
    """Each message of a topic is a frame. MQTT cannot wait: what finds no room is dropped."""

    def __init__(self, pipeline: str, end: MqttEnd, buffer: Buffer) -> None:
        super().__init__(pipeline, end)
        self._buffer = buffer
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_subscribe
        self.start()

    def next(self) -> Frame:
        """Wait for a message.

        Raises:
            Stopping: there will be none.
        """
        return self._buffer.get()

    def settle(self, frame: Frame, *, good: bool) -> None:
        """Do nothing: what came is taken."""

    def close(self) -> None:
        """Leave the broker."""
        self._buffer.close()
        super().close()

    def greet(self, client: mqtt.Client) -> None:
        """Subscribe."""
        client.subscribe(self._end.mqtt, self._end.qos)

    def _on_subscribe(self, _c: mqtt.Client, _d: Any, _m: int, codes: list[Any], _p: Any) -> None:
        if any(code.is_failure for code in codes):
            self._tell(f"it denied us {self._end.mqtt}; check our permissions there", logging.ERROR)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        # A topic is a microphone of its own; its name may be longer than a stream's.
        stream = hashlib.blake2b(message.topic.encode(), digest_size=8).hexdigest()
        self._buffer.put(bytes(message.payload), message.topic, stream)


class MqttSink(_Line):
    """Answers on a topic, one after the other; with QoS 1 each until the broker has it."""

    def __init__(self, pipeline: str, end: MqttEnd, stop: threading.Event) -> None:
        super().__init__(pipeline, end)
        self._stop = stop
        self.start()

    def put(self, line: bytes) -> None:
        """Publish, waiting for the broker to be there and to take it.

        Raises:
            Stopping: this process ends first.
        """
        text = line.rstrip(b"\n")
        while not self._publish(text):
            self._stop.wait(ACK_LOOK_S)

    def _publish(self, text: bytes) -> bool:
        """Publish once; False: the connection went, and the message perhaps with it."""
        while not self.connected.wait(LOOK_S):
            self._look()
        sent = self.client.publish(self._end.mqtt, text, self._end.qos)
        # What paho holds at QoS 1 it sends again itself; what it does not hold, it says so.
        with contextlib.suppress(ValueError, RuntimeError):
            while not sent.is_published():
                self._look()
                sent.wait_for_publish(ACK_LOOK_S)
            return True
        return False

    def _look(self) -> None:
        if self._stop.is_set():
            raise Stopping
