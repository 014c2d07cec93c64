"""One publish serves a wave: many devices against one, against topics of their own, and a laggard.

The sender is the product's own: `fleet serve` with its store and a real broker. The devices are
lean ones, many to a process (see `_lean_device`): the agent's core and link without disk and
engine. The sender's CPU is what the controller accounts to it: requests, chunks, and the thread of
its broker connection, less what the same rollout of a tiny model costs there.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benches._common import Bar, CannotMeasureError, Result, main, note, ratios
from scripts.benches._lines import line_to
from tests.brokers import Broker, start_mosquitto, start_nats
from tests.e2e.harness import Fleet
from tests.e2e.models import MEBIBYTE, write_big_model

BARS = [
    Bar("sender_cpu_to_one", at_most=2),
    Bar("sender_cpu_to_per_device", at_most=0.5),
    Bar("published_bytes_ratio", at_most=1.05),
    Bar("others_slowdown", at_most=1.2),
    Bar("completed", at_least=1.0),
]
SLOW_BYTES_S = 500_000
PROCESSES = 2
LIMIT_S = 240.0
TINY = 1 / 256
ONE, FAST = "device=dev-0", "line=fast"
STARTS: dict[str, Callable[[Path], Broker]] = {"mosquitto": start_mosquitto, "nats": start_nats}


def measure(quick: bool) -> Result:
    """Measure what a wave costs the sender, and how little a slow reader costs the others."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="bench-fanout-") as work:
        _wave(Path(work), result, rounds=1 if quick else 5, devices=25 if quick else 50,
              mebibytes=10)  # fmt: skip
        _laggard(Path(work), result, rounds=1 if quick else 5, devices=5 if quick else 50,
                 mebibytes=100 if quick else 200)  # fmt: skip
    return result


def _wave(work: Path, result: Result, *, rounds: int, devices: int, mebibytes: int) -> None:
    runs: dict[str, list[Run]] = {}
    with ExitStack() as stack:
        shared = stack.enter_context(Site(work / "shared", "mosquitto", devices))
        own = stack.enter_context(Site(work / "own", "mosquitto", devices, shared=False))
        sites = {"one": (shared, ONE), "wave": (shared, "all"), "per_device": (own, "all")}
        for number in range(rounds):
            for name, (site, to) in sites.items():
                runs.setdefault(f"{name}_tiny", []).append(site.rollout(TINY, to))
                runs.setdefault(name, []).append(site.rollout(mebibytes, to))
            spent = ", ".join(f"{name} {each[-1].cpu_s:.3f} s" for name, each in runs.items())
            note(f"{number + 1}/{rounds}: sender's CPU: {spent}")
        completed = min(shared.completed, own.completed)
    cost = {
        name: [
            run.cpu_s - median(each.cpu_s for each in runs[f"{name}_tiny"]) for run in runs[name]
        ]
        for name in sites
    }
    published = [run.published / (mebibytes * MEBIBYTE) for run in runs["wave"]]
    result.figures |= {
        "devices": devices,
        "sender_cpu_to_one": median(cost["wave"]) / median(cost["one"]),
        "sender_cpu_to_per_device": ratios(cost["wave"], cost["per_device"]),
        "published_bytes_ratio": median(published),
        "completed": completed,
    }
    result.runs |= {f"{name}_cpu_s": [run.cpu_s for run in each] for name, each in runs.items()}
    result.runs["published_bytes_ratio"] = published


def _laggard(work: Path, result: Result, *, rounds: int, devices: int, mebibytes: int) -> None:
    worst = 0.0
    for kind in STARTS:
        alone, slowed = [], []
        with Site(work / kind, kind, devices - 1, slow=True) as site:
            for _ in range(rounds):
                alone.append(site.rollout(mebibytes, FAST).seconds)
                slowed.append(site.rollout(mebibytes).seconds)
            result.figures["completed"] = min(result.figures["completed"], site.completed)
        ratio = ratios(slowed, alone)
        note(f"{kind}: {devices - 1} devices took {alone} s, with a slow one {slowed} s")
        result.figures[f"others_slowdown_{kind}"] = ratio
        result.runs |= {f"{kind}_alone_s": alone, f"{kind}_with_slow_s": slowed}
        worst = max(worst, ratio)
    result.figures["others_slowdown"] = worst


class Run:
    """One rollout of a model to lean devices."""

    def __init__(self, seconds: float, cpu_s: float, published: int) -> None:
        self.seconds = seconds
        """Until the last device had it."""
        self.cpu_s = cpu_s
        """Of the controller's sender."""
        self.published = published
        """Payload bytes."""


class Site:
    """A broker, a controller and lean devices; with `slow`, one more behind a slow line."""

    def __init__(
        self, home: Path, kind: str, devices: int, *, shared: bool = True, slow: bool = False
    ) -> None:
        home.mkdir()
        self._home = home
        self._kind = kind
        self._shared = shared
        self._slow = slow
        self._ids = [f"dev-{number}" for number in range(devices)]
        self._version = 0
        self._arrived: dict[int, dict[str, float]] = {}
        self._stack = ExitStack()
        self.completed = 1.0

    def __enter__(self) -> "Site":
        options = [] if self._shared else ["--per-device-topics"]
        broker = STARTS[self._kind](self._home)
        self._fleet = self._stack.enter_context(Fleet(self._home, broker, *options))
        try:
            for part in range(PROCESSES):
                self._stack.enter_context(self._devices(broker.url, self._ids[part::PROCESSES]))
            if self._slow:
                line = self._stack.enter_context(line_to(broker.url, SLOW_BYTES_S))
                self._stack.enter_context(self._devices(line.url, ["slow"]))
            self._await_online()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rollout(self, mebibytes: float, to: str = "all") -> Run:
        """Bring a new model to devices; return when all of them had it, the slow one apart."""
        self._version += 1
        file = write_big_model(self._home / "big.onnx", mebibytes, self._version)
        release = self._fleet.push(file, "--version", str(self._version))
        waited = self._ids[:1] if to == ONE else self._ids
        before = self._fleet.client.health()
        began = time.time()
        self._fleet.start_rollout(release, to)
        arrived = self._arrived.setdefault(self._version, {})
        while not set(waited) <= arrived.keys() and time.time() - began < LIMIT_S:
            time.sleep(0.02)
        after = self._fleet.client.health()
        self.completed = min(self.completed, len(arrived.keys() & set(waited)) / len(waited))
        took = max(arrived.get(id, time.time()) for id in waited) - began
        published = after.chunk_bytes_published - before.chunk_bytes_published
        return Run(took, after.sender_cpu_s - before.sender_cpu_s, published)

    def _await_online(self) -> None:
        wanted = len(self._ids) + self._slow
        for _ in range(600):
            if self._fleet.client.health().devices_online >= wanted:
                return
            time.sleep(0.1)
        raise CannotMeasureError(f"expected {wanted} devices online within 60 s")

    @contextmanager
    def _devices(self, url: str, ids: list[str]) -> Iterator[None]:
        config = tomllib.loads(self._fleet.client.device_config(ids[0]))
        login = config["broker"]
        keys, user = config["controller"]["public_keys"], login.get("username", "")
        command = [sys.executable, "-m", "scripts.benches._lean_device", url, user, keys[0], *ids]
        environ = os.environ | {"BENCH_PASSWORD": login.get("password", "")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environ)
        reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            yield
        finally:
            process.kill()
            process.wait()
            reader.join(5)

    def _read(self, lines: Any) -> None:
        for line in lines:
            said = json.loads(line)
            self._arrived.setdefault(said["version"], {})[said["device"]] = said["at"]


if __name__ == "__main__":
    sys.exit(main("fanout", BARS, measure))
