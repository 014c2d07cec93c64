"""Chunks from an HTTPS source, told as stories of one device."""

import pytest

from agent.core import events as ev
from agent.core.download import SOURCE_SILENCE_S
from agent.core.source import FIRST_REST_S
from tests.agent.core.world import Made, Source, World, champion_of, make_release

CACHE, CDN = "https://cache.example/models/{digest}", "https://cdn.example/{digest}"


@pytest.fixture
def world() -> World:
    return World()


def wanted(world: World, *sources: str) -> Made:
    made = world.add(make_release(1, sources=sources))
    world.want(made, "r-1")
    return made


def until_asked(world: World) -> None:
    """Go on until a source was asked for something."""
    world.connect()
    for _ in range(200):
        if world.ranges:
            return
        world.go_on(1)
    raise AssertionError("no source was asked")


def data_from_broker(world: World, made: Made) -> list[int]:
    """Return the chunks of the weights that the broker was asked for."""
    weights = next(offer for offer in made.offers if offer.chunks > 2)
    return [n for index, part, n in world.fetched if part == "data" and index == weights.index]


def test_what_a_source_has_is_not_asked_of_the_broker(world: World) -> None:
    made = wanted(world, CACHE)

    world.settle()

    assert champion_of(world) == 1
    assert data_from_broker(world, made) == []
    weights = next(offer for offer in made.offers if offer.chunks > 2)
    assert (CACHE.replace("{digest}", weights.transfer[7:]), 0, weights.chunks) in world.ranges


def test_a_source_that_stops_midway_loses_no_chunk_and_the_broker_sends_the_rest(
    world: World,
) -> None:
    made = wanted(world, CACHE)
    world.source = "stops midway"

    world.settle()

    weights = next(offer for offer in made.offers if offer.chunks > 2)
    by_source = world.ranges[0][2] // 2
    assert champion_of(world) == 1
    assert sorted(data_from_broker(world, made)) == list(range(by_source, weights.chunks))
    assert world.state.transfer_bytes == sum(offer.transfer_bytes for offer in made.offers)


@pytest.mark.parametrize("conduct", ["lies", "fails", "silent"])
def test_a_bad_source_is_left_for_the_broker_and_not_asked_again_at_once(
    world: World, conduct: Source
) -> None:
    made = wanted(world, CACHE)
    world.source = conduct
    before = world.mono

    world.settle()

    assert champion_of(world) == 1
    assert len(world.ranges) == 1
    assert len(data_from_broker(world, made)) == len(set(data_from_broker(world, made))) > 2
    assert world.mono - before < SOURCE_SILENCE_S + 5
    assert any("source https://cache.example:" in line for line in world.log)


def test_a_second_source_is_asked_before_the_broker(world: World) -> None:
    wanted(world, CACHE, CDN)
    world.source = "fails"
    until_asked(world)
    world.go_on(1)
    world.source = "good"

    world.settle()

    assert champion_of(world) == 1
    assert world.ranges[0][0].startswith("https://cache.example/")
    assert world.ranges[1][0].startswith("https://cdn.example/")


def test_a_source_that_recovered_is_asked_again_after_its_rest(world: World) -> None:
    wanted(world, CACHE)
    world.source = "fails"
    until_asked(world)
    world.go_on(1)
    world.network.clear()
    world.source = "good"

    world.advance(FIRST_REST_S)
    world.settle()

    assert champion_of(world) == 1
    assert len(world.ranges) > 1
    assert world.state.sources_resting == {}


def test_a_source_that_fails_again_and_again_rests_longer_each_time(world: World) -> None:
    wanted(world, CACHE)
    world.source = "fails"
    until_asked(world)
    rests = []

    for _ in range(3):
        world.network = [e for e in world.network if isinstance(e, ev.SourceFailed)]
        world.go_on(1)
        rests.append(round(_rest(world)))
        world.network.clear()
        world.advance(_rest(world))

    assert rests == [30, 60, 120]


def _rest(world: World) -> float:
    """Return how long the source still rests."""
    return max((until - world.mono for _, until in world.state.sources_resting.values()), default=0)


def test_without_a_broker_a_download_from_a_source_goes_on(world: World) -> None:
    made = wanted(world, CACHE)
    until_asked(world)
    frames = [event for event in world.network if isinstance(event, ev.SourceFrame)]

    world.disconnect()
    world.network += frames
    world.go_on(len(frames))

    assert data_from_broker(world, made) == []
    assert world.state.transfer_bytes >= sum(len(event.frame.payload) for event in frames)


def test_frames_of_a_source_that_was_left_are_welcome_if_they_are_right(world: World) -> None:
    wanted(world, CACHE)
    until_asked(world)
    frames = [event for event in world.network if isinstance(event, ev.SourceFrame)]
    world.network.clear()
    world.give(ev.SourceFailed(frames[0].url, "cut"))
    before = world.state.transfer_bytes

    world.give(frames[0])

    assert world.state.transfer_bytes == before + len(frames[0].frame.payload)


def test_a_cap_holds_for_sources_too(world: World) -> None:
    made = world.add(make_release(1, sources=(CACHE,)))
    world.want(made, "r-1")
    world.state.settings = type(world.state.settings)(
        **{**{f: getattr(world.state.settings, f) for f in world.state.settings.__slots__},
           "rate_bytes_s": 1024}
    )  # fmt: skip

    world.settle()

    assert champion_of(world) == 1
    assert max(count for _, _, count in world.ranges) == 1
