"""Twenty agents through all that goes wrong at once, and back from a release that was wrong."""

import random
import time
from pathlib import Path

from fleet.core.views import RolloutRequest, RolloutView
from tests.brokers import start_mosquitto
from tests.e2e.harness import NO_PROBATION, SAMPLES, Agent, Fleet, wait_for
from tests.e2e.line import Line, Storm
from tests.e2e.models import write_challenger
from tests.e2e.wiretap import Wiretap
from wire.topics import Kind, Topic

DEVICES = 20
LONG_S = 180.0
QUIET_S = 3.0
RETAINED = (Kind.DESIRED, Kind.REPORTED)


def start(fleet: Fleet, release: str) -> str:
    request = RolloutRequest(release=release, waves=("5", "100%"), probation=NO_PROBATION)
    return fleet.client.start_rollout(request).id


def wait_until_some_committed(fleet: Fleet, rollout: str, least: int) -> None:
    def some() -> bool:
        counts = [wave.counts.get("committed", 0) for wave in fleet.client.rollout(rollout).waves]
        return sum(counts) >= least

    wait_for(f"{least} devices to commit", some, LONG_S)


def over(fleet: Fleet, rollout: str) -> RolloutView:
    return fleet.wait_until_over(rollout, LONG_S)


def serving(fleet: Fleet, agents: list[Agent]) -> set[tuple[int, ...]]:
    devices = {device.id: device for device in fleet.client.devices()}
    return {tuple(s.version for s in devices[agent.id].serving) for agent in agents}


def remember(fleet: Fleet) -> dict[Topic, bytes]:
    """Return what the broker keeps for devices and of them."""
    with Wiretap(fleet.broker.url) as tap:  # type: ignore[union-attr]

        def all_there() -> bool:
            return sum(topic.kind is Kind.DESIRED for topic in tap.retained) >= DEVICES

        wait_for("the retained messages", all_there)
        return {topic: body for topic, body in tap.retained.items() if topic.kind in RETAINED}


def test_twenty_devices_come_through_storms_and_back_from_a_wrong_release(tmp_path: Path) -> None:
    broker = start_mosquitto(tmp_path)
    with Fleet(tmp_path, broker) as fleet, Line(broker.port) as line:
        agents = [
            fleet.agent(f"cam-{number}", broker={"url": line.url})
            for number in range(1, DEVICES + 1)
        ]
        for agent in agents:
            fleet.wait_until_online(agent, LONG_S)
        for version in (1, 2, 3):
            fleet.push(SAMPLES / f"digits-{version}")

        # The broker dies while a rollout is under way, with all that it kept.
        first = start(fleet, "digits@1")
        wait_until_some_committed(fleet, first, 1)
        broker.kill()
        time.sleep(1.0)
        broker.start()
        assert over(fleet, first).because == "20 of 20 devices committed"
        old = [remember(fleet)]

        # The line flaps, and the controller dies in the middle of a wave.
        with Storm(line, seed=6) as storm:
            second = start(fleet, "digits@2")
            wait_until_some_committed(fleet, second, 3)
            fleet.controller.kill()
            fleet.controller.start()
            fleet.wait_until_connected()
            wait_for("every kind of fault", lambda: len(set(storm.seen)) == 6, LONG_S)
        ended = over(fleet, second)
        assert (ended.status, ended.because) == ("completed", "20 of 20 devices committed")
        assert line.faults >= DEVICES / 2
        old.append(remember(fleet))

        # A release that crashes is called off in its first wave and let out no more.
        crash = write_challenger(tmp_path / "crash.onnx", "crashes", at_once=True)
        bad = fleet.push(crash, "--name", "digits", "--version", "4")
        third = over(fleet, start(fleet, bad))
        assert third.status == "aborted"
        assert sum(wave.open for wave in third.waves) == 1
        assert "in quarantine" in fleet.cli("rollout", "start", bad, code=1)

        # One that works but is wrong reaches all; it is taken back while two devices are away.
        fourth = over(fleet, start(fleet, "digits@3"))
        assert fourth.because == "20 of 20 devices committed"
        away, here = agents[:2], agents[2:]
        for agent in away:
            agent.kill()
        for agent in away:
            fleet.wait_until_offline(agent)
        fleet.command("rollout", "rollback", fourth.id, "--reason", "wrong")
        wait_for("the others back", lambda: serving(fleet, here) == {(2,)}, LONG_S)
        recall = {each.id: each.recall for each in fleet.client.rollout(fourth.id).devices}
        assert {recall[agent.id] for agent in away} == {"offline"}
        assert serving(fleet, away) == {(3,)}
        for agent in away:
            agent.start()
        back = over(fleet, fourth.id)
        assert back.because == "by the operator: wrong; 20 of 20 devices on the release before"
        assert serving(fleet, agents) == {(2,)}

        replay(fleet, old, seed=6)
        check_story(fleet, first, second, third.id, fourth.id)


def replay(fleet: Fleet, old: list[dict[Topic, bytes]], seed: int) -> None:
    """Retained messages of older rollouts, in any order and twice, change nothing."""
    before = state(fleet)
    messages = [item for kept in old for item in kept.items()] * 2
    random.Random(seed).shuffle(messages)

    with Wiretap(fleet.broker.url, "farflung/none") as liar:  # type: ignore[union-attr]
        for topic, body in messages:
            liar.publish(topic, body, retain=True)
    time.sleep(QUIET_S)

    assert state(fleet) == before
    # Not even for who hears them first of all after a start.
    agent = fleet.agents[0]
    assert agent.stop() == 0
    agent.start()
    fleet.controller.kill()
    fleet.controller.start()
    fleet.wait_until_connected()
    fleet.wait_until_serving(agent, "digits@2", LONG_S)
    time.sleep(QUIET_S)
    assert state(fleet) == before


def state(fleet: Fleet) -> object:
    devices = {d.id: [(s.model, s.version) for s in d.serving] for d in fleet.client.devices()}
    return devices, [(each.id, each.status, each.because) for each in fleet.client.rollouts()]


def check_story(fleet: Fleet, first: str, second: str, third: str, fourth: str) -> None:
    """`fleet events` tells what happened, in order."""
    told = [(e.subject, e.text) for e in reversed(fleet.client.events(1000))]
    chapters = [
        (first, "running"),
        ("broker", "connected"),
        (first, "completed; 20 of 20 devices committed"),
        (second, "completed; 20 of 20 devices committed"),
        (third, "rolling_back"),
        ("digits@4", "in quarantine"),
        (third, "aborted"),
        (fourth, "completed; 20 of 20 devices committed"),
        (fourth, "rolling_back; by the operator: wrong"),
        (fourth, "aborted"),
    ]
    rest = iter(told)
    for subject, words in chapters:
        assert any(s == subject and words in text for s, text in rest), (subject, words, told)
