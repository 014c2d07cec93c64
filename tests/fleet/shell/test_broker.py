"""The embedded brokers, for real: who may say what, and what survives."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.core.access import Role
from fleet.shell.broker import BrokerError, BrokerKind, RunningBroker, start_broker
from wire.topics import Kind, Topic, artifact_filter, build, controller_filters, device_filters

WAIT_S = 8.0
DIGEST = "sha256:" + "ab" * 32
DESIRED = build(Topic(Kind.DESIRED, "cam-1"))
REPORTED = build(Topic(Kind.REPORTED, "cam-1"))
STATUS = build(Topic(Kind.STATUS, "cam-1"))
RESULT = build(Topic(Kind.RESULT, "cam-1", "ping", "c-1"))
COMMAND = build(Topic(Kind.COMMAND, "cam-1", "ping", "c-1"))
DATA = build(Topic(Kind.DATA, DIGEST))


class Client:
    """A connected MQTT client that keeps what it hears."""

    def __init__(self, broker: RunningBroker, role: Role, will: str | None = None) -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        self.granted = 0
        self._mqtt = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._mqtt.username_pw_set(*broker.credentials(role))
        self._mqtt.on_message = lambda _c, _u, m: self.heard.append((m.topic, m.payload, m.retain))
        self._mqtt.on_subscribe = lambda *_: setattr(self, "granted", self.granted + 1)
        if will is not None:
            self._mqtt.will_set(will, b"gone", 1, True)
        self._mqtt.connect("127.0.0.1", port_of(broker), keepalive=30)
        self._mqtt.loop_start()
        eventually(self._mqtt.is_connected)

    def subscribe(self, filters: list[str], qos: int = 0) -> None:
        before = self.granted
        self._mqtt.subscribe([(each, qos) for each in filters])
        eventually(lambda: self.granted > before)

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        info = self._mqtt.publish(topic, payload, qos, retain)
        eventually(info.is_published)

    def attempt(self, topic: str, payload: bytes) -> None:
        """Publish something forbidden: brokers drop it, or the connection with it."""
        self._mqtt.publish(topic, payload, 1, retain=True)
        time.sleep(0.3)

    def bodies(self, topic: str) -> list[bytes]:
        return [payload for where, payload, _ in self.heard if where == topic]

    def vanish(self) -> None:
        """Cut the connection without a word, as a power cut does."""
        sock = self._mqtt.socket()
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        self._mqtt.loop_stop()

    def close(self) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()


def port_of(broker: RunningBroker) -> int:
    return int(broker.url.rpartition(":")[2])


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module", params=["nats", "mosquitto"])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    kind: BrokerKind = request.param
    with start_broker(kind, tmp_path_factory.mktemp(kind)) as running:
        yield running


def test_both_roles_talk_at_qos_1_along_the_topic_table(broker: RunningBroker) -> None:
    controller, device = Client(broker, "controller"), Client(broker, "device")
    controller.subscribe(controller_filters(), qos=1)
    device.subscribe([*device_filters("cam-1"), artifact_filter(DIGEST)])

    for topic in (DESIRED, COMMAND, DATA):
        controller.publish(topic, b"from the controller")
    for topic in (REPORTED, RESULT, build(Topic(Kind.BATCH, "cam-1"))):
        device.publish(topic, b"from the device")

    eventually(lambda: len(device.heard) >= 3 and len(controller.heard) >= 3)
    assert {topic for topic, _, _ in device.heard} == {DESIRED, COMMAND, DATA}
    assert {payload for _, payload, _ in controller.heard} == {b"from the device"}
    controller.close()
    device.close()


def test_retained_documents_wait_for_late_subscribers(broker: RunningBroker) -> None:
    controller = Client(broker, "controller")
    controller.publish(DESIRED, b"kept", retain=True)

    late = Client(broker, "device")
    late.subscribe([DESIRED])

    eventually(lambda: (DESIRED, b"kept", True) in late.heard)
    controller.close()
    late.close()


def test_the_last_will_tells_of_a_device_that_vanished(broker: RunningBroker) -> None:
    controller = Client(broker, "controller")
    controller.subscribe([f"{STATUS.rpartition('/')[0]}/status"], qos=1)
    device = Client(broker, "device", will=STATUS)
    device.publish(STATUS, b"here", retain=True)

    device.vanish()

    eventually(lambda: controller.bodies(STATUS)[-1:] == [b"gone"])
    controller.close()


@pytest.mark.parametrize("topic", [DESIRED, DATA, COMMAND, build(Topic(Kind.ACK, "cam-1"))])
def test_a_device_cannot_speak_for_the_controller(broker: RunningBroker, topic: str) -> None:
    witness, intruder = Client(broker, "device"), Client(broker, "device")
    witness.subscribe([topic])

    intruder.attempt(topic, b"forged")
    Client(broker, "controller").publish(topic, b"genuine")

    eventually(lambda: b"genuine" in witness.bodies(topic))
    assert b"forged" not in witness.bodies(topic)
    witness.close()
    intruder.close()


@pytest.mark.parametrize("role", ["controller", "device"])
def test_nobody_can_purge_the_stored_state(broker: RunningBroker, role: Role) -> None:
    Client(broker, "controller").publish(DESIRED, b"precious", retain=True)

    intruder = Client(broker, role)
    for stream in ("$MQTT_rmsgs", "$MQTT_msgs", "$MQTT_sess"):
        intruder.attempt(f"$JS/API/STREAM/PURGE/{stream}", b"")
        intruder = Client(broker, role)

    late = Client(broker, "device")
    late.subscribe([DESIRED])
    eventually(lambda: b"precious" in late.bodies(DESIRED))
    late.close()
    intruder.close()


def test_a_stranger_is_not_let_in(broker: RunningBroker) -> None:
    answers: list[bool] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    client.on_connect = lambda _c, _u, _f, code, _p: answers.append(code.is_failure)
    client.username_pw_set("device", "guessed")

    client.connect("127.0.0.1", port_of(broker))
    client.loop_start()

    eventually(lambda: bool(answers))
    assert answers[0]
    client.loop_stop()


def test_a_killed_broker_is_started_again_on_its_port(broker: RunningBroker) -> None:
    before = broker.pid

    os.kill(before, signal.SIGKILL)

    eventually(lambda: broker.pid != before and broker.alive() and _connects(port_of(broker)))
    Client(broker, "device").close()


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_port_and_passwords_outlive_a_restart(kind: BrokerKind, tmp_path: Path) -> None:
    with start_broker(kind, tmp_path) as first:
        url, secret = first.url, first.credentials("device")
        pid = first.pid
    with start_broker(kind, tmp_path) as second:
        assert (second.url, second.credentials("device")) == (url, secret)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_passwords_are_in_files_of_ours_and_on_no_command_line(
    kind: BrokerKind, tmp_path: Path
) -> None:
    with start_broker(kind, tmp_path) as broker:
        _, password = broker.credentials("device")
        command = Path(f"/proc/{broker.pid}/cmdline").read_bytes().decode()
        holders = [
            path
            for path in (tmp_path / "broker").rglob("*")
            if path.is_file() and password.encode() in path.read_bytes()
        ]

    assert password not in command
    assert holders
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


def test_a_taken_port_is_named_with_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(BrokerError) as caught:
            start_broker("nats", tmp_path, port)

    assert str(caught.value) == (
        f"broker: expected port {port} of 127.0.0.1 to be free, another program listens there"
    )
    assert f"--broker-port {port + 1}" in caught.value.next_step


def test_a_broker_that_cannot_start_shows_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "nats").write_text("a file where the store belongs")

    with pytest.raises(BrokerError) as caught:
        start_broker("nats", tmp_path)

    assert "it ended. Its last words:" in str(caught.value)
    assert "not a directory" in str(caught.value)


def test_broken_settings_are_not_replaced_by_new_passwords(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    settings = tmp_path / "broker" / "settings.json"
    settings.write_text('{"port": ')

    with pytest.raises(BrokerError, match="expected the port and passwords of this fleet"):
        start_broker("nats", tmp_path)

    assert settings.read_text() == '{"port": '


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_a_broker_left_behind_by_a_killed_controller_gives_way(
    kind: BrokerKind, tmp_path: Path
) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fleet.shell.broker import start_broker\n"
        "broker = start_broker(sys.argv[1], Path(sys.argv[2])); print(broker.url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", program, kind, str(tmp_path)], capture_output=True, timeout=30
    )

    with start_broker(kind, tmp_path) as broker:
        assert broker.url == killed.stdout.decode().strip()
        Client(broker, "device").close()
