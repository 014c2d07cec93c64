"""What a trial is allowed beside a champion."""

from agent.core import actions as do
from tests.agent.core.world import World, champion_of, make_release


def started(world: World) -> list[do.StartEngine]:
    """Let the world note every engine that is started from now on."""
    orders: list[do.StartEngine] = []
    start = world._start_engine

    def note(action: do.StartEngine) -> None:
        orders.append(action)
        start(action)

    world._start_engine = note  # type: ignore[method-assign]
    return orders


def test_a_trial_beside_a_champion_is_held_to_the_memory_that_may_be_taken() -> None:
    world = World(memory_reserve_bytes=10**8)
    orders = started(world)

    for version in (1, 2):
        world.want(world.add(make_release(version)), f"r-{version}")
        world.settle()

    assert champion_of(world) == 2
    first, second = [order for order in orders if order.golden]
    assert first.memory_bytes == 0  # nobody is there to suffer
    assert second.memory_bytes == world.memory_bytes - 10**8
    assert second.background


def test_a_restart_of_the_champions_is_held_to_nothing() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1")
    world.settle()
    orders = started(world)

    world.crash()
    world.settle()

    assert [order.memory_bytes for order in orders] == [0]
