"""Starts real engine processes and speaks with them as the daemon does."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent import control
from agent.control import Drain, Failed, Load, ModelSpec, Note, Ready, Report, Scores, Serve
from tests.agent.engine.models import CLASSES, FEATURES, GOOD
from wire.codec import encode
from wire.manifest import Baseline, Budget, File, Manifest, Quantization, Task, TensorSpec, Variant

ANSWER_S = 20.0
LABELS = ("zero", "one", "two")

Array = np.ndarray[Any, Any]


@dataclass
class Release:
    """A release on disk, from the bytes of its model file."""

    folder: Path
    data: bytes
    format: str = "onnx"
    model: str = "digits"
    version: int = 1
    batch: int = -1
    variant_batch: int = -1
    datatype: str = "FP32"
    quantization: Quantization | None = None
    task: Task = field(
        default_factory=lambda: Task(kind="classification", scores="scores", scores_are="logits")
    )
    golden: tuple[Array, Array] | None = None
    tolerance: float = 1e-5
    flips: int = 0
    names: tuple[str, str] = ("x", "y")
    input: str = "image"
    label_names: tuple[str, ...] = LABELS
    more_outputs: tuple[TensorSpec, ...] = ()
    """Beside the scores, called alike in manifest and model file."""
    budget: Budget | None = None
    golden_labels: Array | None = None
    baseline: Baseline | None = None
    calibration: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, str] = {}
        artifact = self._store("model", self.data)
        labels = self._store("labels.txt", "\n".join(self.label_names).encode())
        golden = None
        if self.golden is not None:
            buffer = io.BytesIO()
            more = {} if self.golden_labels is None else {"label": self.golden_labels}
            np.savez(buffer, input_0=self.golden[0], output_0=self.golden[1], **more)
            golden = self._store("golden.npz", buffer.getvalue())
        self.manifest = Manifest(
            model=self.model,
            version=self.version,
            task=self.task,
            inputs=(self._tensor(self.input, FEATURES, self.batch),),
            outputs=(
                self._tensor("scores", CLASSES, self.batch, self.quantization),
                *self.more_outputs,
            ),
            variants=(
                Variant(
                    name="only",
                    format=self.format,
                    artifact=artifact,
                    inputs=(self._tensor(self.names[0], FEATURES, self.variant_batch),),
                    outputs=(
                        self._tensor(self.names[1], CLASSES, self.variant_batch),
                        *self.more_outputs,
                    ),
                    golden_tolerance=self.tolerance,
                    golden_flips=self.flips,
                ),
            ),
            labels=labels,
            golden=golden,
            budget=self.budget,
            baseline=self.baseline,
            calibration=self.calibration,
        )
        manifest = self._store("manifest.json", encode(self.manifest))
        self.spec = ModelSpec(
            self.model,
            self.version,
            manifest.digest,
            "only",
            self._files[manifest.digest],
            self._files,
        )

    def _tensor(
        self, name: str, size: int, batch: int, quantization: Quantization | None = None
    ) -> TensorSpec:
        return TensorSpec(
            name=name,
            datatype=self.datatype,
            shape=(batch, size),
            quantization=quantization,
        )

    def _store(self, name: str, data: bytes) -> File:
        hexed = hashlib.sha256(data).hexdigest()
        path = self.folder / hexed
        path.write_bytes(data)
        self._files[f"sha256:{hexed}"] = str(path)
        return File(name=name, digest=f"sha256:{hexed}", size_bytes=len(data))


def good_golden(datatype: Any = np.float32) -> tuple[Array, Array]:
    """Golden samples of the good classifier: every unit vector, scaled."""
    inputs = np.concatenate([np.eye(FEATURES)[:CLASSES] * scale for scale in (1, 2)])
    return inputs.astype(datatype), (inputs @ GOOD).astype(datatype)


class Listeners:
    """Listening sockets as the daemon keeps them across generations."""

    def __init__(self, folder: Path) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.tcp.getsockname()[1]
        self.path = str(folder / "api.sock")
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(self.path)
        self.unix.listen(128)

    def close(self) -> None:
        self.tcp.close()
        self.unix.close()


class Engine:
    """One engine process and our end of its control socket."""

    def __init__(
        self,
        listeners: Listeners | None = None,
        runtimes: str | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        self.socket, theirs = socket.socketpair()
        self.blame = os.memfd_create("blame")
        fds = [theirs.fileno(), self.blame]
        args = ["--control", str(theirs.fileno()), "--generation", "1", "--blame", str(self.blame)]
        if listeners is not None:
            fds += [listeners.tcp.fileno(), listeners.unix.fileno()]
            args += ["--tcp", str(listeners.tcp.fileno()), "--unix", str(listeners.unix.fileno())]
        environment = {**os.environ, **(environ or {})}
        if runtimes is not None:
            environment["FARFLUNG_RUNTIMES"] = runtimes
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent.engine", *args],
            pass_fds=fds,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        theirs.close()
        self.socket.settimeout(ANSWER_S)
        self._lines = self.socket.makefile("rb")
        self.notes: list[str] = []

    def tell(self, message: control.ToEngine) -> None:
        self.socket.sendall(control.write(message))

    def hear(self) -> control.FromEngine:
        """Return the next message that is not a note."""
        while True:
            line = self._lines.readline()
            if not line:
                raise EOFError(f"the engine ended with {self.process.wait(ANSWER_S)}")
            message = control.read_from_engine(line)
            if not isinstance(message, Note):
                return message
            self.notes.append(message.text)

    def load(self, *releases: Release, **options: Any) -> Ready | Failed:
        self.tell(Load([release.spec for release in releases], **options))
        answer = self.hear()
        assert isinstance(answer, Ready | Failed)
        return answer

    def serve(self, *releases: Release, golden_s: float = 0.0, **options: Any) -> Ready:
        """Load and accept; what follows in time will be answered by this engine."""
        answer = self.load(*releases, **options)
        assert isinstance(answer, Ready), answer
        self.tell(Serve(options.get("invoke_s", 30.0), golden_s))
        return answer

    def report(self, windows: bool = True) -> Scores:
        self.tell(Report(windows))
        answer = self.hear()
        assert isinstance(answer, Scores)
        return answer

    def drain(self, deadline_s: float = 5.0) -> Scores:
        """Drain; the process has exited with 0 when this returns."""
        self.tell(Drain(deadline_s))
        answer = self.hear()
        assert isinstance(answer, Scores) and answer.final
        assert self.process.wait(deadline_s + ANSWER_S) == 0
        return answer

    def blamed(self) -> str:
        return os.pread(self.blame, 64, 0).rstrip(b"\0").decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(ANSWER_S)
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            said = stderr.read().decode()
        self._lines.close()
        self.socket.close()
        os.close(self.blame)
        assert "Traceback" not in said, said


@contextlib.contextmanager
def engine(
    listeners: Listeners | None = None,
    runtimes: str | None = None,
    environ: dict[str, str] | None = None,
) -> Iterator[Engine]:
    started = Engine(listeners, runtimes, environ)
    try:
        yield started
    finally:
        started.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A keep-alive HTTP client; like all of them it sends again once if idle was ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        self._used = False

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            return self._ask(method, path, data, headers or {})
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not self._used:
                raise
            self.close()
            return self._ask(method, path, data, headers or {})

    def infer(self, rows: Any, id: str | None = None, model: str = "digits") -> Answer:
        return self.ask("POST", f"/v2/models/{model}/infer", infer_body(rows, id))

    def close(self) -> None:
        self._connection.close()
        self._used = False

    def _ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        self._used = True
        if response.will_close:
            self.close()
        return answer


def infer_body(rows: Any, id: str | None = None) -> dict[str, Any]:
    array = np.asarray(rows)
    fields: dict[str, Any] = {
        "inputs": [
            {
                "name": "image",
                "shape": list(array.shape),
                "datatype": "FP32",
                "data": array.ravel().tolist(),
            }
        ]
    }
    return fields if id is None else {"id": id, **fields}


def one_hot(*classes: int) -> list[list[float]]:
    """Rows that the good classifier answers with these classes."""
    return [[2.0 if place == one else 0.0 for place in range(FEATURES)] for one in classes]


def eventually(check: Any, within_s: float = ANSWER_S) -> Any:
    """Return the first true value of `check()`."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s: {check}")
