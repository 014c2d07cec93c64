"""`fleet serve` as a real process: broker, controller and API, from start to end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.shell.client import ControllerClient
from tests.brokers import free_port, start_mosquitto
from tests.fleet.samples import ARTIFACT, sample_manifest
from wire.ids import digest_of

LIMIT_S = 20.0
FREE = ("--listen", "127.0.0.1:0", "--broker-port", "0")


class Served:
    """A controller process; its first line says where the API is."""

    def __init__(self, data: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fleet", "serve", "--data", str(data), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline().rstrip() for _ in range(3)]
        self.url = self.lines[0].split()[-1] if self.lines[0] else ""
        self.broker = self.lines[1].split()[-1] if self.lines[1] else ""

    def client(self) -> ControllerClient:
        return ControllerClient(self.url)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, errors


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(*arguments: str, data: Path = tmp_path / "data", **environment: str) -> Served:
        started.append(Served(data, *arguments, **environment))
        return started[-1]

    yield start
    for served in started:
        served.end()


def refused(*arguments: str, data: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "serve", "--data", str(data), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, [line for line in done.stderr.splitlines() if "INFO" not in line]


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def listening(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["nats", "mosquitto"])
def test_it_serves_and_ends_cleanly_with_its_broker(serve: Serve, kind: str) -> None:
    served = serve("--broker", kind, *FREE)

    with served.client() as client:
        eventually(lambda: client.health().broker_connected)
        config = client.device_config("cam-1")
    code, errors = served.end()

    assert code == 0
    assert served.broker in config
    assert errors.rstrip().endswith("stopping")
    assert "next: fleet device config cam-1 > agent.toml" in errors
    assert not listening(served.broker)


def test_releases_and_ports_outlive_a_kill(serve: Serve, tmp_path: Path) -> None:
    artifact = tmp_path / "digits.onnx"
    artifact.write_bytes(ARTIFACT)
    first = serve(*FREE)
    with first.client() as client:
        client.upload(digest_of(ARTIFACT), artifact, lambda _: None)
        release, new = client.add_release(sample_manifest())
    assert new

    first.end(signal.SIGKILL)
    second = serve(*FREE)

    assert second.broker == first.broker
    with second.client() as client:
        assert client.release("digits", 1).digest == release.digest
        assert client.has_blob(digest_of(ARTIFACT))
        eventually(lambda: client.health().broker_connected)


def test_a_device_logs_in_with_what_its_config_says(serve: Serve) -> None:
    served = serve(*FREE)
    with served.client() as client:
        config = client.device_config("cam-1")
    password = next(line.split('"')[1] for line in config.splitlines() if "password" in line)
    answers: list[bool] = []

    device = mqtt.Client(CallbackAPIVersion.VERSION2)
    device.username_pw_set("device", password)
    device.on_connect = lambda _c, _u, _f, code, _p: answers.append(not code.is_failure)
    device.connect("127.0.0.1", int(served.broker.rpartition(":")[2]))
    device.loop_start()

    eventually(lambda: answers == [True])
    device.disconnect()
    device.loop_stop()


def test_a_broker_of_ones_own_is_used_with_its_password_from_a_file(
    serve: Serve, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    with start_mosquitto(tmp_path, user="fleet", password="open sesame") as broker:
        url = broker.url.replace("//", "//fleet@")
        served = serve(
            "--broker", url, "--broker-password-file", str(secret), "--listen", "127.0.0.1:0"
        )

        with served.client() as client:
            eventually(lambda: client.health().broker_connected)
        assert served.end()[0] == 0


def test_the_service_manager_hears_when_it_is_ready(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LIMIT_S)

        served = serve(*FREE, NOTIFY_SOCKET=str(tmp_path / "notify"))

        assert manager.recv(100) == b"READY=1"
        served.end()
        assert manager.recv(100) == b"STOPPING=1"


def test_a_second_controller_keeps_off_the_data_of_the_first(serve: Serve, tmp_path: Path) -> None:
    served = serve(*FREE)

    code, lines = refused(*FREE, data=tmp_path / "data")

    assert code == 1
    assert lines == [
        f"error: data: {tmp_path / 'data'} is in use by another controller",
        "next: stop it, or fleet serve --data ANOTHER_DIR",
    ]
    with served.client() as client:
        eventually(lambda: client.health().broker_connected)


def test_a_taken_api_port_is_one_line_and_leaves_no_broker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        code, lines = refused(
            "--listen", f"127.0.0.1:{port}", "--broker-port", "0", data=tmp_path / "data"
        )

    assert code == 1
    assert lines[0].startswith(f"error: api: cannot listen on 127.0.0.1:{port}: ")
    assert lines[1].endswith(f"or fleet serve --listen 127.0.0.1:{port + 1}")
    assert not (tmp_path / "data" / "broker" / "pid").exists()


def test_a_taken_broker_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        code, lines = refused("--broker-port", str(port), data=tmp_path / "data")

    assert code == 1
    assert lines[0].startswith(f"error: broker: expected port {port} of 127.0.0.1 to be free")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("--listen", "0.0.0.0:8700"), 1, "expected a loopback address to listen on until access"),
        (("--listen", "8700"), 2, "--listen: expected HOST:PORT such as 127.0.0.1:8700, got"),
        (("--broker", "rabbit"), 2, "--broker: expected nats, mosquitto or mqtt://USER@HOST:PORT"),
        (("--broker", "mqtt://a:b@host"), 2, "--broker: expected no password on the command line"),
        (("--broker", "mqtt://a@host:99999"), 2, "--broker: expected nats, mosquitto or mqtt://"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, error: str
) -> None:
    got, lines = refused("--broker-port", "0", *arguments, data=tmp_path / "data")

    assert got == code
    assert len(lines) == 2
    assert lines[0].startswith("error: ") and error in lines[0]
    assert lines[1].startswith("next: fleet serve")


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    code, lines = refused(*FREE, data=tmp_path / "file" / "data")

    assert code == 1
    assert lines[0].startswith("error: data: expected a directory to write in, got")
    assert lines[1] == "next: fleet serve --data DIR"


def test_a_broker_that_is_away_at_the_start_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    served = serve("--broker", f"mqtt://127.0.0.1:{port}", "--listen", "127.0.0.1:0")

    with served.client() as client:
        assert not client.health().broker_connected
        assert client.devices() == []
    assert served.end()[0] == 0
