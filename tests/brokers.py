"""Real brokers for tests: mosquitto from Debian and the NATS server from its wheel.

    with start_mosquitto(tmp_path) as broker:
        ... broker.url ... broker.kill() ... broker.restart()

Both listen on 127.0.0.1 on a free port that they keep over restarts, and keep their store in
the given directory. With `user` and `password` they refuse everybody else.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 15.0


class Broker:
    """A broker process: started at once, ended by `stop` or at the end of a with block."""

    def __init__(self, name: str, command: list[str], port: int, log: Path) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.kill()
        raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End the process as a power cut would."""
        self._end(kill=True)

    def stop(self) -> None:
        """End the process cleanly."""
        self._end(kill=False)

    def restart(self) -> None:
        """End the process cleanly, if it runs, and start it again on the same port and store."""
        self.stop()
        self.start()

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


TUNED = ("set_tcp_nodelay true", "max_queued_messages 0", "max_queued_bytes 67108864")
"""What docs/brokers.md tells to set."""


def start_mosquitto(
    directory: Path,
    *,
    user: str | None = None,
    password: str | None = None,
    settings: Sequence[str] = TUNED,
) -> Broker:
    """Start mosquitto with its store in `directory`; `settings` are further lines for its file."""
    port = free_port()
    home = directory / "mosquitto"
    home.mkdir(parents=True, exist_ok=True)
    lines = [
        f"listener {port} 127.0.0.1",
        "user root",  # it would otherwise leave root and lose sight of its own files
        "persistence true",
        f"persistence_location {home}/",
        *settings,
    ]
    if user is None or password is None:
        lines.append("allow_anonymous true")
    else:
        passwords = home / "passwords"
        passwords.write_text(f"{user}:{password}\n")
        subprocess.run([_find("mosquitto_passwd"), "-U", passwords], check=True)
        lines += ["allow_anonymous false", f"password_file {passwords}"]
    config = home / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")
    command = [_find("mosquitto"), "-c", str(config)]
    return Broker("mosquitto", command, port, home / "log")


def start_nats(
    directory: Path,
    *,
    user: str | None = None,
    password: str | None = None,
    limits: Sequence[str] = ("max_payload: 2MB",),
) -> Broker:
    """Start the NATS server with MQTT and its store in `directory`."""
    port = free_port()
    home = directory / "nats"
    home.mkdir(parents=True, exist_ok=True)
    lines = [
        "server_name: test",
        f'listen: "127.0.0.1:{free_port()}"',
        f'mqtt {{ host: "127.0.0.1", port: {port} }}',
        f'jetstream {{ store_dir: "{home}/store", limits {{ default_max_consumers: -1 }} }}',
        *limits,
    ]
    if user is not None and password is not None:
        lines.append(f'authorization {{ user: "{user}", password: "{password}" }}')
    config = home / "nats.conf"
    config.write_text("\n".join(lines) + "\n")
    command = [_find("nats-server"), "-c", str(config)]
    return Broker("nats", command, port, home / "log")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _find(program: str) -> str:
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program, path="/usr/sbin:/usr/bin")
    assert found, f"{program} is not installed; scripts/test installs it"
    return found
