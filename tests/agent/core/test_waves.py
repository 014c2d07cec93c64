"""When a device leaves the topic that a whole wave hears, and when it does not."""

from dataclasses import replace

import pytest

from agent.core import actions as do
from agent.core import events as ev
from agent.core import fetching
from agent.core.download import CATCH_UP_S
from agent.core.fetching import HOLD_AFTER_S, LAG_S
from tests.agent.core.world import CHUNK, World, champion_of, make_release
from wire.transfer import ChunkFrame


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A device that lost the first chunks of a model it fetches, with a report under way."""
    world = World()
    monkeypatch.setattr(fetching, "LAG_BYTES", 1.5 * world.state.settings.window_chunks * CHUNK)
    world.connect()
    world.want(world.add(make_release(1)), "r-1")
    for _ in range(200):
        world.go_on(1)
        download = world.state.download
        if download is not None and download.offer.chunks > 2 and download.part == "data":
            world.network.clear()
            return world
    raise AssertionError("no model is being fetched")


def hear(world: World, count: int) -> list[do.Action]:
    """Give the device frames that others asked for, of no use to it."""
    download = world.state.download
    assert download is not None
    frame = ev.FramesCame(download.offer.index, (ChunkFrame("data", 0, bytes(CHUNK + 1)),))
    return [action for _ in range(count) for action in world.give(frame)]


def left(world: World) -> bool:
    download = world.state.download
    return download is not None and download.own


def beyond_a_window(world: World) -> int:
    """Return how many frames are more than a device itself ever has under way."""
    return 2 * world.state.settings.window_chunks


def lag(world: World) -> list[do.Action]:
    """Let the device find that the broker holds back more than it asked for."""
    actions = world.give(ev.Ticked())
    world.state.report_wanted = True
    actions += hear(world, beyond_a_window(world))
    world.mono += LAG_S + 0.1
    return actions + hear(world, 1)


def listened(actions: list[do.Action]) -> list[bool]:
    return [action.own for action in actions if isinstance(action, do.Listen)]


def asked(actions: list[do.Action]) -> list[do.Action]:
    return [action for action in actions if isinstance(action, do.PublishFetch)]


def test_a_device_for_which_the_broker_holds_too_much_lets_the_others_pass(world: World) -> None:
    away = lag(world)

    meanwhile = hear(world, 1) + world.give(ev.ReportHeard()) + hear(world, 1)
    back = world.give(ev.ReportHeard())
    world.settle()

    assert listened(away) == [True]
    assert not listened(meanwhile) and not asked(meanwhile)
    assert listened(back) == [False]
    assert not left(world)
    assert champion_of(world) == 1


def test_a_device_that_catches_up_waits_for_no_report_that_never_comes(world: World) -> None:
    lag(world)
    world.mono += CATCH_UP_S + 0.1

    actions = world.give(ev.Ticked())

    assert listened(actions) == [False]
    world.settle()
    assert champion_of(world) == 1


def test_a_device_that_catches_up_hears_the_others_after_a_reconnect(world: World) -> None:
    lag(world)
    world.mono += 0.1

    world.state.report_owed_at = None
    world.disconnect()
    world.connect()

    assert not left(world)
    world.settle()
    assert champion_of(world) == 1


def test_a_device_that_falls_behind_asks_the_others_to_wait(world: World) -> None:
    early = world.give(ev.Ticked())
    world.mono += HOLD_AFTER_S + 0.1

    actions = hear(world, world.state.settings.window_chunks + 1)

    assert not any(a.request.hold for a in early if isinstance(a, do.PublishFetch))
    holds = [a.request for a in actions if isinstance(a, do.PublishFetch) and a.request.hold]
    assert [request.numbers() for request in holds] == [[]]


def test_a_device_whose_reports_are_heard_stays(world: World) -> None:
    hear(world, beyond_a_window(world))
    world.give(ev.ReportHeard())

    world.mono += LAG_S + 0.1
    hear(world, 1)

    assert not left(world)


def test_a_slow_line_alone_is_no_reason_to_leave(world: World) -> None:
    world.mono += 10 * LAG_S
    hear(world, world.state.settings.window_chunks)

    assert not left(world)


def test_who_is_thrown_out_for_reading_too_slowly_leaves(world: World) -> None:
    hear(world, 5)
    world.mono += LAG_S + 0.1

    world.disconnect()

    assert left(world)
    world.settle()
    assert champion_of(world) == 1


def test_a_broker_that_restarts_scatters_no_wave(world: World) -> None:
    hear(world, 5)
    world.give(ev.ReportHeard())
    world.mono += LAG_S + 0.1

    world.disconnect()

    assert not left(world)


@pytest.mark.parametrize("by", ["the controller", "the device"])
def test_where_no_topic_may_be_shared_a_device_never_listens_to_it(by: str) -> None:
    world = World()
    made = world.add(make_release(1))
    asked: list[do.Action] = []
    if by == "the device":
        world.state.settings = replace(world.state.settings, shared=False)
        desired = world.want(made, "r-1")
    else:
        desired = world.want(made, "r-1").model_copy(update={"shared": False})
    world.network.clear()
    world.connect()
    world.network.clear()

    asked += world.give(ev.DesiredCame(desired))
    for _ in range(300):
        asked += world.give(world.local.pop(0) if world.local else (
            world.network.pop(0) if world.network else ev.Ticked()
        ))  # fmt: skip

    listened = [action.own for action in asked if isinstance(action, do.Listen)]
    requested = [a.request.own for a in asked if isinstance(a, do.PublishFetch)]
    assert champion_of(world) == 1
    assert listened and all(listened)
    assert requested and all(requested)
