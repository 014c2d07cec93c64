"""Engines that are killed, that crash by themselves, and that are replaced."""

import http.client
import json
import os
import platform
import signal
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Agent, Fleet, alive, wait_for, wait_until_gone
from tests.e2e.models import write_divider
from tests.e2e.wiretap import Wiretap
from wire.codec import decode
from wire.topics import Kind, Topic
from wire.twin import Phase, Reason, Status

LOWEST = -(2**63)


def test_a_killed_engine_is_back_in_seconds(default_fleet: Fleet) -> None:
    fleet = default_fleet
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    daemon = agent.pid

    with App(agent.url, seed=1) as patient, App(agent.url, seed=2, keep_alive=False) as hasty:
        for round in (1, 2):
            killed = agent.engine()
            killed.kill()
            agent.wait_until_replaced(killed)
            patient.wait_for_answers(50)
            hasty.wait_for_answers(50)
            wait_for_restarts(fleet, agent, round)

    assert agent.running and agent.pid == daemon
    # Only what the engine had in its hands is lost: others wait at the door for the next one.
    assert not patient.refused and not hasty.refused
    assert len(patient.broken) <= 2 and len(hasty.broken) <= 2
    assert max(patient.longest_wait_s, hasty.longest_wait_s) < 10
    fleet.wait_until_serving(agent, "digits@1")


def test_a_release_that_crashes_after_its_commit_is_taken_back(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = default_fleet
    [agent] = fleet.join("cam-1")
    for version in (1, 2):
        file = write_divider(tmp_path / f"ratio-{version}.onnx", careful=version == 1)
        fleet.push(file, "--name", "ratio")
    fleet.rollout("ratio@1")
    fleet.rollout("ratio@2")
    fleet.wait_until_serving(agent, "ratio@2")
    assert divide(agent, 7, 2) == ("2", 3)

    for _ in range(3):
        crash(agent)
    device = fleet.wait_until_serving(agent, "ratio@1")

    [deployment] = device.deployments
    assert (deployment.purpose, deployment.phase) == ("fallback", Phase.COMMITTED)
    assert (deployment.version, deployment.reason) == (1, Reason.CRASHED)
    assert deployment.detail.startswith("ratio@2 crashed 3 times after its commit: ")
    assert "ratio@2 crashed 3 times after its commit" in fleet.cli("events")
    assert divide(agent, LOWEST, -1) == ("1", LOWEST)
    # It stays so: what is desired is still ratio@2, and that had its chance.
    agent.stop()
    agent.start()
    fleet.wait_until_online(agent)
    assert fleet.wait_until_serving(agent, "ratio@1").desired_revision == 2


def test_a_fresh_engine_takes_over_without_losing_a_request(default_fleet: Fleet) -> None:
    fleet = default_fleet
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")

    with App(agent.url, seed=1) as patient, App(agent.url, seed=2, keep_alive=False) as hasty:
        for _ in range(3):
            engine = agent.engine()
            said = fleet.cli("device", "cmd", "cam-1", "restart-engine")
            assert "a fresh engine takes over when it is ready" in said
            agent.wait_until_replaced(engine)
            wait_until_gone([engine])

    for app in (patient, hasty):
        assert app.answered > 100
        assert not app.broken and not app.refused
    answered = patient.answered + hasty.answered
    fleet.wait_for_requests(agent, answered)
    assert fleet.health(agent)["engine_restarts"] == 0


def test_an_agent_stops_cleanly_and_says_goodbye(fleet: Fleet) -> None:
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    engines = agent.engines()

    with App(agent.url) as app:
        app.wait_for_answers(20)
        app.stop()
        code = agent.stop()

    assert code == 0
    assert not [engine for engine in engines if alive(engine)]
    fleet.wait_until_offline(agent)
    assert agent.said().rstrip().endswith("stopped")
    status = Topic(Kind.STATUS, agent.id)
    with Wiretap(fleet.client.health().broker_url) as tap:
        wait_for("its goodbye", lambda: status in tap.retained, 30)
        assert not decode(Status, tap.retained[status]).online
    # What it counted last is told now or in its next life, and once.
    agent.start()
    fleet.wait_for_requests(agent, app.answered)


def test_a_killed_agent_leaves_no_engine_and_is_seen_to_be_gone(fleet: Fleet) -> None:
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    engines = agent.engines()

    agent.kill()

    assert engines
    wait_until_gone(engines)
    # The broker tells its last will.
    fleet.wait_until_offline(agent)
    agent.start()
    fleet.wait_until_online(agent)
    fleet.wait_until_serving(agent, "digits@1")


def wait_for_restarts(fleet: Fleet, agent: Agent, count: int) -> None:
    wait_for("a report", lambda: fleet.health(agent).get("engine_restarts") == count, 30)


def divide(agent: Agent, number: int, divisor: int) -> tuple[str, int]:
    """Return which version answered, and its answer."""
    tensors = {"number": number, "divisor": divisor}
    body = {
        "inputs": [
            {"name": name, "shape": [1], "datatype": "INT64", "data": [value]}
            for name, value in tensors.items()
        ]
    }
    connection = http.client.HTTPConnection(urlsplit(agent.url).netloc, timeout=20)
    connection.request("POST", "/v2/models/ratio/infer", json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 200, answer
    return answer["model_version"], answer["outputs"][0]["data"][0]


def crash(agent: Agent) -> None:
    """Have the model crash, and wait until an engine answers again."""
    engine = agent.engine()
    try:
        divide(agent, LOWEST, -1)
    except (ConnectionError, http.client.HTTPException):
        assert platform.machine() == "x86_64"
    else:
        # Other processors do have an answer to it, so a signal stands in for theirs.
        assert platform.machine() != "x86_64"
        os.kill(engine.pid, signal.SIGFPE)
    agent.wait_until_replaced(engine)
    wait_for("an answer", lambda: divide(agent, 7, 2)[1] == 3)
