"""The servers people use today, each installed into an environment of its own under .cache.

Both run the same model with the same runtime and one thread, called from Python: MLServer as it
comes, without worker processes; Triton from NVIDIA's `nvidia-pytriton` wheel, whose server carries
the Python backend. Where one cannot be installed or started, that is said and it is left out.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scripts.benches import _client as raw
from scripts.benches._common import note
from tests.brokers import free_port

CACHE = Path(__file__).parents[2] / ".cache" / "bench-peers"
YARDSTICK = Path(__file__).resolve().with_name("_yardstick.py")
RUNTIMES = ("numpy==1.26.4", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0")
START_S = 60.0

TRITON_MODEL = """
import sys
sys.path[:0] = {folders!r}
import triton_python_backend_utils as pb
from _yardstick import open_model

class TritonPythonModel:
    def initialize(self, args):
        self.run, _, _ = open_model({path!r})

    def execute(self, requests):
        def answer(request):
            given = pb.get_input_tensor_by_name(request, "image").as_numpy()
            return pb.InferenceResponse([pb.Tensor("scores", self.run(given))])
        return [answer(request) for request in requests]
"""
TRITON_CONFIG = """
name: "{name}"
backend: "python"
input [{{ name: "image" data_type: {datatype} dims: {dims} }}]
output [{{ name: "scores" data_type: {datatype} dims: [-1, -1] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
MLSERVER_MODEL = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from _yardstick import open_model

class Served(MLModel):
    async def load(self):
        self.run, _, _ = open_model(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        output = self.run(NumpyCodec.decode_input(payload.inputs[0]))
        answer = NumpyCodec.encode_output("scores", output)
        return InferenceResponse(model_name=self.name, outputs=[answer])
"""


class MissingError(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A server that serves the same models."""

    name: str
    address: tuple[str, int]
    pid: int
    speaks_binary: bool
    """Tensors may follow the JSON as bytes."""
    ready_s: float
    """From its start to its first readiness."""


def start(stack: ExitStack, work: Path, files: dict[str, Path]) -> list[Peer]:
    """Start every peer that can be had; they end with `stack`."""
    found = []
    for name, begin in (("triton", _triton), ("mlserver", _mlserver)):
        home = work / name
        home.mkdir()
        try:
            found.append(begin(stack, home, files))
        except MissingError as error:
            note(f"{name} is not measured: {error}")
    if shutil.which("torchserve") is None:
        note("torchserve is not measured: it is not installed")
    else:
        note("torchserve is not measured: it cannot serve ONNX or TFLite files as they are")
    return found


def _triton(stack: ExitStack, home: Path, files: dict[str, Path]) -> Peer:
    python = _environment("triton", "--no-deps", "nvidia-pytriton==0.7.0", *RUNTIMES)
    packages = python.parents[1] / "lib" / _python() / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    backends = home / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / _python().removeprefix("python")
    if not stub.is_dir():
        raise MissingError(f"nvidia-pytriton has no Python backend for {_python()}")
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    # Its stub has a mind of its own about PYTHONPATH.
    folders = [str(packages), str(YARDSTICK.parent)]
    for name, path in files.items():
        folder = home / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(TRITON_MODEL.format(path=str(path), folders=folders))
        kind, dims = ("TYPE_FP32", "[-1, -1, -1, -1]")
        config = TRITON_CONFIG.format(name=name, datatype=kind, dims=dims)
        (folder.parent / "config.pbtxt").write_text(config)
    port = free_port()
    command = [
        str(server / "bin" / "tritonserver"), f"--model-repository={home / 'models'}",
        f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}",
        "--allow-grpc=false", "--allow-metrics=false", "--log-info=false",
    ]  # fmt: skip
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    environ = {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": str(packages),
    }
    return _begin(stack, "triton", command, environ, home, port=port, speaks_binary=True)


def _mlserver(stack: ExitStack, home: Path, files: dict[str, Path]) -> Peer:
    python = _environment("mlserver", "mlserver==1.7.1", *RUNTIMES)
    port = free_port()
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "parallel_workers": 0,
        "metrics_port": free_port(), "debug": False,
    }  # fmt: skip
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "served.py").write_text(MLSERVER_MODEL)
    for name, path in files.items():
        folder = home / name
        folder.mkdir()
        told = {
            "name": name, "implementation": "served.Served", "parameters": {"uri": str(path)},
        }  # fmt: skip
        (folder / "model-settings.json").write_text(json.dumps(told))
    # Not its script: that would stop working where the folder is moved.
    command = [str(python), "-c", "from mlserver.cli import main; main()", "start", str(home)]
    environ = {"PYTHONPATH": f"{home}:{YARDSTICK.parent}"}
    return _begin(stack, "mlserver", command, environ, home, port=port, speaks_binary=False)


def _environment(name: str, *packages: str) -> Path:
    """Return the Python of an environment with these packages, made if it is not there."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    mark = folder / "packages"
    if mark.is_file() and mark.read_text() == "\n".join(packages):
        return python
    note(f"installing {' '.join(packages)} into {folder}; this takes minutes")
    runs: list[list[str | Path]] = [[sys.executable, "-m", "venv", "--clear", folder]]
    if packages[0] == "--no-deps":
        # What its own Python API would need is heavy, and only its server is wanted.
        runs.append([python, "-m", "pip", "install", "-q", *packages[:2]])
    runs.append([python, "-m", "pip", "install", "-q", *[p for p in packages if p[0] != "-"]])
    if packages[0] == "--no-deps":
        runs[-1].remove(packages[1])
    for run in runs:
        done = subprocess.run(run, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            raise MissingError(f"{' '.join(map(str, run))}: {done.stderr.strip()[-300:]}")
    mark.write_text("\n".join(packages))
    return python


def _begin(
    stack: ExitStack, name: str, command: list[str], environ: dict[str, str], home: Path, *,
    port: int, speaks_binary: bool,
) -> Peer:  # fmt: skip
    log = home / "log"
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=home, env=os.environ | environ
        )
    stack.callback(_end, process)
    while time.monotonic() - began < START_S and process.poll() is None:
        if _is_ready(port):
            took = time.monotonic() - began
            return Peer(name, ("127.0.0.1", port), process.pid, speaks_binary, took)
        time.sleep(0.05)
    raise MissingError(f"it did not get ready within {START_S:g} s: {log.read_text()[:600]}")


def _is_ready(port: int) -> bool:
    try:
        connection = raw.Http(("127.0.0.1", port))
    except OSError:
        return False
    try:
        connection.call(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
    except (OSError, RuntimeError, ValueError, IndexError):
        return False
    finally:
        connection.close()
    return connection.status == 200


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"
