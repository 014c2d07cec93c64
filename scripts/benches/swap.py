"""Releases come and go under load: rollouts, a rollback, and a crash among them.

A real agent and a real `fleet serve`. A stream of requests at a steady rate goes on all the
while, and counts from the moment when each one is due. A swap lasts from the start of the second
engine to the end of the first. Then many swaps more, for what the agent and its engine remember.
"""

import array
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from fleet.core.views import RolloutRequest
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from tests.e2e.app import held_out
from tests.e2e.harness import NO_PROBATION, SAMPLES, Agent, Fleet, wait_for

BARS = [
    Bar("failed", at_most=0),
    Bar("p99_ratio", at_most=2),
    Bar("recovery_s_over_load", at_most=1.5),
    Bar("memory_growth_200_swaps", at_most=1.05),
]
MOST_RATE = 1000.0
SHARE_OF_CAPACITY = 0.7
CAPACITY_S = 3.0
STEADY_S = 1.5
"""Between one swap and the next."""
FIRST_MEASURED = 10

Sample = tuple[float, float, int]
"""When a request was due and answered, monotonic, and its HTTP status; 0: no answer."""


def measure(quick: bool) -> Result:
    """Measure what apps notice of swaps and of a crash, and what memory does over many swaps."""
    swaps, many = (6, 20) if quick else (20, 200)
    result = Result()
    with tempfile.TemporaryDirectory(prefix="bench-swap-") as work, Fleet(Path(work), "nats") as it:
        bench = Bench(it, Path(work))
        bench.deploy(1)
        capacity = bench.capacity()
        rate = min(MOST_RATE, SHARE_OF_CAPACITY * capacity)
        note(f"{capacity:.0f} requests/s at most, so {rate:.0f} from here on")
        with bench.stream(rate) as samples:
            bench.story(swaps)
        result.figures = {"failed": 0, "p99_ratio": 0.0, "recovery_s_over_load": 0.0,
                          "rate": rate, "swaps": swaps}  # fmt: skip
        bench.judge(samples, result)
        _many(bench, many, result)
    return result


@dataclass(frozen=True)
class Span:
    """From one moment to another, monotonic."""

    name: str
    begin: float
    end: float


@dataclass
class Bench:
    """A device that serves digits, and what was done to it."""

    fleet: Fleet
    work: Path
    swaps: list[Span] = field(default_factory=list)
    crash: Span | None = None

    def __post_init__(self) -> None:
        """Have two devices, one of which stays away, and two releases."""
        self.agent, away = (self._join(id) for id in ("cam-1", "cam-2"))
        away.kill()
        for version in (1, 2):
            self.fleet.push(SAMPLES / f"digits-{version}")
        self.version = 0
        image = held_out()[0][0].astype(np.float32)
        head = {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, 8, 8, 1],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": image.nbytes},
                }
            ]
        }
        text = json.dumps(head).encode()
        self.request = self.work / "request"
        self.request.write_bytes(
            b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: device\r\n"
            b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
            % (len(text), len(text) + image.nbytes) + text + image.tobytes()
        )  # fmt: skip

    def _join(self, id: str) -> Agent:
        # Reports as seldom as a real device's, not as often as a test's.
        agent = self.fleet.agent(id, telemetry={"window_s": 60, "health_s": 60})
        self.fleet.wait_until_online(agent)
        return agent

    # ---- what is done

    def story(self, swaps: int) -> None:
        """Swap so often; one of them is a rollback, and a crash comes in the middle."""
        time.sleep(STEADY_S)
        for number in range(1, swaps + 1):
            if number == swaps // 2:
                self.kill_engine()
            elif number == swaps // 2 + 1:
                self.timed("rollback", self.roll_back)
            else:
                self.timed(f"swap {number}", lambda: self.deploy(3 - self.version))
            time.sleep(STEADY_S)

    def deploy(self, version: int) -> None:
        """Bring a release to the device that is there."""
        request = RolloutRequest(
            release=f"digits@{version}", to="device=cam-1", probation=NO_PROBATION
        )
        view = self.fleet.wait_until_over(self.fleet.client.start_rollout(request).id)
        if view.status != "completed":
            raise CannotMeasureError(f"a rollout ended as {view.status}: {view.because}")
        self.version = version

    def roll_back(self) -> None:
        """Call off a rollout that one of its devices has and the other does not."""
        before, other = self.version, 3 - self.version
        rollout = self.fleet.start_rollout(f"digits@{other}")
        self.fleet.wait_until_serving(self.agent, f"digits@{other}")
        self.fleet.client.abort_rollout(rollout, "the bench takes it back")
        self.fleet.wait_until_serving(self.agent, f"digits@{before}")

    def kill_engine(self) -> None:
        """End the engine as a crash does, and wait for the next one."""
        engine = self.agent.engine()
        began = time.monotonic()
        engine.kill()
        self.agent.wait_until_replaced(engine)
        time.sleep(STEADY_S)
        self.crash = Span("crash", began, time.monotonic())

    def timed(self, name: str, swap: Callable[[], None]) -> None:
        """Do a swap, and note from when to when two engines were there."""
        old = self.agent.engine()
        began = time.monotonic()
        watch = subprocess.Popen(
            [sys.executable, "-m", "scripts.benches._engines", str(self.agent.pid), str(old.pid)],
            stdout=subprocess.PIPE,
            text=True,
        )
        swap()
        out, _ = watch.communicate(timeout=90)
        if watch.returncode != 0:
            raise CannotMeasureError(f"{name}: no second engine was seen")
        begin, end = map(float, out.split())
        self.swaps.append(Span(name, begin, end))
        note(f"{name}: {time.monotonic() - began:.2f} s, two engines for {end - begin:.2f} s")

    # ---- what is measured

    def capacity(self) -> float:
        """Return the answers a second to clients that ask as fast as they can."""
        with self.stream(0.0) as samples:
            time.sleep(CAPACITY_S)
        return len(samples) / (samples[-1][1] - samples[0][0])

    @contextmanager
    def stream(self, rate: float) -> Iterator[list[Sample]]:
        """Send requests meanwhile; afterwards the list holds what became of each."""
        samples: list[Sample] = []
        out = self.work / "samples"
        address = urlsplit(self.agent.url)
        place = (str(address.hostname), str(address.port), str(self.request), str(out), str(rate))
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benches._stream", *place], stdin=subprocess.PIPE
        )
        try:
            yield samples
            process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        values = array.array("d", out.read_bytes())
        samples += [
            (due, end, int(status))
            for due, end, status in zip(values[::3], values[1::3], values[2::3], strict=True)
        ]

    def judge(self, samples: list[Sample], result: Result) -> None:
        """Put figures to what was done."""
        assert self.crash is not None
        planned = [s for s in samples if not self.crash.begin - 1 < s[0] < self.crash.end]
        failed = [s for s in planned if s[2] != 200]
        inside = [_latencies(samples, span) for span in self.swaps]
        busy = [(span.begin - 0.2, span.end + 0.2) for span in self.swaps]
        outside = [
            end - due
            for due, end, _ in planned
            if not any(begin < due < over for begin, over in busy)
        ]
        after = [end for due, end, status in samples if due > self.crash.begin and status == 200]
        lost = sum(s[2] != 200 for s in samples) - len(failed)
        recovery = min(after) - self.crash.begin
        loading = statistics.median(self._loading_s() for _ in range(3))
        during = np.concatenate(inside)
        figures = {
            "failed": len(failed),
            "p99_ratio": float(np.quantile(during, 0.99) / np.quantile(outside, 0.99)),
            "recovery_s_over_load": recovery - loading,
            "p99_steady_ms": 1000 * float(np.quantile(outside, 0.99)),
            "p99_swap_ms": 1000 * float(np.quantile(during, 0.99)),
            "p50_steady_ms": 1000 * float(np.quantile(outside, 0.5)),
            "p50_swap_ms": 1000 * float(np.quantile(during, 0.5)),
            "recovery_s": recovery,
            "lost_in_crash": lost,
            "requests": len(samples),
        }
        result.figures.update(figures)
        result.runs["swap_s"] = [span.end - span.begin for span in self.swaps]
        result.runs["p99_ms"] = [1000 * float(np.quantile(each, 0.99)) for each in inside]
        result.runs["longest_ms"] = [1000 * float(np.max(each)) for each in inside]

    def _loading_s(self) -> float:
        """Return how long the library alone takes to load the model, itself imported already."""
        file = SAMPLES / f"digits-{self.version}" / "digits-int8.onnx"
        script = (
            "import sys, time, onnxruntime as o; began = time.perf_counter(); "
            "o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']); "
            "print(time.perf_counter() - began)"
        )
        command = [sys.executable, "-c", script, str(file)]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    def memory_bytes(self) -> int:
        """Return the proportional share of the agent and its only engine."""
        wait_for("a single engine", lambda: len(self.agent.engines()) == 1, 30)
        both = (psutil.Process(self.agent.pid), self.agent.engine())
        return sum(process.memory_full_info().pss for process in both)


def _latencies(samples: list[Sample], span: Span) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    during = [end - due for due, end, _ in samples if span.begin <= due <= span.end]
    if len(during) < 20:
        raise CannotMeasureError(f"{span.name}: expected some requests meanwhile, got {during}")
    return np.array(during)


def _many(bench: Bench, swaps: int, result: Result) -> None:
    """Swap `swaps` times under a little load, and see what that leaves in memory."""
    taken: list[int] = []
    with bench.stream(50.0):
        for number in range(1, swaps + 1):
            bench.deploy(3 - bench.version)
            if number == FIRST_MEASURED or number > swaps - 3:
                taken.append(bench.memory_bytes())
            if number % 50 == 0:
                note(f"{number} of {swaps} swaps, {taken[-1] / 1e6:.1f} MB")
    growth = statistics.median(taken[-3:]) / taken[0]
    result.figures["memory_growth_200_swaps"] = growth
    result.figures["memory_mb"] = taken[-1] / 1e6
    result.figures["many_swaps"] = swaps
    result.runs["memory_bytes"] = taken


if __name__ == "__main__":
    sys.exit(main("swap", BARS, measure))
