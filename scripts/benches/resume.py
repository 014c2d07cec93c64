"""Twenty times kill -9 in one pull of 50 MB, with restarts of broker and controller among them.

A real agent and a real `fleet serve`. Before each kill the agent is stopped, and what it has read
from its socket is counted at a relay in front of it, MQTT and orders included; what lay unread in
the socket was not received. Published bytes are the controller's own count.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from fleet.shell.blobs import CHUNK_BYTES
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from scripts.benches._lines import Line, line_to
from tests.brokers import Broker, start_mosquitto, start_nats
from tests.e2e.harness import Agent, Fleet
from tests.e2e.models import MEBIBYTE, write_big_model

BARS = [Bar("received_ratio", at_most=1.02), Bar("published_over_bound", at_most=1)]
KILLS = 20
SIZE = 50 * MEBIBYTE
WINDOW_CHUNKS = 32
RATE_BYTES_S = 8 * MEBIBYTE
SETTLE_S = 0.25
"""Until everything is acknowledged: a delayed ACK would count bytes as unread."""


def measure(quick: bool) -> Result:
    """Measure what is received and published when everything dies again and again."""
    seeds = [1] if quick else [1, 2, 3, 4, 5]
    result = Result({"received_ratio": 0.0, "published_over_bound": 0.0, "kills": KILLS})
    for seed in seeds:
        start = start_nats if seed % 2 == 0 else start_mosquitto
        with tempfile.TemporaryDirectory(prefix="bench-resume-") as work:
            received, published, seconds = one_pull(
                Path(work), start(Path(work)), seed, KILLS, SIZE
            )
        bound = SIZE + KILLS * WINDOW_CHUNKS * CHUNK_BYTES
        figures = {"received_ratio": received / SIZE, "published_over_bound": published / bound}
        note(f"seed {seed}: received {received / SIZE:.4f} x, published {published / SIZE:.3f} x "
             f"the file in {seconds:.0f} s")  # fmt: skip
        for name, value in figures.items():
            result.figures[name] = max(result.figures[name], value)
            result.runs.setdefault(name, []).append(value)
    return result


def one_pull(
    work: Path, broker: Broker, seed: int, kills: int, size: int
) -> tuple[int, int, float]:
    """Return bytes received, payload bytes published, and seconds, of one pull full of deaths."""
    draw = random.Random(seed)
    moments = sorted(draw.uniform(0.02, 0.95) * size for _ in range(kills))
    restarts = draw.sample(range(kills), 4)
    received = published = 0
    with Fleet(work, broker) as fleet, line_to(broker.url) as line:
        transfer = {"bytes_per_s": RATE_BYTES_S, "window_chunks": WINDOW_CHUNKS}
        agent = fleet.agent("cam-1", broker={"url": line.url}, transfer=transfer)
        release = fleet.push(write_big_model(work / "big.onnx", size / MEBIBYTE, seed))
        fleet.wait_until_online(agent)
        began = time.monotonic()
        rollout = fleet.start_rollout(release)
        for number, moment in enumerate(moments):
            agent.wait_until_fetched(int(moment))
            received += _kill(agent, line)
            if number in restarts[:2]:
                broker.kill()
                broker.start()
            if number in restarts[2:]:
                published += fleet.client.health().chunk_bytes_published
                fleet.controller.kill()
                fleet.controller.start()
                fleet.wait_until_connected()
            agent.start()
        view = fleet.wait_until_over(rollout, 120)
        seconds = time.monotonic() - began
        if view.status != "completed":
            raise CannotMeasureError(f"the pull ended as {view.status}: {view.because}")
        received += line.received()
        published += fleet.client.health().chunk_bytes_published
    return received, published, seconds


def _kill(agent: Agent, line: Line) -> int:
    """Kill the agent; return what it received in this life."""
    os.kill(agent.pid, signal.SIGSTOP)
    time.sleep(SETTLE_S)
    received = line.settle()
    agent.kill()
    return received


if __name__ == "__main__":
    sys.exit(main("resume", BARS, measure))
