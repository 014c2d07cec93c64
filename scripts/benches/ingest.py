"""Windows a second into the controller's database on one core, against a callback that counts.

The controller is a whole one: connection, checks, commit, acknowledgement, sums. In its place the
floor is a bare paho client that only counts messages, and that is sent them with QoS 1: like the
controller it has every message at least once and acknowledges it, but it checks and keeps none.
`ratio_to_floor` rests on that one. The controller itself is sent telemetry with QoS 0 and
acknowledges it after its commit, so `bare` counts what comes with QoS 0 and acknowledges nothing:
`ratio_to_bare` is printed beside. Each runs alone on one core; broker and devices share the other,
and may be what limits those that only count. The devices send what real ones do, packed
beforehand: a window of 6,000 requests and the health of its minute in one batch (`minute`), or 16
such minutes that waited (`backlog`). A device never has more than its share of 2,000 windows on
the way. The time is from the first message to the last acknowledgement, which the controller
gives after its commit; then the sums are checked.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fleet.shell.telemetry import Telemetry
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from scripts.benches._ingest_side import EVERY, PROGRESS, QOS
from scripts.benches._minutes import BOOT, Minutes
from tests.brokers import Broker, start_mosquitto
from tests.fleet.samples import sample_manifest
from wire.codec import decode
from wire.manifest import Manifest
from wire.packing import pack
from wire.telemetry import Ack, Batch, Histogram, ScoreWindow
from wire.topics import ROOT, Kind, Topic, build

BARS = [Bar("ratio_to_floor", at_least=0.5), Bar("windows_per_s", at_least=3000.0)]
ARTIFACT = b"an artifact" * 100
DEVICES = 100
ON_THE_WAY = 2000
SOURCES = 40
"""Minutes drawn; devices send them in turn, each under its own name and number."""

SILENCE_S = 30.0


def release() -> Manifest:
    """Return the release that all windows are of."""
    return sample_manifest(1, ARTIFACT)


class Message(NamedTuple):
    """A batch as it travels."""

    device: str
    topic: str
    last: int
    body: bytes


class Run(NamedTuple):
    """What one side did."""

    per_s: float
    cpu_us: float
    """Of the whole process, start and end among it, for a window."""


def measure(quick: bool) -> Result:
    """Windows a second through validation, commit and acknowledgement."""
    if len(os.sched_getaffinity(0)) < 2:
        raise CannotMeasureError("expected two cores: one for the controller, one for the rest")
    first, *rest = sorted(os.sched_getaffinity(0))
    windows, rounds = (4000, 1) if quick else (24_000, 3)
    figures: dict[str, float] = {}
    runs: dict[str, list[float]] = {}
    try:
        os.sched_setaffinity(0, rest)
        for name, together in (("minute", 1), ("backlog", 16)):
            messages = list(_messages(windows, together))
            note(f"{name}: {len(messages[0].body) / together:.0f} bytes a window")
            floors, bares, ours = [], [], []
            for _ in range(rounds):
                floors.append(_run("floor", messages, together, first))
                ours.append(_run("controller", messages, together, first))
                bares.append(_run("bare", messages, together, first))
                note(
                    f"{name}: controller {ours[-1].per_s:.0f}/s, floor {floors[-1].per_s:.0f}/s, "
                    f"without acknowledgements {bares[-1].per_s:.0f}/s"
                )
            prefix = "" if name == "minute" else f"{name}_"
            figures |= {
                f"{prefix}ratio_to_floor": median(
                    our.per_s / floor.per_s for our, floor in zip(ours, floors, strict=True)
                ),
                f"{prefix}ratio_to_bare": median(
                    our.per_s / bare.per_s for our, bare in zip(ours, bares, strict=True)
                ),
                f"{prefix}windows_per_s": median(run.per_s for run in ours),
                f"{prefix}floor_per_s": median(run.per_s for run in floors),
                f"{prefix}bare_per_s": median(run.per_s for run in bares),
                f"{prefix}floor_cpu_us_per_window": median(run.cpu_us for run in floors),
                f"{prefix}bare_cpu_us_per_window": median(run.cpu_us for run in bares),
                f"{prefix}cpu_us_per_window": median(run.cpu_us for run in ours),
            }
            runs[name] = [run.per_s for run in ours]
            runs[f"{name}_bare"] = [run.per_s for run in bares]
            runs[f"{name}_floor"] = [run.per_s for run in floors]
    finally:
        os.sched_setaffinity(0, {first, *rest})
    return Result(figures=figures, runs=runs)


def _messages(windows: int, together: int) -> Iterator[Message]:
    """Yield batches of all devices, in turn."""
    manifest, source = release(), Minutes()
    now = int(time.time()) - 60 * SOURCES
    drawn = [source.minute(now + 60 * number) for number in range(SOURCES)]
    for number in range(windows // together):
        device = f"cam-{number % DEVICES:03}"
        seq = 2 * together * (number // DEVICES)
        minutes = [drawn[(number + each) % SOURCES] for each in range(together)]
        batch = Batch(
            device=device,
            windows=tuple(
                ScoreWindow.model_validate(
                    {
                        **window.counts,
                        "latency": Histogram(bins=window.counts["latency"]),
                        "device": device, "boot": BOOT, "seq": seq + 2 * place + 1,
                        "model": manifest.model, "version": manifest.version,
                        "manifest": manifest.digest, "variant": manifest.variants[0].name,
                        "start": window.start, "end": window.end,
                    }
                )
                for place, (window, _) in enumerate(minutes)
            ),
            health=tuple(
                health.model_copy(update={"device": device, "seq": seq + 2 * place + 2})
                for place, (_, health) in enumerate(minutes)
            ),
            complete=True,
        )  # fmt: skip
        topic = build(Topic(Kind.BATCH, device))
        yield Message(device, topic, seq + 2 * together, pack(batch))


def _run(role: str, messages: Sequence[Message], together: int, core: int) -> Run:
    """Let one side hear all messages; return how fast it was."""
    with tempfile.TemporaryDirectory() as home:
        directory = Path(home)
        with start_mosquitto(directory) as broker, _side(role, broker, directory, core) as cpu_s:
            taken_s = _send(broker, messages, together, QOS.get(role))
        windows = len(messages) * together
        if role == "controller":
            _check(directory / "side", windows)
        return Run(windows / taken_s, cpu_s() / windows * 1e6)


@contextmanager
def _side(role: str, broker: Broker, directory: Path, core: int) -> Iterator[Callable[[], float]]:
    data = directory / "side"
    data.mkdir()
    command = [sys.executable, "-m", "scripts.benches._ingest_side", role, broker.url, str(data)]
    with subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise CannotMeasureError(f"the {role} did not start")
            spent: list[float] = []
            yield lambda: spent[0]
            process.terminate()
            spent.append(float(process.stdout.readline()))
        finally:
            process.kill()


def _send(broker: Broker, messages: Sequence[Message], together: int, counts: int | None) -> float:
    """Publish everything, never too much at a time; return how long it took to be taken.

    `counts` is the QoS for whoever only counts.
    """
    room = threading.Condition()
    taken = 0
    acked: dict[str, int] = {}

    def heard(client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        nonlocal taken
        with room:
            if message.topic == PROGRESS:
                taken = int(message.payload) * together
            else:
                ack = decode(Ack, message.payload)
                taken += max(0, ack.seq - acked.get(ack.device, 0)) // 2
                acked[ack.device] = max(ack.seq, acked.get(ack.device, 0))
            room.notify()

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="devices")
    client.on_message = heard
    client.max_inflight_messages_set(ON_THE_WAY)
    client.connect("127.0.0.1", broker.port)
    client.subscribe([(PROGRESS, 0), (f"{ROOT}/d/+/+/ack", 0)])
    client.loop_start()
    slack = EVERY * together if counts is not None else 0
    try:
        began = time.monotonic()
        for number, message in enumerate(messages):
            client.publish(message.topic, message.body, counts or 0)
            if number % EVERY == EVERY - 1:
                most = max(0, (number + 1) * together - ON_THE_WAY)
                _until(room, lambda most=most: taken >= most)  # type: ignore[misc]
        whole = len(messages) * together
        _until(room, lambda: taken > whole - max(slack, 1))
        return time.monotonic() - began
    finally:
        client.disconnect()
        client.loop_stop()


def _until(room: threading.Condition, enough: Callable[[], bool]) -> None:
    with room:
        if not room.wait_for(enough, SILENCE_S):
            raise CannotMeasureError(f"nothing was taken for {SILENCE_S:.0f} s")


def _check(data: Path, windows: int) -> None:
    telemetry = Telemetry(data / "telemetry.db")
    try:
        kept = sum(totals.windows for totals in telemetry.totals())
    finally:
        telemetry.close()
    if kept != windows:
        raise CannotMeasureError(f"expected {windows} windows in the sums, got {kept}")


if __name__ == "__main__":
    sys.exit(main("ingest", BARS, measure))
