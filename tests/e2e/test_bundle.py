"""A release that comes on a stick: exported here, imported there, and not a byte of it fetched."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for


def export(fleet: Fleet, release: str, *options: str) -> Path:
    stick = fleet.home / "stick.ffb"
    fleet.command("model", "export", release, "--out", str(stick), *options)
    return stick


def bring(agent: Agent, stick: Path, *options: str, code: int = 0) -> str:
    """Run `farflung-agent import`; return what it says."""
    command = ["agent", "import", "--config", str(agent.home / "agent.toml"), str(stick)]
    done = subprocess.run(
        [sys.executable, "-m", *command, *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def fetched_bytes(fleet: Fleet, agent: Agent) -> int:
    """Return what the agent that runs now fetched since it started."""
    health = wait_for("a health report", lambda: fleet.health(agent))
    return int(health["transfer_bytes"])


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_rollout_of_what_was_imported_fetches_nothing(
    mosquitto_fleet: Fleet, running: bool
) -> None:
    fleet = mosquitto_fleet
    [agent] = fleet.join("cam-1")
    release = fleet.push(SAMPLES / "digits-1")
    stick = export(fleet, release)

    if not running:
        agent.stop()
    said = bring(agent, stick)
    if not running:
        agent.start()
        fleet.wait_until_online(agent)
    fleet.rollout(release)

    fleet.wait_until_serving(agent, release)
    assert ("has taken them up" if running else "no agent is running") in said
    assert fetched_bytes(fleet, agent) == 0
    assert "fetching onnx-int8, 0 files, 0 bytes" in agent.said()


def test_a_release_to_install_serves_although_no_controller_and_no_broker_is_there(
    mosquitto_fleet: Fleet,
) -> None:
    fleet = mosquitto_fleet
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    second = fleet.push(SAMPLES / "digits-2")
    fleet.rollout("digits@1")
    fleet.wait_until_serving(agent, "digits@1")
    stick = export(fleet, second, "--install", "--for", "cam-1")
    fleet.controller.stop()
    fleet.broker.stop()

    bring(agent, stick, "--install")

    wait_for("the commit", lambda: "digits@2: committed" in agent.said())
    assert "digits@2: queued by local-" in agent.said()
    agent.kill()
    agent.start()
    wait_for("digits@2 to answer after a power cut", lambda: served(agent) == "2")


def served(agent: Agent) -> str:
    """Return the version of digits that answers."""
    try:
        with urllib.request.urlopen(f"{agent.url}/v2/models/digits", timeout=2) as answer:
            return str(json.load(answer)["versions"][-1])
    except OSError:
        return ""


def test_a_stick_for_another_device_or_without_an_order_changes_nothing(
    mosquitto_fleet: Fleet,
) -> None:
    fleet = mosquitto_fleet
    [agent] = fleet.join("cam-1")
    release = fleet.push(SAMPLES / "digits-1")

    foreign = bring(agent, export(fleet, release, "--for", "cam-2"), code=1)
    unordered = bring(agent, export(fleet, release), "--install", code=1)

    assert "expected one for cam-1, got one for cam-2" in foreign
    assert "got one that brings files alone" in unordered
    assert not list((agent.data_dir / "blobs").iterdir())
