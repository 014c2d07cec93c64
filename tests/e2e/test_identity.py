"""Who is who: two agents with one id, and orders by somebody who has none to give."""

import time

from tests.brokers import Broker
from tests.e2e.harness import SAMPLES, Fleet, wait_for
from tests.e2e.wiretap import Wiretap
from wire.codec import decode, encode
from wire.command import Command
from wire.seal import Envelope, Sealer
from wire.topics import Kind, Topic
from wire.twin import Desired

STRANGER = Sealer(b"thirty-two bytes nobody trusts..")


def test_of_two_agents_with_one_id_the_later_one_leaves(fleet: Fleet) -> None:
    [first] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    time.sleep(1.1)  # They tell when they started in whole seconds.

    second = fleet.agent("cam-1")
    wait_for("the later one to leave", lambda: "leaving the broker" in second.said(), 20)
    wait_for("the clash to be seen", lambda: fleet.device(first).clash, 30)
    shown = fleet.cli("device", "show", "cam-1")
    fleet.rollout("digits@1")

    device = fleet.wait_until_serving(first, "digits@1")
    assert device.api == (first.url,)
    assert "started before this one" in second.said()
    assert "give one of the two devices another `device` in its agent.toml" in second.said()
    assert second.running and not second.engines()
    assert "it started later and should yield" in device.refusals[0]
    assert "leaving the broker" not in first.said()
    assert "clash: two agents" in shown
    assert "two agents speak with this id" in fleet.cli("events")


def test_orders_by_a_stranger_change_nothing_and_are_reported(fleet: Fleet) -> None:
    mine, other = fleet.join("cam-1", "cam-2")
    for version in (1, 2):
        fleet.push(SAMPLES / f"digits-{version}")
    fleet.rollout("digits@1")
    desired = Topic(Kind.DESIRED, mine.id)
    with Wiretap(url_of(fleet)) as stranger:
        wait_for("orders", lambda: desired in stranger.latest)
        old = stranger.latest[desired]
        fleet.rollout("digits@2")
        current = stranger.latest[desired]
        theirs = stranger.latest[Topic(Kind.DESIRED, other.id)]
        assert old != current
        before = fleet.wait_until_serving(mine, "digits@2")

        # What is old may come late from any broker, so it is passed over in silence.
        for order in (old, theirs, unsigned(current), forged(current), b"\x00\xffgarbage"):
            stranger.publish(desired, order, retain=True)
        wait_for("refusals", lambda: len(fleet.device(mine).refusals) == 4, 30)

        after = fleet.device(mine)
        expected = ("got cam-2", "got one by nobody", "got one by ", "expected JSON")
        for words, refusal in zip(expected, after.refusals, strict=True):
            assert words in refusal and "/cam-1/desired: " in refusal
        assert after.serving == before.serving
        assert after.reported_revision == after.desired_revision == before.desired_revision
        assert after.deployments == before.deployments

        # What it finds retained at its next start is no better, and what is right comes through.
        mine.kill()
        mine.start()
        wait_for("its refusal", lambda: mine.said().count("expected JSON") == 2, 30)
        fleet.wait_until_serving(mine, "digits@2")
        fleet.rollout("digits@1")
        fleet.wait_until_serving(mine, "digits@1")


def test_a_command_is_obeyed_once_and_only_if_the_controller_gave_it(fleet: Fleet) -> None:
    [mine] = fleet.join("cam-1")
    with Wiretap(url_of(fleet)) as stranger:
        assert "farflung" in fleet.cli("device", "cmd", mine.id, "ping")
        [heard] = [topic for topic in stranger.heard if topic.kind is Kind.COMMAND]
        result = Topic(Kind.RESULT, mine.id, heard.verb, heard.id)
        command = stranger.latest[heard]
        own = Command(device=mine.id, id="c-1", verb="ping", expires_at=int(time.time()) + 60)

        for _ in range(3):
            stranger.publish(heard, command)
        stranger.publish(Topic(Kind.COMMAND, mine.id, "ping", "c-1"), STRANGER.seal(own))
        stranger.publish(Topic(Kind.COMMAND, mine.id, "restart-engine", heard.id), command)
        wait_for("refusals", lambda: len(fleet.device(mine).refusals) == 2, 30)

        assert stranger.heard[heard] == 4
        assert stranger.heard[result] == 1
        assert [t for t in stranger.heard if t.kind is Kind.RESULT] == [result]
        forgery, misplaced = fleet.device(mine).refusals
        assert "Command: expected a signature by" in forgery
        assert f"command: expected restart-engine {heard.id} as in its topic" in misplaced


def url_of(fleet: Fleet) -> str:
    assert isinstance(fleet.broker, Broker)
    return fleet.broker.url


def empty(order: bytes) -> Desired:
    """Return what takes every release from the device, and looks newer than `order`."""
    current = Desired.model_validate(decode(Envelope, order).signed)
    return current.model_copy(update={"revision": current.revision + 100, "releases": ()})


def unsigned(order: bytes) -> bytes:
    signed = empty(order).model_dump(mode="json", exclude_none=True)
    return encode(Envelope(kind="Desired", signed=signed, signatures=()))


def forged(order: bytes) -> bytes:
    return STRANGER.seal(empty(order))
