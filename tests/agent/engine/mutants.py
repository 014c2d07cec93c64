"""Corrupted model files, and the real trial that they have to get past while a champion serves.

A mutant's manifest names the mutant's own digest: what stands in the way is the trial alone. One
that passes is judged once more in a process of its own, by its golden answers and nothing of ours.

    python -m tests.agent.engine.mutants RUNTIME MODEL GOLDEN    prints what the judge finds
"""

import hashlib
import itertools
import json
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

from agent.config import AgentConfig
from agent.control import ModelSpec
from agent.core.actions import StartEngine
from agent.core.events import EngineExited, EngineFailed, EngineReady, Event
from agent.shell.engines import Engines
from tests.agent.engine.harness import Client
from tests.brokers import free_port
from wire.codec import decode, encode
from wire.manifest import Manifest

SAMPLES = Path(__file__).parents[3] / "samples"
TRIAL_S = 120.0
"""For one trial on a busy machine; the agent itself gives up after START_S."""
START_S = 60
SLACK_BYTES = 256 * 1024 * 1024
"""What a trial may take: a mutant may ask for anything."""
KINDS = ("bit", "bits", "byte", "cut", "noise", "gap")


@dataclass(frozen=True)
class Mutant:
    """A corrupted file and how it came about, for the one who has to make it again."""

    format: str
    what: str
    data: bytes


def mutate(draw: random.Random, format: str, whole: bytes) -> Mutant:
    """Return one corruption of a model file."""
    kind = draw.choice(KINDS)
    data = bytearray(whole)
    at = draw.randrange(len(data))
    what = f"{kind} at {at}"
    match kind:
        case "bit":
            data[at] ^= 1 << draw.randrange(8)
        case "bits":
            places = [draw.randrange(len(data)) for _ in range(draw.randint(2, 64))]
            for place in places:
                data[place] ^= 1 << draw.randrange(8)
            what = f"{len(places)} bits"
        case "byte":
            data[at] = draw.randrange(256)
        case "cut":
            del data[at:]
        case "noise":
            count = min(draw.randint(1, 512), len(data) - at)
            data[at : at + count] = draw.randbytes(count)
            what = f"{count} bytes of noise at {at}"
        case "gap":
            count = draw.randint(1, 64)
            del data[at : at + count]
            what = f"{count} bytes missing at {at}"
    return Mutant(format, what, bytes(data))


def mutants(seed: int, formats: tuple[str, ...] = ("onnx", "tflite")) -> Iterator[Mutant]:
    """Yield corruptions of digits@1 without end, the same for the same seed."""
    draw = random.Random(seed)
    for number in itertools.count():
        format = formats[number % len(formats)]
        yield mutate(draw, format, sample(format))


def sample(format: str) -> bytes:
    """Return the bytes of digits@1."""
    return (SAMPLES / f"digits-1/digits-int8.{format}").read_bytes()


@dataclass
class Tally:
    """What became of all mutants, and of the champion meanwhile."""

    refused: Counter[str] = field(default_factory=Counter)
    passed: int = 0
    wrong: list[str] = field(default_factory=list)
    """Mutants that passed their trial and should not have."""

    @property
    def tried(self) -> int:
        return self.passed + sum(self.refused.values())


class Arena:
    """The agent's own engine room: a champion under load, and trials beside it."""

    def __init__(self, folder: Path, runtimes: tuple[str, ...]) -> None:
        self._folder = folder
        self._runtimes = runtimes
        self._blobs = folder / "blobs"
        self._blobs.mkdir(parents=True)
        port = free_port()
        config = AgentConfig.model_validate(
            {
                "device": "pi-1",
                "data_dir": folder,
                "broker": {"url": "mqtt://127.0.0.1"},
                "controller": {"public_keys": ["A" * 43 + "="]},
                "api": {"tcp": f"127.0.0.1:{port}"},
                "engine": {"runtimes": runtimes, "start_timeout_s": START_S},
            }
        )
        self._events: queue.Queue[Event] = queue.Queue()
        self._engines = Engines(config, folder / "run", self._events.put)
        self._generation = 1
        self._whole = sample_manifest()
        self._stopping = threading.Event()
        self._load = threading.Thread(target=self._ask, args=(port,))
        self.answers: Counter[int] = Counter()
        """HTTP status of the champion's answers -> how many; 0: no answer."""

    def __enter__(self) -> Self:
        whole = Mutant("onnx", "whole", sample("onnx"))
        assert isinstance(self._start(whole, background=False), EngineReady)
        self._engines.serve(1)
        self._champion = self._engines.pids()[1]
        self._load.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._load.ident is not None:
            self._load.join(30)
        self._engines.stop_all(3.0)

    @property
    def champion_lives(self) -> bool:
        """Whether it is still the process that was started first."""
        return self._engines.pids().get(1) == self._champion

    def champion_bytes(self) -> int:
        """Return the resident memory of the champion's process."""
        return int(psutil.Process(self._champion).memory_info().rss)

    def face(self, mutant: Mutant, tally: Tally) -> Event:
        """Put a mutant on trial, and count what becomes of it."""
        end = self._start(mutant, background=True)
        match end:
            case EngineReady():
                tally.passed += 1
                fault = self._judge(mutant)
                if fault:
                    tally.wrong.append(f"{mutant.format}, {mutant.what}: {fault}")
                self._engines.kill(self._generation)
                self._until_gone()
            case EngineFailed(_, _, reason, _):
                tally.refused[reason] += 1
                self._until_gone()
            case EngineExited():
                tally.refused["crashed"] += 1
        return end

    def _start(self, mutant: Mutant, *, background: bool) -> Event:
        if background:
            self._generation += 1
        spec = self._store(mutant)
        self._engines.start(
            StartEngine(
                self._generation,
                (spec,),
                golden=True,
                background=background,
                memory_bytes=SLACK_BYTES if background else 0,
            )
        )
        return self._next()

    def _next(self) -> Event:
        event = self._events.get(timeout=TRIAL_S)
        while getattr(event, "generation", 0) != self._generation:
            event = self._events.get(timeout=TRIAL_S)
        return event

    def _until_gone(self) -> None:
        while not isinstance(self._next(), EngineExited):
            pass

    def _store(self, mutant: Mutant) -> ModelSpec:
        """Write a release whose only variant is the mutant."""
        for old in self._blobs.iterdir():
            if self._generation > 1:
                old.unlink()
        files: dict[str, str] = {}

        def put(data: bytes) -> str:
            hexed = hashlib.sha256(data).hexdigest()
            (self._blobs / hexed).write_bytes(data)
            files[f"sha256:{hexed}"] = str(self._blobs / hexed)
            return f"sha256:{hexed}"

        variant = next(v for v in self._whole.variants if v.format == mutant.format)
        artifact = variant.artifact.model_copy(
            update={"digest": put(mutant.data), "size_bytes": len(mutant.data)}
        )
        manifest = self._whole.model_copy(
            update={"variants": (variant.model_copy(update={"artifact": artifact}),)}
        )
        for name in ("labels.txt", "golden.npz"):
            put((SAMPLES / "digits-1" / name).read_bytes())
        digest = put(encode(manifest))
        return ModelSpec(
            manifest.model, manifest.version, digest, variant.name, files[digest], files
        )

    def _judge(self, mutant: Mutant) -> str:
        """Return what speaks against a mutant that passed; empty when its answers are right."""
        variant = next(v for v in self._whole.variants if v.format == mutant.format)
        file = self._folder / f"judged.{mutant.format}"
        file.write_bytes(mutant.data)
        found = judged(self._runtime_for(mutant.format), file)
        if "error" in found:
            return f"the judge: {found['error']}"
        if found["flips"] > variant.golden_flips or found["worst"] > variant.golden_tolerance:
            return f"worst difference {found['worst']:g}, {found['flips']} changed classes"
        return ""

    def _runtime_for(self, format: str) -> str:
        if format == "onnx":
            return "onnxruntime"
        return next(name for name in self._runtimes if name != "onnxruntime")

    def _ask(self, port: int) -> None:
        """Be the device's app: ask, and note every answer."""
        client = Client(port)
        body = {"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32",
                            "data": [float(n % 17) for n in range(64)]}]}  # fmt: skip
        while not self._stopping.is_set():
            try:
                answer = client.ask("POST", "/v2/models/digits/infer", body)
                self.answers[answer.status] += 1
            except OSError:
                self.answers[0] += 1
            time.sleep(0.01)
        client.close()


def sample_manifest() -> Manifest:
    """Return what digits@1 promises."""
    return decode(Manifest, (SAMPLES / "digits-1/manifest.json").read_bytes())


def judged(runtime: str, file: Path) -> dict[str, Any]:
    """Return the largest difference from the golden answers, and how many classes changed."""
    golden = SAMPLES / "digits-1/golden.npz"
    done = subprocess.run(
        [sys.executable, "-m", "tests.agent.engine.mutants", runtime, str(file), str(golden)],
        capture_output=True,
        text=True,
        timeout=TRIAL_S,
        check=False,
        cwd=SAMPLES.parent,
    )
    if done.returncode:
        return {"error": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answers(runtime: str, model: bytes, images: Any) -> Any:
    """Run a model on images one by one with the bare library."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model, options)
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    import importlib

    library = importlib.import_module(f"{runtime.replace('-', '_')}.interpreter")
    interpreter = library.Interpreter(model_content=model)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    answer = interpreter.get_output_details()[0]["index"]
    rows = []
    for image in images:
        interpreter.set_tensor(given, image[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(answer)[0].copy())
    return np.array(rows)


def difference(runtime: str, model: bytes, golden: Any) -> dict[str, Any]:
    """Return {"worst", "flips"} of a model against golden answers, worst among same classes."""
    wanted = golden["output_0"]
    got = answers(runtime, model, golden["input_0"])
    same = got.argmax(1) == wanted.argmax(1)
    gaps = np.abs(got - wanted).max(axis=1)
    if not np.isfinite(got).all():
        return {"worst": float("inf"), "flips": len(got)}
    return {"worst": float(gaps[same].max(initial=0.0)), "flips": int((~same).sum())}


if __name__ == "__main__":
    name, model_file, golden_file = sys.argv[1:]
    print(json.dumps(difference(name, Path(model_file).read_bytes(), np.load(golden_file))))
