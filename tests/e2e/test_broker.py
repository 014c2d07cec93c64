"""Brokers and controllers that die in the middle of a rollout, or are not there yet."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Broker, start_mosquitto
from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from tests.e2e.models import MEBIBYTE, write_big_model
from tests.e2e.wiretap import Wiretap
from wire.codec import decode
from wire.topics import Kind, Topic
from wire.twin import Reported, Status

SLOW = {"bytes_per_s": 3 * MEBIBYTE}
AWAY_S = 1.0


def test_a_rollout_outlives_a_killed_broker(fleet: Fleet, tmp_path: Path) -> None:
    broker = fleet.broker
    assert isinstance(broker, Broker)
    agents, rollout = fetching(fleet, tmp_path)

    with App(agents[0].url, rate=25) as app:
        broker.kill()
        time.sleep(AWAY_S)
        broker.start()
        view = fleet.wait_until_over(rollout)

    assert view.status == "completed", view.because
    assert app.answered and not app.broken and not app.refused
    for agent in agents:
        fleet.wait_until_online(agent)
        fleet.wait_until_serving(agent, "big@1")
    # Whatever the broker forgot was told it again.
    with Wiretap(broker.url) as tap:
        # And what fires, which is nothing.
        wait_for("what is retained", lambda: len(tap.retained) == 3 * len(agents) + 1, 30)
    for agent in agents:
        status = decode(Status, tap.retained[Topic(Kind.STATUS, agent.id)])
        reported = decode(Reported, tap.retained[Topic(Kind.REPORTED, agent.id)])
        assert status.online
        assert [s.model for s in reported.serving] == ["digits", "big"]
    # And nobody is deaf.
    fleet.push(SAMPLES / "digits-2")
    fleet.rollout("digits@2")
    # What nobody acknowledged is told again after a while, and counts once.
    fleet.wait_for_requests(agents[0], app.answered)


def test_a_rollout_outlives_a_killed_controller(tmp_path: Path, both: Fleet) -> None:
    fleet = both
    agents, rollout = fetching(fleet, tmp_path)

    with App(agents[0].url, rate=25) as app:
        fleet.controller.kill()
        time.sleep(AWAY_S)
        fleet.controller.start()
        view = fleet.wait_until_over(rollout)

    assert view.status == "completed", view.because
    assert app.answered and not app.broken and not app.refused
    for agent in agents:
        fleet.wait_until_serving(agent, "big@1")
    fleet.push(SAMPLES / "digits-2")
    fleet.rollout("digits@2")
    fleet.wait_for_requests(agents[0], app.answered)


def test_an_agent_without_a_broker_serves_what_it_has_and_joins_later(fleet: Fleet) -> None:
    broker = fleet.broker
    assert isinstance(broker, Broker)
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    agent.kill()
    broker.kill()

    agent.start()
    with App(agent.url) as app:
        app.wait_for_answers(50)
        assert f"no broker at {broker.url}: " in agent.said()
        broker.start()
        fleet.wait_until_connected()
        fleet.wait_until_online(agent)
        fleet.push(SAMPLES / "digits-2")
        fleet.rollout("digits@2")

    fleet.wait_until_serving(agent, "digits@2")
    assert not app.refused
    fleet.wait_for_requests(agent, app.answered)


@pytest.fixture(params=["own broker", "embedded broker"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose controller dies alone, and one whose broker dies with it."""
    broker = start_mosquitto(tmp_path) if request.param == "own broker" else "nats"
    with Fleet(tmp_path, broker) as fleet:
        yield fleet


def fetching(fleet: Fleet, tmp_path: Path) -> tuple[list[Agent], str]:
    """Return two agents that serve digits and are in the middle of fetching `big@1`."""
    agents = [fleet.agent(id, transfer=SLOW) for id in ("cam-1", "cam-2")]
    for agent in agents:
        fleet.wait_until_online(agent)
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    fleet.push(write_big_model(tmp_path / "big.onnx", 12))
    rollout = fleet.start_rollout("big@1")
    for agent in agents:
        agent.wait_until_fetched(4 * MEBIBYTE)
    return agents, rollout
