"""A whole fleet of real processes: a broker, a controller, agents with their engines, and apps.

    with Fleet(tmp_path, broker=start_nats(tmp_path)) as fleet:
        agent = fleet.agent("cam-1")
        fleet.push(SAMPLES / "digits-1")
        fleet.rollout("digits@1")

What a test asks about the fleet it asks the controller's HTTP API. Everything is ended by process
id when the `with` block is left, and no engine may outlive its agent then.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from click.testing import CliRunner

from fleet.__main__ import fleet
from fleet.core.views import DeviceView, RolloutRequest, RolloutView, ScoreView
from fleet.shell.client import ControllerClient, UnreachableError
from tests.brokers import Broker, free_port
from wire.ids import digest_hex
from wire.twin import Probation

SAMPLES = Path(__file__).parents[2] / "samples"
LIMIT_S = 60.0
STOP_S = 20.0
OFFLINE_S = 25.0
"""Less than a broker waits for a client that says nothing."""
NO_PROBATION = Probation(labelled_pairs=0)

T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = LIMIT_S) -> T:
    """Return the first answer of `look` that counts as true; a controller may be away meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer: T | str | None
        try:
            answer = look()
            if answer:
                return answer
        except UnreachableError as error:
            answer = str(error)
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}; last: {answer!r}"
        time.sleep(0.05)


class Program:
    """A process of ours, started at once, with a log of what it says on stderr."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments], stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


class Agent(Program):
    """An agent process with its own directory; `id` is its device."""

    def __init__(
        self, id: str, home: Path, port: int, config: dict[str, Any], module: str = "agent"
    ) -> None:
        self.id = id
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        self._config = config
        self.configure({})
        super().__init__(home / "log", module, "--config", str(home / "agent.toml"))

    @property
    def data_dir(self) -> Path:
        return Path(self._config["data_dir"])

    def configure(self, changes: dict[str, Any]) -> None:
        """Write agent.toml anew; it counts from the next start on."""
        self._config = _merged(self._config, changes)
        (self.home / "agent.toml").write_text(_toml(self._config))

    def engine(self) -> psutil.Process:
        """Return its engine process; there must be one."""
        [engine] = self.engines()
        return engine

    def wait_until_replaced(self, engine: psutil.Process) -> None:
        """Wait until another engine process is the only one."""

        def replaced() -> bool:
            engines = self.engines()
            return len(engines) == 1 and engines[0].pid != engine.pid

        wait_for("another engine", replaced, 30)

    def engines(self) -> list[psutil.Process]:
        """Return its engine processes, the oldest first."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "--generation" in child.cmdline():
                        found.append(child)
        return sorted(found, key=lambda engine: engine.create_time())

    def partial(self, transfer: str) -> Path:
        """Return where the bytes of a transfer lie while it is under way."""
        return self.data_dir / "partial" / f"{digest_hex(transfer)}.part"

    def wait_until_fetched(self, size_bytes: int) -> None:
        """Wait until so many bytes of a download that is under way are on the disk."""

        def fetched() -> bool:
            parts = (self.data_dir / "partial").glob("*.part")
            with contextlib.suppress(FileNotFoundError):
                return sum(part.stat().st_blocks * 512 for part in parts) >= size_bytes
            return False

        wait_for(f"{size_bytes} bytes on {self.id}", fetched)


class Fleet:
    """A broker and a controller; agents join with `agent`.

    `broker` is one that runs already, or the kind that the controller shall embed.
    """

    def __init__(self, home: Path, broker: Broker | str, *options: str) -> None:
        self.home = home
        self.broker = broker
        self.agents: list[Agent] = []
        self.url = f"http://127.0.0.1:{free_port()}"
        named = broker if isinstance(broker, str) else broker.url
        self.controller = Program(
            home / "controller.log", "fleet", "serve", "--data", str(home / "fleet"),
            "--listen", self.url.removeprefix("http://"), "--broker", named, "--broker-port", "0",
            *options,
        )  # fmt: skip
        self.client = ControllerClient(self.url)
        try:
            self.wait_until_connected()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        engines = [engine for agent in self.agents if agent.running for engine in agent.engines()]
        for agent in self.agents:
            agent.kill()
        if not self.controller.running and isinstance(self.broker, str):
            # A killed one leaves its broker behind, and the next one ends it.
            self.controller.kill()
            self.controller.start()
            self.wait_until_connected()
        self.client.__exit__(kind, error, trace)
        if self.controller.running:
            self.controller.stop()
        if isinstance(self.broker, Broker):
            self.broker.stop()
        if error is not None:
            self._tell_logs()
        wait_until_gone(engines)

    def _tell_logs(self) -> None:
        for program in (self.controller, *self.agents):
            print(f"---- {program.log.parent.name}/{program.log.name}\n{program.said()[-6000:]}")

    def wait_until_connected(self) -> None:
        wait_for("the controller's broker", lambda: self.client.health().broker_connected)

    # ---- devices

    def agent(self, id: str, *, runtime: str = "onnxruntime", **settings: Any) -> Agent:
        """Start an agent with the configuration that the controller writes for it.

        It reports every second; `settings` are further tables and keys of its agent.toml.
        """
        home = self.home / f"{id}-{len(self.agents)}"
        home.mkdir()
        port = free_port()
        changes: dict[str, Any] = {
            "data_dir": str(home / "data"),
            "api": {"tcp": f"127.0.0.1:{port}"},
            "engine": {"runtimes": [runtime]},
            "telemetry": {"window_s": 1, "health_s": 1},
        }
        config = _merged(tomllib.loads(self.client.device_config(id)), changes)
        agent = Agent(id, home, port, _merged(config, settings))
        self.agents.append(agent)
        return agent

    def join(self, *ids: str) -> list[Agent]:
        """Start agents and wait until the controller knows them."""
        agents = [self.agent(id) for id in ids]
        for agent in agents:
            self.wait_until_online(agent)
        return agents

    def device(self, agent: Agent) -> DeviceView:
        return self.client.device(agent.id)

    def wait_until_online(self, agent: Agent, timeout_s: float = LIMIT_S) -> None:
        def online() -> bool:
            known = [d for d in self.client.devices() if d.id == agent.id]
            return bool(known) and known[0].online and bool(known[0].capabilities.runtimes)

        wait_for(f"{agent.id} online", online, timeout_s)

    def wait_until_offline(self, agent: Agent) -> None:
        wait_for(f"{agent.id} offline", lambda: not self.device(agent).online, OFFLINE_S)

    def wait_until_serving(
        self, agent: Agent, release: str, timeout_s: float = LIMIT_S
    ) -> DeviceView:
        """Wait until the device says that this release answers, in a running engine."""
        model, _, version = release.partition("@")

        def serving() -> DeviceView | None:
            device = self.device(agent)
            right = [s for s in device.serving if s.model == model and s.version == int(version)]
            return device if right and right[0].runtime else None

        return wait_for(f"{agent.id} to serve {release}", serving, timeout_s)

    def score(self, agent: Agent, release: str) -> ScoreView:
        """Return what the controller knows of a release on a device; it must know something."""
        scores = {f"{s.model}@{s.version}": s for s in self.device(agent).scores}
        return scores[release]

    def requests(self, agent: Agent) -> int:
        """Return how many requests the controller knows of, over all releases."""
        return sum(score.requests for score in self.device(agent).scores)

    def wait_for_requests(self, agent: Agent, count: int, timeout_s: float = 30.0) -> None:
        """Wait until the controller knows of exactly so many."""
        wait_for(f"{count} requests", lambda: self.requests(agent) == count, timeout_s)

    def health(self, agent: Agent, boot: str | None = None) -> dict[str, Any]:
        """Return the latest health report (of the agent's `boot`), {} before there is one."""
        health = self.device(agent).health or {}
        return health if boot in (None, health.get("boot")) else {}

    # ---- releases and rollouts

    def cli(self, *arguments: str, code: int = 0) -> str:
        """Run `fleet` against this controller; return its stdout, or its stderr if it failed."""
        done = subprocess.run(
            [sys.executable, "-m", "fleet", "--controller", self.url, *arguments],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}: {done.stderr}"
        return done.stderr if code else done.stdout

    def command(self, *arguments: str) -> str:
        """Run `fleet` in this process, without a start of Python; return its stdout."""
        done = CliRunner().invoke(fleet, ["--controller", self.url, *arguments])
        assert done.exit_code == 0, f"{arguments}: {done.exit_code}: {done.output}"
        return done.stdout

    def push(self, path: Path, *options: str) -> str:
        """Push a release through the command line; return NAME@VERSION."""
        pushed = json.loads(self.command("model", "push", str(path), *options, "--json"))
        return f"{pushed['model']}@{pushed['version']}"

    def start_rollout(
        self, release: str, to: str = "all", probation: Probation = NO_PROBATION
    ) -> str:
        request = RolloutRequest(release=release, to=to, probation=probation)
        return self.client.start_rollout(request).id

    def wait_until_over(self, rollout: str, timeout_s: float = LIMIT_S) -> RolloutView:
        def over() -> RolloutView | None:
            view = self.client.rollout(rollout)
            return view if view.status.final else None

        return wait_for(f"the end of {rollout}", over, timeout_s)

    def rollout(self, release: str) -> None:
        """Bring a release to all devices, without probation, and see it completed."""
        view = self.wait_until_over(self.start_rollout(release))
        assert view.status == "completed", view.because


def wait_until_gone(processes: list[psutil.Process], timeout_s: float = 20.0) -> None:
    """Wait until the processes ended; one that does not is killed and is a failure."""
    try:
        wait_for("processes to end", lambda: not [p for p in processes if alive(p)], timeout_s)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that ended and that nobody asked about does not."""
    try:
        return bool(process.is_running() and process.status() != "zombie")
    except psutil.NoSuchProcess:
        return False


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, dict) else value
    return merged


def _toml(values: dict[str, Any]) -> str:
    """Write keys and one level of tables; TOML's strings, numbers and lists are JSON's."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in table.items())]
    return os.linesep.join(lines) + "\n"
