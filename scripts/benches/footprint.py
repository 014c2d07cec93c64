"""What a device gives up for us: memory, idle processor time, and the time until it answers.

A real agent serves MobileNetV2 in int8, once in ONNX and once in TFLite, run as its unit runs it:
without docstrings, and compiled before. Beside it stand a bare script that loads and runs the same
file, and other servers with the same model.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from scripts.benches import _client as raw
from scripts.benches import _models, _peers
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from tests.brokers import start_mosquitto
from tests.e2e.harness import Agent, Fleet, cpu_seconds, wait_for

BARS = [
    Bar("daemon_pss_mb", at_most=34),
    Bar("engine_over_bare_mb", at_most=12),
    Bar("idle_cpu_percent", at_most=0.3),
    Bar("total_ratio_to_lightest_peer", at_most=0.6),
]
MEBIBYTE = 1024 * 1024
RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
SYSTEM = ("/lib/", "/usr/lib/")
SETTLE_S = 3.0
RUNS = 5
READY = b"GET /v2/models/mobilenet/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"


def measure(quick: bool) -> Result:
    """Measure what an agent with one small model takes."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="bench-footprint-") as folder:
        work = Path(folder)
        _compile()
        files = {
            "onnx": _models.write_mobilenet_onnx(work / "mobilenet.onnx"),
            "tflite": _models.write_mobilenet_tflite(work / "mobilenet.tflite"),
        }
        for kind, path in files.items():
            _ours(work / kind, kind, path, result, idle_s=10 if quick else 60)
        peers = {} if quick else _peer_memory(work, files["onnx"])
    note(f"other servers with the same model: {peers or 'not measured'}")
    ours = result.runs["onnx"]["daemon_mb"] + result.runs["onnx"]["engine_mb"]
    result.runs["peers_mb"] = peers
    result.figures["total_mb"] = ours
    result.figures["total_ratio_to_lightest_peer"] = ours / min(peers.values()) if peers else None
    return result


def _ours(home: Path, kind: str, path: Path, result: Result, *, idle_s: int) -> None:
    home.mkdir()
    with Fleet(home, start_mosquitto(home)) as fleet:
        # It reports as rarely as it does by default.
        agent = fleet.agent(
            "cam-1", runtime=RUNTIMES[kind], telemetry={"window_s": 60, "health_s": 60}
        )
        fleet.wait_until_online(agent)
        release = fleet.push(path, "--name", "mobilenet", "--task", "classification")
        fleet.rollout(release)
        agent.stop()
        began = time.monotonic()
        with _as_the_unit_does():
            agent.start()
        wait_for("an answer", lambda: _is_ready(agent))
        ready_s = time.monotonic() - began
        fleet.wait_until_serving(agent, release)
        _infer(_tcp(agent.url), path)
        time.sleep(SETTLE_S)
        engine = agent.engine()
        before = cpu_seconds(agent.pid) + cpu_seconds(engine.pid)
        time.sleep(idle_s)
        spent = cpu_seconds(agent.pid) + cpu_seconds(engine.pid) - before
        daemon_mb, engine_mb = memory_mb([agent.pid, engine.pid])
        bare_mb = _bare(path)
    result.runs[kind] = {
        "daemon_mb": daemon_mb,
        "engine_mb": engine_mb,
        "bare_mb": bare_mb,
        "idle_cpu_percent": 100 * spent / idle_s,
        "ready_s": ready_s,
    }
    note(f"{kind}: " + ", ".join(f"{name} {of:.3g}" for name, of in result.runs[kind].items()))
    for name, value in (
        ("daemon_pss_mb", daemon_mb),
        ("engine_over_bare_mb", engine_mb - bare_mb),
        ("idle_cpu_percent", 100 * spent / idle_s),
        ("ready_s", ready_s),
    ):
        result.figures[name] = max(result.figures.get(name, 0.0), value)


def _compile() -> None:
    """Do what the installation does."""
    folders = ["agent", "wire", "delta", sysconfig.get_path("purelib")]
    note("compiling what is installed; the first time this takes a minute")
    command = [sys.executable, "-OO", "-m", "compileall", "-q", "-j", "0", *folders]
    subprocess.run(command, capture_output=True, check=False)


@contextmanager
def _as_the_unit_does() -> Iterator[None]:
    os.environ["PYTHONOPTIMIZE"] = "2"
    try:
        yield
    finally:
        del os.environ["PYTHONOPTIMIZE"]


def memory_mb(pids: list[int]) -> list[float]:
    """Return the proportional set sizes as they were if only these ran Python and our libraries.

    The libraries of the system itself count as they are: every device has others that hold them.
    """
    maps = [psutil.Process(pid).memory_maps(grouped=True) for pid in pids]
    held = [{each.path for each in mine if each.shared_clean + each.shared_dirty} for mine in maps]

    def part(each: Any) -> float:
        if each.path.startswith(SYSTEM):
            return float(each.pss)
        sharers = sum(each.path in paths for paths in held)
        shared = each.shared_clean + each.shared_dirty
        return float(each.private_clean + each.private_dirty + shared / max(1, sharers))

    return [sum(map(part, mine)) / MEBIBYTE for mine in maps]


def _bare(path: Path) -> float:
    """Return the memory of a script that has loaded the model and run it."""
    command = [sys.executable, "-m", "scripts.benches._yardstick", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [taken] = memory_mb([process.pid])
        process.communicate()
    return taken


def _peer_memory(work: Path, path: Path) -> dict[str, float]:
    found = {}
    with ExitStack() as stack:
        for peer in _peers.start(stack, work, {"mobilenet": path}):
            _infer(peer.address, path, binary=peer.speaks_binary)
            time.sleep(SETTLE_S)
            root = psutil.Process(peer.pid)
            pids = [root.pid, *(child.pid for child in root.children(recursive=True))]
            found[peer.name] = sum(memory_mb(pids))
            note(f"{peer.name}: {found[peer.name]:.0f} MB, ready after {peer.ready_s:.1f} s")
    return found


def _is_ready(agent: Agent) -> bool:
    try:
        connection = raw.Http(_tcp(agent.url))
    except OSError:
        return False
    with closing(connection):
        connection.call(READY)
        return connection.status == 200


def _infer(address: tuple[str, int], path: Path, *, binary: bool = True) -> None:
    write = raw.as_binary if binary else raw.as_json
    datatype, dtype = ("INT8", np.int8) if path.suffix == ".tflite" else ("FP32", np.float32)
    image = np.zeros((1, _models.IMAGE, _models.IMAGE, 3), dtype)
    request = write("mobilenet", "image", image, datatype)
    with closing(raw.Http(address)) as connection:
        for _ in range(RUNS):
            answer = connection.call(request)
            if connection.status != 200:
                raise CannotMeasureError(f"expected 200, got {connection.status}: {answer[:300]!r}")


def _tcp(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main("footprint", BARS, measure))
