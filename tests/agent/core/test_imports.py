"""Releases that come in a bundle, told as stories of one device."""

import pytest

from agent.core import actions as do
from agent.core import events as ev
from agent.core.imports import KEPT_S, MAX_IMPORTS
from tests.agent.core.world import World, champion_of, make_release, phase_of
from wire.twin import Phase, Probation, Reason

DAY = 86_400.0


@pytest.fixture
def world() -> World:
    return World()


def at_version_1(world: World) -> None:
    world.want(world.add(make_release(1)), "r-1")
    world.settle()
    world.fetched.clear()


def test_a_release_that_was_imported_is_not_fetched(world: World) -> None:
    made = world.add(make_release(1))
    world.bring(made)
    world.settle()

    world.want(made, "r-1")
    world.settle()

    assert (champion_of(world), world.fetched) == (1, [])
    assert world.state.transfer_bytes == 0


def test_an_import_alone_changes_nothing_that_serves(world: World) -> None:
    at_version_1(world)

    world.bring(world.add(make_release(2)))
    world.settle()

    assert champion_of(world) == 1
    assert phase_of(world) == (Phase.COMMITTED, None)


def test_an_import_outlives_garbage_collections_and_restarts(world: World) -> None:
    made = world.add(make_release(2))
    world.bring(made)
    world.settle()

    at_version_1(world)
    world.crash()
    world.settle()

    assert set(made.bodies) <= set(world.blobs)


def test_an_import_in_the_middle_of_a_download_ends_the_download(world: World) -> None:
    made = world.add(make_release(1))
    world.connect()
    world.want(made, "r-1")
    while world.state.transfer_bytes < 2048:
        world.go_on(1)
    before = world.state.transfer_bytes

    world.network.clear()
    world.bring(made)
    world.settle()

    assert champion_of(world) == 1
    assert world.state.transfer_bytes == before


def test_a_later_import_of_a_model_takes_the_place_of_the_earlier(world: World) -> None:
    first, second = world.add(make_release(1)), world.add(make_release(2))
    world.bring(first)
    world.settle()

    world.bring(second)
    world.settle()

    assert set(world.blobs) == set(second.bodies)


def test_an_import_that_nobody_asks_for_goes_after_30_days(world: World) -> None:
    world.bring(world.add(make_release(1)))
    world.settle()
    world.advance(KEPT_S - DAY)
    world.crash()
    kept = set(world.blobs)

    world.advance(DAY)
    world.crash()

    assert kept and not world.blobs and not world.imports


def test_an_import_that_serves_is_one_no_longer(world: World) -> None:
    made = world.add(make_release(1))
    world.bring(made)
    world.want(made, "r-1")

    world.settle()

    assert world.imports == {}
    assert set(world.journal.champions["digits"].files) <= set(world.blobs)


def test_of_many_imports_the_latest_are_kept(world: World) -> None:
    for number in range(MAX_IMPORTS + 1):
        world.wall += 1
        world.bring(world.add(make_release(1, model=f"model-{number}")))
        world.settle()

    assert len(world.imports) == MAX_IMPORTS
    assert "model-0" not in world.imports


def test_an_order_in_a_bundle_is_followed_without_controller_or_broker(world: World) -> None:
    world.bring(world.add(make_release(1)), "local-1")

    world.go_on(30)

    assert not world.connected
    assert champion_of(world) == 1
    assert world.journal.champions["digits"].rollout == "local-1"


def test_a_crash_before_the_order_is_journalled_does_not_lose_it(world: World) -> None:
    world.bring(world.add(make_release(1)), "local-1")

    world.crash()
    world.go_on(30)

    assert champion_of(world) == 1
    assert world.imports == {}


def test_an_order_is_taken_once(world: World) -> None:
    world.bring(world.add(make_release(1, "fails golden")), "local-1")
    world.go_on(30)
    ended = phase_of(world)

    world.crash()
    world.settle()

    assert ended == phase_of(world) == (Phase.FAILED, Reason.GOLDEN_MISMATCH)
    assert world.journal.deployments["digits"].attempts == 1


def test_the_same_document_again_does_not_displace_a_bundles_order(world: World) -> None:
    at_version_1(world)
    world.bring(world.add(make_release(2)), "local-1")
    world.settle()

    world.disconnect()
    world.settle()

    assert champion_of(world) == 2


def test_a_document_about_another_model_does_not_displace_a_bundles_order(world: World) -> None:
    at_version_1(world)
    world.bring(world.add(make_release(2)), "local-1")
    world.settle()

    world.want(world.add(make_release(1, model="faces")), "r-2")
    world.settle()

    assert (champion_of(world), champion_of(world, "faces")) == (2, 1)


def test_a_later_wish_of_the_controller_displaces_a_bundles_order(world: World) -> None:
    at_version_1(world)
    world.bring(world.add(make_release(2)), "local-1")
    world.settle()

    world.want(world.add(make_release(3)), "r-2", probation=Probation(labelled_pairs=0))
    world.settle()

    assert champion_of(world) == 3
    assert world.journal.local == {}


def test_a_bundles_order_ends_a_deployment_under_way(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2", probation=Probation(deadline_s=90_000))
    world.go_on(3)

    world.bring(world.add(make_release(3)), "local-1")
    world.settle()

    assert champion_of(world) == 3


def test_a_bundle_that_comes_while_the_agent_stops_waits_for_the_next(world: World) -> None:
    made = world.add(make_release(1))
    world.give(ev.StopAsked())

    world.bring(made, "local-1")
    actions = world.give(ev.BundleReady())
    world.crash()
    world.go_on(30)

    assert do.TakeImports() not in actions
    assert champion_of(world) == 1
