"""`plan` against what devices then really fetch, on a real broker."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fleet.core.views import RolloutRequest, RolloutStatus
from tests.brokers import start_mosquitto
from tests.fleet.test_controller import World, wait_for


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        broker = stack.enter_context(start_mosquitto(tmp_path, user="tester", password="secret"))
        yield World(tmp_path, broker, stack)


def ended(world: World, id: str) -> bool:
    return world.controller.rollout(id).status is RolloutStatus.COMPLETED


def test_devices_fetch_the_bytes_that_the_plan_told(world: World) -> None:
    old, new = world.device("cam-1"), world.device("cam-2")
    data = random.Random(5).randbytes(300_000)
    world.push_bytes(1, data)
    first = world.roll_out("digits@1", to="device=cam-1")
    wait_for(lambda: ended(world, first.id), "v1 on cam-1")
    world.push_bytes(2, data[:150_000] + b"changed" + data[150_000:])
    request = RolloutRequest(release="digits@2")

    plan = world.controller.plan_rollout(request)
    took = len(old.taken)
    second = world.controller.start_rollout(request)
    wait_for(lambda: ended(world, second.id), "v2 on both")
    again = world.controller.plan_rollout(request)

    told = {each.id: each for each in plan.forecasts}
    assert (told["cam-1"].how, told["cam-2"].how) == ("delta", "whole")
    for id, offers in (("cam-1", old.taken[took:]), ("cam-2", new.taken)):
        assert sum(offer.transfer_bytes for offer in offers) == told[id].bytes_coming
    assert told["cam-1"].bytes_coming < told["cam-1"].bytes_whole / 10
    assert plan.waves[0].bytes_coming == plan.bytes_coming
    assert {each.how for each in again.forecasts} == {"held"} and again.bytes_coming == 0


def test_a_plan_of_a_rollout_tells_nobody(world: World) -> None:
    device = world.device("cam-1")
    world.push(1)

    world.controller.plan_rollout(RolloutRequest(release="digits@1"))

    assert world.controller.rollouts() == [] and not device.desired
