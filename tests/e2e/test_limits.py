"""Brokers as they come out of the box, and the memory that a pull takes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers import Broker, start_mosquitto, start_nats
from tests.e2e.harness import Agent, Fleet
from tests.e2e.models import MEBIBYTE, write_big_model

MOST_BYTES = 16 * MEBIBYTE
OUT_OF_THE_BOX: dict[str, Callable[[Path], Broker]] = {
    "mosquitto": lambda home: start_mosquitto(home, settings=()),
    "nats": lambda home: start_nats(home, limits=()),
}


@pytest.mark.parametrize("kind", OUT_OF_THE_BOX)
def test_a_model_travels_through_a_broker_with_its_default_limits(
    kind: str, tmp_path: Path
) -> None:
    with Fleet(tmp_path, OUT_OF_THE_BOX[kind](tmp_path)) as fleet:
        agents = fleet.join("cam-1", "cam-2", "cam-3")
        release = fleet.push(write_big_model(tmp_path / "big.onnx", 12))

        view = fleet.wait_until_over(fleet.start_rollout(release))

        assert view.status == "completed"
        for agent in agents:
            fleet.wait_until_serving(agent, release)


def test_a_pull_takes_little_memory_however_long_the_file(
    mosquitto_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = mosquitto_fleet
    agent = fleet.agent("cam-1")
    fleet.wait_until_online(agent)
    small = fleet.push(write_big_model(tmp_path / "small.onnx", 1, 1), "--name", "small")
    fleet.rollout(small)
    idle = settled_pss(agent)

    rollout = fleet.start_rollout(fleet.push(write_big_model(tmp_path / "big.onnx", 96, 2)))
    seen = [pss(agent)]
    while fleet.client.rollout(rollout).status == "running" and len(seen) < 3000:
        seen.append(pss(agent))
        time.sleep(0.01)

    assert fleet.client.rollout(rollout).status == "completed"
    assert len(seen) > 20
    assert max(seen) - idle <= MOST_BYTES, f"idle {idle}, then up to {max(seen)} bytes"


def pss(agent: Agent) -> int:
    """Return the daemon's share of memory, bytes."""
    for line in Path(f"/proc/{agent.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss in smaps_rollup")


def settled_pss(agent: Agent) -> int:
    """Return the least of a few looks: what just happened may still take some."""
    looks = []
    for _ in range(10):
        looks.append(pss(agent))
        time.sleep(0.1)
    return min(looks)
