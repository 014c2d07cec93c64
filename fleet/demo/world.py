"""One machine as a fleet: a controller with its broker, devices, and an app on each of them."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

import fleet
from fleet.core.errors import FleetError
from fleet.core.views import RolloutView
from fleet.demo.processes import KEEP_LOGS, Child, end, stop
from fleet.shell.client import ControllerClient, UnreachableError

T = TypeVar("T")

CHUNK_BYTES = 2048
"""The models are small: in chunks of the usual 64 KiB there would be nothing to interrupt."""

SLOW_LINE_BYTES_PER_S = 3072
CONTROLLER_S = 30.0
START_S = 60.0
COMMAND_S = 60.0
_POLL_S = 0.1
_TOTAL_PER_SECOND = 200.0
"""Pictures of all apps together; two cores bear more."""

_RUNTIMES = (("onnxruntime",), ("ai-edge-litert", "tflite-runtime"))
_DEFAULT_API = "127.0.0.1:8731"


@dataclass(frozen=True)
class Plan:
    """What the demo was asked for."""

    devices: int = 5
    broker: str = "nats"
    broker_password_file: Path | None = None
    seed: int = 1
    keep: bool = False

    @property
    def own_broker(self) -> bool:
        """Whether the broker is started and ended with the demo."""
        return self.broker in ("nats", "mosquitto")


@dataclass
class Device:
    """A device: an agent of its own, with its own directory and local API."""

    id: str
    runtimes: tuple[str, ...]
    home: Path
    port: int
    bytes_per_s: int
    agent: Child | None = None

    @property
    def api(self) -> str:
        """URL of its local inference API."""
        return f"http://127.0.0.1:{self.port}"

    def config(self, enrolled: str, site: str) -> str:
        """Return its agent.toml: what the controller gave out, and what is this device's own.

        Raises:
            FleetError: the controller gave out something unexpected.
        """
        if enrolled.count(_DEFAULT_API) != 1:
            raise FleetError(
                f"{self.id}: expected {_DEFAULT_API} in the configuration from the controller"
            )
        lines = [
            enrolled.replace(_DEFAULT_API, f"127.0.0.1:{self.port}"),
            "[labels]",
            f'site = "{site}"',
            "[engine]",
            f"runtimes = {json.dumps(self.runtimes)}",
            "[telemetry]",
            "window_s = 1",
            "health_s = 2",
            "[transfer]",
            f"bytes_per_s = {self.bytes_per_s}",
        ]
        return "\n".join(lines) + "\n"


class World:
    """All processes of the demo, in one temporary directory."""

    def __init__(self, plan: Plan, home: Path) -> None:
        """Lay out the devices; nothing runs before `start_controller`."""
        self.plan = plan
        self.home = home
        self.samples = find_samples()
        # On a broker of others' the names must be nobody else's.
        tag = "" if plan.own_broker else f"-{secrets.token_hex(2)}"
        self.site = f"demo{tag}"
        self.devices = [self._device(number, tag) for number in range(1, plan.devices + 1)]
        self._listen = f"127.0.0.1:{_free_port()}"
        self.client = ControllerClient(f"http://{self._listen}")
        self._controller: Child | None = None
        self._apps: list[Child] = []

    def _device(self, number: int, tag: str) -> Device:
        id = f"cam-{number}{tag}"
        home = self.home / id
        home.mkdir()
        # Every other one is a TFLite device: three and two of five.
        runtimes = _RUNTIMES[(number - 1) % 2]
        line = SLOW_LINE_BYTES_PER_S if number == 1 else 0
        return Device(id, runtimes, home, _free_port(), line)

    @property
    def slow(self) -> Device:
        """The device on the slow line."""
        return self.devices[0]

    def device(self, id: str) -> Device:
        """Return one of our devices."""
        return next(device for device in self.devices if device.id == id)

    def start_controller(self) -> None:
        """Start `fleet serve`, its broker with it, and wait for its API.

        Raises:
            FleetError: it did not come up.
        """
        plan = self.plan
        password = plan.broker_password_file
        self._controller = Child(
            "controller",
            "fleet",
            "serve",
            *("--data", str(self.home / "controller")),
            *("--listen", self._listen),
            *("--broker", plan.broker, "--broker-port", "0"),
            *("--chunk-bytes", str(CHUNK_BYTES)),
            *(("--broker-password-file", str(password)) if password else ()),
            log=self.home / "controller.log",
        )
        self.until("a controller connected to its broker", self._connected, CONTROLLER_S)

    def _connected(self) -> bool:
        with suppress(UnreachableError):
            return self.client.health().broker_connected
        return False

    def start_devices(self) -> None:
        """Enrol every device with the controller and start its agent and its app."""
        for device in self.devices:
            config = device.home / "agent.toml"
            config.touch(mode=0o600)
            config.write_text(device.config(self.client.device_config(device.id), self.site))
        for device in self.devices:
            device.agent = Child(
                f"agent of {device.id}",
                "agent",
                *("--config", str(device.home / "agent.toml")),
                log=device.home / "agent.log",
            )
        per_second = min(40.0, _TOTAL_PER_SECOND / len(self.devices))
        for device in self.devices:
            app = Child(
                f"app of {device.id}",
                "fleet.demo.app",
                *("--api", device.api, "--device", device.id, "--seed", str(self.plan.seed)),
                *("--samples", str(self.samples / "heldout.csv.gz")),
                *("--per-second", str(per_second)),
                log=device.home / "app.log",
            )
            self._apps.append(app)

    def fleet(self, *arguments: str) -> str:
        """Run a `fleet` command as anybody would; return its answer.

        Raises:
            FleetError: it failed; the message is its own.
        """
        try:
            done = subprocess.run(
                [sys.executable, "-m", "fleet", *arguments],
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
                env={**os.environ, "FARFLUNG_CONTROLLER": self.client.base_url},
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise FleetError(
                f"fleet {' '.join(arguments)}: no end after {COMMAND_S:.0f} s"
            ) from None
        if done.returncode != 0:
            said = next(iter(done.stderr.strip().splitlines()), "nothing said")
            raise FleetError(f"fleet {' '.join(arguments)}: {said.removeprefix('error: ')}")
        return done.stdout.rstrip()

    def start_rollout(self, release: str, to: str) -> RolloutView:
        """Run `fleet rollout start`."""
        return RolloutView.model_validate_json(
            self.fleet("rollout", "start", release, "--to", to, "--json")
        )

    def until(
        self,
        what: str,
        look: Callable[[], T | None],
        deadline_s: float,
        poll_s: float = _POLL_S,
    ) -> T:
        """Look again and again until there is an answer; watch over all processes meanwhile.

        Raises:
            FleetError: a process ended, or there was no answer in time.
        """
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            answer = look()
            if answer:
                return answer
            self.check()
            time.sleep(poll_s)
        raise FleetError(f"expected within {deadline_s:.0f} s: {what}", KEEP_LOGS)

    def check(self) -> None:
        """Let pass while all processes run.

        Raises:
            FleetError: one of them ended.
        """
        for child in self._children():
            child.check()

    def stop(self) -> None:
        """End everything: the apps, then the agents, then the controller with its broker."""
        agents = [device.agent for device in self.devices if device.agent is not None]
        stop(self._apps)
        stop(agents)
        stop([self._controller] if self._controller is not None else [])
        # What an interrupt caught between its start and its place among ours.
        end(psutil.Process().children(recursive=True))

    def _children(self) -> list[Child]:
        agents = [device.agent for device in self.devices if device.agent is not None]
        return [*([self._controller] if self._controller else []), *agents, *self._apps]


def find_samples() -> Path:
    """Return the directory of the sample models: that of the checkout, or `samples` here.

    Raises:
        FleetError: they are in neither place.
    """
    places = [Path(fleet.__file__).parents[1] / "samples", Path("samples").absolute()]
    for place in places:
        if (place / "heldout.csv.gz").is_file():
            return place
    raise FleetError(
        f"samples: expected heldout.csv.gz and the sample models in {places[0]} or {places[1]}, "
        "found them in neither",
        "run scripts/demo of a checkout, or fleet demo in its directory",
    )


def _free_port() -> int:
    # Below the range of outgoing connections: one of those could take the port of an agent that
    # was just killed.
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise FleetError("expected a free port between 20000 and 32000, found none in 100 attempts")
