"""What an answer takes beside the model itself: the local API against a bare server of frames.

A real agent serves three models: digits in int8, ONNX and TFLite, and a float one for images. One
raw client asks the engine over TCP and a Unix socket, the runtime in this process and other
servers, round after round, each of them in turns with the yardstick: the same runtime behind frames
on a Unix socket. Inputs differ from call to call. The engine's scoreboard counts
every answer, and one in ten gets its label, untimed. A figure is the worst round's ratio of
medians.

All of them run on one processor. Where there are several, the kernel leaves a server on the one it
happens to be on, and a call to another processor takes a hundred microseconds more than one to the
caller's own, whoever answers: ratios would tell who was lucky. Other servers are also measured
where everybody may run anywhere, and have to be slower in both.
"""

import itertools
import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from scripts.benches import _client as raw
from scripts.benches import _models, _peers
from scripts.benches._client import Tensor
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from scripts.benches._yardstick import open_model
from tests.brokers import start_mosquitto
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for

BARS = [
    Bar("small_to_yardstick", at_most=3.0),
    Bar("image_to_yardstick", at_most=1.15),
    Bar("shm_to_yardstick", at_most=1.10),
    Bar("to_best_peer", at_most=1.0),
]
SMALL = ("digits-onnx", "digits-tflite")
IMAGE = "image"
INPUTS = 8
LABEL_EVERY = 10
ALONE, FREE = "", ", any processor"
WARM_TURNS = 5
YARDSTICK, IN_PROCESS = "yardstick", "in process"
Call = Callable[[int], Any]


@dataclass
class Target:
    """Who is asked: a call by the number of the input, timed."""

    call: Call
    every: int = 1
    """Its turn comes only in each so many: for those that are slow."""
    after: Callable[[Any], None] | None = None
    """Gets one answer in `LABEL_EVERY`, untimed."""
    took_us: list[float] = field(default_factory=list)
    rounds_us: list[float] = field(default_factory=list)
    """The median of every round."""
    beside_us: list[float] = field(default_factory=list)
    """That of the yardstick, asked in turns with this one."""

    def ask(self, turn: int) -> None:
        """Ask once, if it is its turn."""
        if turn % self.every:
            return
        took, answer = raw.timed_us(self.call, turn % INPUTS)
        self.took_us.append(took)
        if self.after is not None and len(self.took_us) % LABEL_EVERY == 0:
            self.after(answer)

    def end_round(self) -> None:
        """Note the median since the last round."""
        self.rounds_us.append(median(self.took_us))
        self.took_us.clear()


@dataclass
class Site:
    """A model that everybody serves, and where."""

    name: str
    path: Path
    inputs: list[Tensor]
    tcp: tuple[str, int]
    unix: Path


def measure(quick: bool) -> Result:
    """Measure what the local API adds to a small model and to one for images."""
    result = Result()
    everywhere = os.sched_getaffinity(0)
    alone = {max(everywhere)}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-serve-")))
        files = {
            "digits-onnx": SAMPLES / "digits-1/digits-int8.onnx",
            "digits-tflite": SAMPLES / "digits-1/digits-int8.tflite",
            IMAGE: _models.write_image_model(work / "image.onnx"),
        }
        agent = _serving(stack, work, files)
        peers = [] if quick else _peers.start(stack, work, files)
        servers = [agent.pid, *(peer.pid for peer in peers)]
        stack.callback(_run_on, everywhere, [])
        for name, path in files.items():
            site = Site(name, path, _inputs(path), _tcp(agent.url), work / "api.sock")
            for placement, processors in ((ALONE, alone), (FREE, everywhere)):
                if placement is FREE and not peers:
                    continue
                _run_on(processors, servers)
                with ExitStack() as connections:
                    targets = _targets(connections, work, site, peers)
                    turns = (10 if quick else 40) if name == IMAGE else (120 if quick else 500)
                    _rounds(targets, 5 if quick else 7, turns)
                runs = {who: target.rounds_us for who, target in targets.items()}
                runs |= {_beside(who): target.beside_us for who, target in targets.items()}
                result.runs[name + placement] = runs
                _tell(name + placement, runs, list(targets))
    _sum_up(result, [peer.name for peer in peers])
    return result


def _run_on(processors: set[int], servers: list[int]) -> None:
    """Have this process, and servers with their children, run on these processors alone."""
    os.sched_setaffinity(0, processors)
    for server in servers:
        root = psutil.Process(server)
        for process in (root, *root.children(recursive=True)):
            for thread in process.threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, processors)


def _serving(stack: ExitStack, work: Path, files: dict[str, Path]) -> Agent:
    """Return an agent that serves these models, brought to it as always."""
    fleet = stack.enter_context(Fleet(work, start_mosquitto(work)))
    agent = fleet.agent(
        "cam-1",
        api={"unix": str(work / "api.sock")},
        engine={"runtimes": ["onnxruntime", "ai-edge-litert"]},
        telemetry={"window_s": 60, "health_s": 60},
    )
    fleet.wait_until_online(agent)
    for name, path in files.items():
        release = fleet.push(path, "--name", name, "--task", "classification")
        fleet.start_rollout(release)
        fleet.wait_until_serving(agent, release)
    wait_for("one engine", lambda: len(agent.engines()) == 1)
    return agent


def _inputs(path: Path) -> list[Tensor]:
    draw = np.random.default_rng(1)
    _, shape, _ = open_model(str(path))
    return [draw.random(shape, np.float32) for _ in range(INPUTS)]


def _tcp(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def _targets(
    stack: ExitStack, work: Path, site: Site, peers: list[_peers.Peer]
) -> dict[str, Target]:
    run, _, _ = open_model(str(site.path))
    targets = {
        IN_PROCESS: Target(lambda turn: run(site.inputs[turn])),
        YARDSTICK: Target(stack.enter_context(_yardstick(work, site))),
    }
    as_json = [raw.as_json(site.name, "image", each) for each in site.inputs]
    as_binary = [raw.as_binary(site.name, "image", each) for each in site.inputs]
    seldom = 10 if site.name == IMAGE else 1
    for how, address in (("tcp", site.tcp), ("unix", site.unix)):
        connection = stack.enter_context(closing(raw.Http(address)))
        label = _labeller(connection, site.name)
        targets |= {
            f"{how} json": Target(_caller(connection, as_json), seldom, label),
            f"{how} binary": Target(_caller(connection, as_binary), after=label),
            f"{how} shared memory": Target(
                stack.enter_context(_shared_memory(connection, site, how)), after=label
            ),
        }
    targets["tritonclient"] = Target(stack.enter_context(_tritonclient(site)))
    for peer in peers:
        connection = stack.enter_context(closing(raw.Http(peer.address)))
        binary = peer.speaks_binary
        slow = 1 if binary else seldom
        call = _caller(connection, as_binary if binary else as_json)
        targets[f"{peer.name} {'binary' if binary else 'json'}"] = Target(call, slow)
    return targets


def _caller(connection: raw.Http, requests: list[bytes]) -> Call:
    def call(turn: int) -> bytes:
        answer = connection.call(requests[turn])
        if connection.status != 200:
            raise CannotMeasureError(f"expected 200, got {connection.status}: {answer[:300]!r}")
        return answer

    return call


def _labeller(connection: raw.Http, model: str) -> Callable[[bytes], None]:
    classes = itertools.cycle(range(10))

    def label(answer: bytes) -> None:
        told = {"request_id": raw.answered(answer)["id"], "model": model, "label": next(classes)}
        said = connection.call(raw.post("/v2/feedback", json.dumps(told).encode()))
        if connection.status != 200:
            raise CannotMeasureError(f"a label was refused: {said[:300]!r}")

    return label


@contextmanager
def _yardstick(work: Path, site: Site) -> Iterator[Call]:
    path = work / f"yardstick-{site.name}.sock"
    command = [sys.executable, "-m", "scripts.benches._yardstick", str(site.path), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        requests = [raw.frame(each) for each in site.inputs]
        with closing(raw.Framed(path)) as connection:
            yield lambda turn: connection.call(requests[turn])
    finally:
        process.kill()
        process.communicate()
        path.unlink(missing_ok=True)


@contextmanager
def _shared_memory(connection: raw.Http, site: Site, how: str) -> Iterator[Call]:
    """Give a call that writes the tensor to shared memory and names it to the engine."""
    name, size = f"bench-{how}-{os.getpid()}", site.inputs[0].nbytes
    region = f"/v2/systemsharedmemory/region/{name}"
    path = Path("/dev/shm") / name
    with path.open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as memory:
            told = json.dumps({"key": f"/{name}", "offset": 0, "byte_size": size}).encode()
            said = connection.call(raw.post(f"{region}/register", told))
            if connection.status != 200:
                raise CannotMeasureError(f"shared memory was refused: {said[:300]!r}")
            request = raw.as_region(site.name, "image", site.inputs[0], name)
            contents = [each.tobytes() for each in site.inputs]
            ask = _caller(connection, [request])

            def call(turn: int) -> bytes:
                memory[:] = contents[turn]
                answer: bytes = ask(0)
                return answer

            try:
                yield call
            finally:
                path.unlink()
                connection.call(raw.post(f"{region}/unregister", b""))


@contextmanager
def _tritonclient(site: Site) -> Iterator[Call]:
    shape = list(site.inputs[0].shape)
    wanted = [InferRequestedOutput(_output_name(site), binary_data=True)]
    with InferenceServerClient(f"{site.tcp[0]}:{site.tcp[1]}") as client:

        def call(turn: int) -> None:
            given = InferInput("image", shape, "FP32")
            given.set_data_from_numpy(site.inputs[turn])
            client.infer(site.name, [given], outputs=wanted)

        yield call


def _output_name(site: Site) -> str:
    return "scores" if site.name == IMAGE else "probabilities"


def _rounds(targets: dict[str, Target], rounds: int, turns: int) -> None:
    for turn in range(WARM_TURNS):
        for target in targets.values():
            target.call(turn % INPUTS)
    yardstick = targets.pop(YARDSTICK)
    for _ in range(rounds):
        for target in targets.values():
            # In turns with each alone: both find the processor's caches as the other left them.
            for turn in range(turns):
                if turn % target.every == 0:
                    yardstick.ask(turn)
                    target.ask(turn)
            target.end_round()
            yardstick.end_round()
            target.beside_us.append(yardstick.rounds_us[-1])


def _beside(who: str) -> str:
    return f"{YARDSTICK} beside {who}"


def _tell(model: str, runs: dict[str, list[float]], names: list[str]) -> None:
    note(f"{model}: median of {len(runs[IN_PROCESS])} rounds, worst round over the yardstick")
    for who in names:
        took, yardstick = runs[who], runs[_beside(who)]
        note(f"  {who:22}{median(took):10.1f} us {_worst(took, yardstick):7.2f} x")


def _worst(ours: list[float], theirs: list[float]) -> float:
    return max(mine / other for mine, other in zip(ours, theirs, strict=True))


def _sum_up(result: Result, peers: list[str]) -> None:
    def worst(models: tuple[str, ...], ways: tuple[str, ...], against: str = "") -> float:
        return max(
            _worst(result.runs[model][way], result.runs[model][against or _beside(way)])
            for model in models
            for way in ways
        )

    small = ("tcp json", "tcp binary", "unix json", "unix binary")
    image = ("tcp binary", "unix binary")
    shared = ("tcp shared memory", "unix shared memory")
    result.figures |= {
        "small_to_yardstick": worst(SMALL, small),
        "image_to_yardstick": worst((IMAGE,), image),
        "shm_to_yardstick": worst((IMAGE,), shared),
        "small_to_in_process": worst(SMALL, small, IN_PROCESS),
        "image_to_in_process": worst((IMAGE,), image, IN_PROCESS),
    }
    ahead, over = [], {}
    for name in peers:
        kinds: dict[str, float] = {}
        for model, placement in itertools.product((*SMALL, IMAGE), (ALONE, FREE)):
            rounds = result.runs[model + placement]
            [theirs] = [each for each in rounds if each.startswith(f"{name} ")]
            ahead.append(_worst(rounds[f"tcp {theirs.split()[-1]}"], rounds[theirs]))
            if placement is FREE:
                continue
            kind = "image" if model == IMAGE else "small"
            ratio = _worst(rounds[theirs], rounds[IN_PROCESS])
            kinds[kind] = min(ratio, kinds.get(kind, ratio))
        over[name] = kinds
    result.figures["to_best_peer"] = max(ahead, default=None)
    result.figures["peers"] = over


if __name__ == "__main__":
    sys.exit(main("serve", BARS, measure))
