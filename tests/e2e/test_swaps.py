"""Engines that follow each other under load: with and without room for two, crashes, hangs."""

import http.client
import json
import random
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from tests.e2e.models import write_looper
from wire.twin import Phase, Probation, Reason

SEED = 4
ENDLESS = 2**61


def test_a_story_of_swaps_and_a_crash_loses_only_what_the_crash_had_in_hand(
    default_fleet: Fleet,
) -> None:
    fleet, chance = default_fleet, random.Random(SEED)
    [agent] = fleet.join("cam-1")
    for version in (1, 2, 3):
        fleet.push(SAMPLES / f"digits-{version}")
    fleet.rollout("digits@1")
    story = [*chance.choices(("digits@1", "digits@2", "digits@3", "fresh"), k=6), "crash"]
    chance.shuffle(story)

    lost = 0
    with App(agent.url, seed=1) as patient, App(agent.url, seed=2, keep_alive=False) as hasty:
        for turn in story:
            before = len(patient.broken) + len(hasty.broken)
            engine = agent.engine()
            match turn:
                case "crash":
                    engine.kill()
                    agent.wait_until_replaced(engine)
                case "fresh":
                    fleet.cli("device", "cmd", "cam-1", "restart-engine")
                    agent.wait_until_replaced(engine)
                case release:
                    fleet.rollout(release)
                    fleet.wait_until_serving(agent, release)
            patient.wait_for_answers(20)
            hasty.wait_for_answers(20)
            broken = [*patient.broken, *hasty.broken]
            lost += len(broken) - before
            assert turn == "crash" or len(broken) == before, (story, turn, broken)

    assert lost <= 2, story
    assert not patient.refused and not hasty.refused
    assert max(patient.longest_wait_s, hasty.longest_wait_s) < 10


def test_on_a_device_without_room_for_two_apps_wait_for_the_next_engine(
    default_fleet: Fleet,
) -> None:
    fleet = default_fleet
    # A reserve that no machine has: a second engine never fits.
    agent = fleet.agent("cam-1", engine={"reserve_mb": 1_000_000_000})
    fleet.wait_until_online(agent)
    for version in (1, 2):
        fleet.push(SAMPLES / f"digits-{version}")
    fleet.rollout("digits@1")
    most = Most(agent)

    with App(agent.url, seed=1) as patient, App(agent.url, seed=2, keep_alive=False) as hasty:
        for release in ("digits@2", "digits@1"):
            rollout = fleet.start_rollout(release)
            wait_for("the end of the rollout", partial(most.look, fleet, rollout))
            fleet.wait_until_serving(agent, release)
        engine = agent.engine()
        fleet.cli("device", "cmd", "cam-1", "restart-engine")
        agent.wait_until_replaced(engine)
        patient.wait_for_answers(20)
        hasty.wait_for_answers(20)
        judged = fleet.start_rollout("digits@2", probation=Probation(labelled_pairs=300))
        view = fleet.wait_until_over(judged)

    for app in (patient, hasty):
        assert not app.broken and not app.refused
        assert set(app.versions) == {1, 2}
    assert most.engines == 1
    assert "a second engine needs about" in agent.said()
    # With a probation wanted, that is no way: nobody could compare the two.
    assert view.status == "aborted"
    [deployment] = fleet.device(agent).deployments
    assert (deployment.phase, deployment.reason) == (Phase.FAILED, Reason.OUT_OF_MEMORY)
    fleet.wait_until_serving(agent, "digits@1")


class Most:
    """How many engines of an agent were seen at once."""

    def __init__(self, agent: Agent) -> None:
        self.engines = 0
        self._agent = agent

    def look(self, fleet: Fleet, rollout: str) -> bool:
        """Count; return whether the rollout is over."""
        self.engines = max(self.engines, len(self._agent.engines()))
        return fleet.client.rollout(rollout).status.final


def test_a_release_that_hangs_after_its_commit_is_stopped_and_taken_back(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = default_fleet
    agent = fleet.agent("cam-1", engine={"invoke_timeout_s": 1})
    fleet.wait_until_online(agent)
    for version in (1, 2):
        fleet.push(
            write_looper(tmp_path / f"looper-{version}.onnx", careful=version == 1),
            "--name",
            "looper",
        )
        fleet.rollout(f"looper@{version}")
    fleet.wait_until_serving(agent, "looper@2")
    engine = agent.engine()

    began = time.monotonic()
    refusals = [turn(agent, ENDLESS) for _ in range(2)]
    took_s = time.monotonic() - began
    unharmed = turn(agent, 5)
    same = agent.engine().pid == engine.pid
    refusals.append(turn(agent, ENDLESS))
    device = fleet.wait_until_serving(agent, "looper@1")

    for status, answer in refusals:
        assert status == 500
        assert "no answer in time; the run was stopped" in answer["error"]
    assert took_s < 15
    assert unharmed[1]["outputs"][0]["data"] == [5]
    assert same
    [deployment] = device.deployments
    assert (deployment.purpose, deployment.phase) == ("fallback", Phase.COMMITTED)
    assert (deployment.version, deployment.reason) == (1, Reason.HUNG)
    assert turn(agent, ENDLESS)[1]["outputs"][0]["data"] == [1000]


def turn(agent: Agent, turns: int) -> tuple[int, Any]:
    """Return status and answer."""
    tensor = {"name": "turns", "shape": [1], "datatype": "INT64", "data": [turns]}
    connection = http.client.HTTPConnection(urlsplit(agent.url).netloc, timeout=20)
    connection.request("POST", "/v2/models/looper/infer", json.dumps({"inputs": [tensor]}))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer
