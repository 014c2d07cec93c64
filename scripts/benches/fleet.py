"""10,000 connected devices that report once a minute, and a rollout going on: the controller's CPU.

One `fleet serve` on a real mosquitto; the devices are lean ones (see `_crowd_side`) with a line of
their own each. All take a first release while they warm up. Then, for ten minutes, a second one
goes through them in four waves with a probation, and meanwhile a release of another model starts
for all of them at once: its `start` to the last device's copy of its order is `publish_s`. The
metrics are read every 15 s as a Prometheus would, and somebody watches the rollout. CPU time is
the controller's own, of all its threads, so that broker and devices, which share the cores, do not
count; what else runs on the machine still makes times longer.
"""

import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from fleet.core.views import RolloutRequest, RolloutView
from scripts.benches._common import Bar, Result, main, note
from scripts.benches._crowd import Crowd, allow_files
from tests.brokers import start_mosquitto
from tests.e2e.harness import Fleet
from tests.e2e.models import write_big_model
from wire.twin import Probation

BARS = [
    Bar("connected", at_least=10_000),
    Bar("controller_core_percent", at_most=60),
    Bar("publish_s", at_most=30),
]
QUICK_BARS = [Bar("connected", at_least=1000), *BARS[1:]]
MODEL_MIB = 1 / 16
SCRAPE_S = 15.0
LOOK_S = 1.0
WATCH_REST = 20
PAIRS = 100


class Load:
    """How much one run asks for."""

    def __init__(self, quick: bool) -> None:
        self.devices = 1000 if quick else 10_000
        self.processes = 2
        # A tenth of the devices as often: as many messages a second.
        self.every_s = 6.0 if quick else 60.0
        self.labels_s = 2.0 if quick else 60.0
        self.warm_s = 5.0 if quick else 60.0
        self.measured_s = 20.0 if quick else 600.0
        self.other_at_s = 8.0 if quick else 120.0
        self.waves = ("100", "100%") if quick else ("100", "10%", "50%", "100%")
        self.limit_s = 60.0 if quick else 300.0


class Watch:
    """What a controller costs, second by second, from a thread of its own."""

    def __init__(self, fleet: Fleet, crowd: Crowd) -> None:
        self._fleet = fleet
        self._controller = psutil.Process(fleet.controller.pid)
        self._crowd = crowd
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rollout = ""
        """Which one is watched."""
        self.answers_ms: list[float] = []
        self.cpu_s: list[tuple[float, float]] = []
        """When, and how much until then."""
        self.waves: dict[int, float] = {}
        """Number -> when it was first seen open, and under the last number plus one its end."""
        self.rss_mb = 0.0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        scrape_at = watch_at = time.monotonic()
        while not self._over.wait(LOOK_S):
            self.cpu_s.append((time.monotonic(), cpu_of(self._controller.pid)))
            self.rss_mb = max(self.rss_mb, self._controller.memory_info().rss / 2**20)
            began = time.monotonic()
            self._fleet.client.health()
            self.answers_ms.append(1000 * (time.monotonic() - began))
            if began >= scrape_at:
                scrape_at = began + SCRAPE_S
                with urllib.request.urlopen(f"{self._fleet.url}/metrics") as page:
                    page.read()
            if self.rollout and began >= watch_at:
                asked = time.monotonic()
                self._look_at(self._fleet.client.rollout(self.rollout), asked)
                # As `fleet rollout status --watch` does.
                watch_at = asked + max(LOOK_S, WATCH_REST * (time.monotonic() - asked))

    def _look_at(self, view: RolloutView, now: float) -> None:
        for wave in view.waves:
            if wave.open:
                self.waves.setdefault(wave.number, now)
        if view.status.final:
            self.waves.setdefault(len(view.waves) + 1, now)

    def wave_times(self) -> list[float]:
        """Return how long each wave took that is over, as the watch saw it."""
        return [round(late - early, 1) for early, late in pairwise(self.waves.values())]

    def worst_ten_s(self) -> float:
        """Return the percentage of a core over the busiest ten seconds."""
        worst = 0.0
        for at, spent in self.cpu_s:
            then = next(((t, s) for t, s in self.cpu_s if t >= at + 10.0), None)
            if then is not None:
                worst = max(worst, 100 * (then[1] - spent) / (then[0] - at))
        return worst


def measure(quick: bool) -> Result:
    """Measure what 10,000 devices and a rollout cost the controller."""
    load = Load(quick)
    allow_files(load.devices)
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as work, ExitStack() as stack:
        home = Path(work)
        broker = start_mosquitto(home)
        fleet = stack.enter_context(Fleet(home, broker))
        first, second = (_push(fleet, home, "big", version) for version in (1, 2))
        other = _push(fleet, home, "other", 1)
        [variant] = fleet.client.release("big", 1).variants
        crowd = stack.enter_context(
            Crowd(fleet, load.devices, load.processes, load.every_s, load.labels_s, variant.name)
        )
        began = time.monotonic()
        crowd.wait("all devices online", lambda: _online(fleet) >= load.devices, load.limit_s)
        note(f"{load.devices} devices online after {time.monotonic() - began:.0f} s")
        warm, warm_s = _start(fleet, RolloutRequest(release=first, probation=_none()), crowd, load)
        crowd.wait("the first release everywhere", lambda: _over(fleet, warm), load.limit_s)
        note(f"{first}: told in {warm_s:.1f} s; {fleet.client.rollout(warm).because}")
        time.sleep(load.warm_s)
        return _measured(fleet, crowd, load, second, other, warm_s, broker.pid)


def _measured(  # noqa: PLR0917
    fleet: Fleet, crowd: Crowd, load: Load, second: str, other: str, warm_s: float, broker: int
) -> Result:
    pids = {"controller": [fleet.controller.pid], "broker": [broker], "devices": crowd.pids}
    before = {name: sum(map(cpu_of, each)) for name, each in pids.items()}
    messages = crowd.total("sent"), crowd.total("received")
    lost = crowd.total("lost")
    began = time.monotonic()
    with Watch(fleet, crowd) as watch:
        request = RolloutRequest(
            release=second, waves=load.waves, probation=Probation(labelled_pairs=PAIRS)
        )
        rollout = watch.rollout = fleet.client.start_rollout(request).id
        time.sleep(load.other_at_s)
        more = RolloutRequest(release=other, probation=_none())
        beside, publish_s = _start(fleet, more, crowd, load)
        note(f"{other}: told in {publish_s:.1f} s")
        left = load.measured_s - (time.monotonic() - began)
        time.sleep(max(0.0, left))
        took = time.monotonic() - began
        spent = {name: sum(map(cpu_of, each)) - before[name] for name, each in pids.items()}
        sent, received = (
            crowd.total(name) - was
            for name, was in zip(("sent", "received"), messages, strict=True)
        )
    for each in (rollout, beside):
        view = fleet.client.rollout(each)
        note(f"{view.release}: {view.status}; {view.because}")
    answers = sorted(watch.answers_ms)
    return Result(
        figures={
            "connected": min(_online(fleet), crowd.total("online")),
            "controller_core_percent": 100 * spent["controller"] / took,
            "publish_s": max(publish_s, warm_s),
            "worst_ten_s_percent": watch.worst_ten_s(),
            "broker_core_percent": 100 * spent["broker"] / took,
            "devices_core_percent": 100 * spent["devices"] / took,
            "to_controller_per_s": sent / took,
            "to_devices_per_s": received / took,
            "controller_rss_mb": watch.rss_mb,
            "answer_p50_ms": median(answers),
            "answer_p99_ms": answers[len(answers) * 99 // 100],
            "answer_max_ms": answers[-1],
            "connections_lost": crowd.total("lost") - lost,
            "devices_behind": crowd.total("behind"),
            "rollout_ended": crowd.ended(rollout),
            "other_ended": crowd.ended(beside),
            "wave_times_s": ", ".join(f"{took:.0f}" for took in watch.wave_times()),
            "minutes": took / 60,
        },
        runs={
            "answers_ms": watch.answers_ms,
            "cpu_s": watch.cpu_s,
            "wave_times_s": watch.wave_times(),
        },
    )


def _push(fleet: Fleet, home: Path, model: str, version: int) -> str:
    file = write_big_model(home / f"{model}.onnx", MODEL_MIB, version)
    return fleet.push(file, "--version", str(version))


def _none() -> Probation:
    return Probation(labelled_pairs=0)


def _online(fleet: Fleet) -> int:
    return fleet.client.health().devices_online


def _over(fleet: Fleet, rollout: str) -> bool:
    return any(each.status.final for each in fleet.client.rollouts() if each.id == rollout)


def _start(fleet: Fleet, request: RolloutRequest, crowd: Crowd, load: Load) -> tuple[str, float]:
    """Start a rollout in one wave; return it, and how long until the last device had its order."""
    began = time.time()
    rollout = fleet.client.start_rollout(request).id
    crowd.wait(
        f"all devices told of {request.release}",
        lambda: crowd.told(rollout)[0] >= load.devices,
        load.limit_s,
    )
    return rollout, crowd.told(rollout)[1] - began


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and all its threads."""
    times: Any = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(main("fleet", QUICK_BARS if "--quick" in sys.argv else BARS, measure))
