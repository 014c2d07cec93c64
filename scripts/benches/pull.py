"""One device pulls 50 MB through mosquitto, against mosquitto's own tools and curl from nginx."""

import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onnx import TensorProto, helper, save

from scripts.benches._common import Bar, CannotMeasureError, Result, main, need, note, ratios
from tests.brokers import free_port, start_mosquitto

SIZE = 50_000_000
BARS = [Bar("ratio_to_raw_mqtt", at_least=1.2), Bar("ratio_to_http", at_least=0.5)]
PACE = re.compile(r"big@(\d+): fetched (\d+) bytes in ([\d.]+) s")


def measure(quick: bool) -> Result:
    """Measure one pull of 50 MB: from the request to a verified, fsynced file."""
    need("mosquitto_pub", "mosquitto-clients")
    nginx, curl = need("nginx", "nginx-light"), need("curl", "curl")
    rounds = 5 if quick else 9
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-pull-")))
        broker = start_mosquitto(work)
        stack.callback(broker.stop)
        fleet = stack.enter_context(_fleet(work, broker.url))
        agent = stack.enter_context(_agent(work, fleet))
        port = stack.enter_context(_nginx(nginx, work))
        ours, raw, http = [], [], []
        for number in range(1, rounds + 1):
            model = _model(work / "big.onnx", number)
            ours.append(_pull(fleet, agent, model, number))
            raw.append(_raw_mqtt(broker.url, model, work / "raw.out"))
            http.append(_http(curl, port, model, work / "http.out"))
            note(f"{number}/{rounds}: {ours[-1]:.3f} s, raw {raw[-1]:.3f} s, http {http[-1]:.3f} s")
    return Result(
        {
            "ratio_to_raw_mqtt": ratios(raw, ours),
            "ratio_to_http": ratios(http, ours),
            "throughput_mb_s": SIZE / 1e6 / sorted(ours)[len(ours) // 2],
        },
        {"ours_s": ours, "raw_mqtt_s": raw, "http_s": http},
    )


def _model(path: Path, seed: int) -> Path:
    """Write a model of 50 MB that no compressor makes smaller."""
    weights = random.Random(seed).randbytes(SIZE)
    table = helper.make_tensor("w", TensorProto.UINT8, (SIZE // 1000, 1000), weights, raw=True)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "row"], ["y"], axis=0)],
        "big",
        [helper.make_tensor_value_info("row", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", 1000])],
        [table],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def _settled(path: Path, digest: str) -> None:
    """End as we do: the bytes are hashed and on the disk."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise CannotMeasureError(f"{path.name}: the yardstick delivered other bytes")
        os.fsync(file.fileno())


def _raw_mqtt(url: str, model: Path, out: Path) -> float:
    host, port = url.removeprefix("mqtt://").split(":")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    where = ["-h", host, "-p", port, "-t", "bench"]
    with out.open("wb") as file:
        listener = subprocess.Popen(["mosquitto_sub", *where, "-C", "1", "-N"], stdout=file)
        time.sleep(0.5)
        began = time.monotonic()
        subprocess.run(["mosquitto_pub", *where, "-f", str(model)], check=True, timeout=60)
        listener.wait(60)
    _settled(out, digest)
    return time.monotonic() - began


def _http(curl: str, port: int, model: Path, out: Path) -> float:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    began = time.monotonic()
    url = f"http://127.0.0.1:{port}/{model.name}"
    subprocess.run([curl, "-sf", "-o", str(out), url], check=True, timeout=60)
    _settled(out, digest)
    return time.monotonic() - began


def _pull(fleet: str, log: Path, model: Path, number: int) -> float:
    _run(fleet, "model", "push", str(model), "--name", "big", "--version", str(number))
    _run(fleet, "rollout", "start", f"big@{number}", "--no-probation", "--watch",
         "--timeout", "60s")  # fmt: skip
    for found in PACE.finditer(log.read_text()):
        if int(found[1]) == number and int(found[2]) > SIZE:
            return float(found[3])
    raise CannotMeasureError(f"the agent did not tell how long big@{number} took: see {log}")


def _run(controller: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "--controller", controller, *words],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    if done.returncode:
        raise CannotMeasureError(f"fleet {' '.join(words)}: {done.stderr.strip()[-400:]}")
    return done.stdout


@contextmanager
def _fleet(work: Path, broker: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "fleet", "serve", "--data", str(work / "controller"),
               "--listen", f"127.0.0.1:{port}", "--broker", broker]  # fmt: skip
    with _process(command, work / "controller.log"):
        _wait_for(work / "controller.log", "connected to the broker")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _agent(work: Path, controller: str) -> Iterator[Path]:
    home = work / "device"
    home.mkdir()
    config = _run(controller, "device", "config", "cam-1")
    (home / "agent.toml").write_text(
        re.sub(r'tcp = ".*"', f'tcp = "127.0.0.1:{free_port()}"', config)
    )
    command = [sys.executable, "-m", "agent", "--config", str(home / "agent.toml")]
    with _process(command, home / "agent.log"):
        _wait_for(home / "agent.log", "connected to")
        yield home / "agent.log"


@contextmanager
def _nginx(program: str, work: Path) -> Iterator[int]:
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; pid {work}/nginx.pid; error_log {work}/nginx.err;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        f"events {{}}\n"
        f"http {{ access_log off; sendfile on;\n"
        f"  client_body_temp_path {work}/t1; proxy_temp_path {work}/t2;\n"
        f"  fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {work}; }} }}\n"
    )
    with _process([program, "-p", str(work), "-c", str(config)], work / "nginx.log"):
        time.sleep(0.5)
        yield port


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(log: Path, text: str) -> None:
    for _ in range(300):
        if text in log.read_text():
            return
        time.sleep(0.1)
    raise CannotMeasureError(
        f"expected {text!r} within 30 s in {log.name}: {log.read_text()[-400:]}"
    )


if __name__ == "__main__":
    sys.exit(main("pull", BARS, measure))
