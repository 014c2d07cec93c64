"""When and how fast a device fetches: windows of the day, caps, turns and holds, as stories."""

import pytest

from agent.core.manners import openings, rate, shown
from agent.core.step import next_wake
from tests.agent.core.world import Made, World, champion_of, make_release, phase_of
from wire.manners import Manners, window_minutes
from wire.twin import DeploymentReport, Phase, Reason

HOUR = 3600.0
NOON = 12 * HOUR


def world_at(local_s: float, **settings: object) -> World:
    """A device on whose clock it is this time of the day, in seconds since midnight."""
    world = World(**settings)
    world.wall += local_s - world.now().local_s
    return world


def until(world: World, phase: Phase, steps: int = 500) -> None:
    """Let things go on until the deployment is in this phase."""
    world.connect()
    for _ in range(steps):
        if world.journal.deployments and phase_of(world)[0] is phase:
            return
        world.go_on(1)
    raise AssertionError(f"never {phase}")


def quiet(world: World, seconds: float) -> int:
    """Let this much time pass; return how many chunks were asked for meanwhile."""
    before, end = len(world.fetched), world.mono + seconds
    while world.mono < end:
        world.go_on(1)
    return len(world.fetched) - before


def files_of(made: Made) -> set[str]:
    return {offer.index for offer in made.offers if offer.file != made.digest}


def report_of(world: World) -> DeploymentReport:
    return world.reports[-1].deployments[0]


# ---- windows


def test_files_wait_for_the_window_and_are_fetched_in_it() -> None:
    world = world_at(NOON)
    made = world.add(make_release(1))
    world.want(made, "r-1", manners=Manners(windows=("13:00-14:00",)))

    until(world, Phase.FETCHING)
    early = quiet(world, 3500)
    waits = report_of(world)
    world.settle()

    assert early == 0
    assert (waits.phase, waits.waiting) == (Phase.FETCHING, True)
    assert waits.detail == "waiting for its window 13:00-14:00"
    assert champion_of(world) == 1
    assert world.state.journal.deployments["digits"].detail != waits.detail


def test_what_does_not_fit_is_known_before_the_window_opens() -> None:
    world = world_at(NOON)
    world.free_bytes = 10
    world.want(world.add(make_release(1)), "r-1", manners=Manners(windows=("13:00-14:00",)))

    until(world, Phase.REJECTED)

    assert world.now().local_s < 13 * HOUR


def test_no_deadline_runs_while_the_window_is_closed() -> None:
    world = world_at(NOON)
    made = make_release(1)
    made_known = world.add(made)
    world.want(made_known, "r-1", manners=Manners(windows=("13:00-14:00",)))
    until(world, Phase.FETCHING)
    world.releases.clear()  # nobody answers any more

    quiet(world, HOUR - 10)
    before = phase_of(world)
    quiet(world, 400)

    assert before == (Phase.FETCHING, None)
    assert phase_of(world) == (Phase.TIMED_OUT, Reason.NO_PROGRESS)


def test_a_fetch_that_the_window_cut_off_goes_on_in_the_next_without_asking_twice() -> None:
    world = world_at(13 * HOUR - 5, rate_bytes_s=1024)
    made = world.add(make_release(1))
    world.want(made, "r-1", manners=Manners(windows=("12:00-13:00", "15:00-16:00")))
    until(world, Phase.FETCHING)

    quiet(world, 20)
    got, partial = report_of(world).bytes_done, set(world.listening)
    idle = quiet(world, HOUR)
    world.settle(2 * HOUR)

    assert got > 0
    assert idle == 0
    assert partial == set(), "it leaves the topic, on which others may still be served"
    assert champion_of(world) == 1
    assert len(world.fetched) == len(set(world.fetched))


def test_the_device_wakes_for_its_window_and_not_before() -> None:
    world = world_at(NOON)
    world.want(world.add(make_release(1)), "r-1", manners=Manners(windows=("18:00-19:00",)))
    until(world, Phase.FETCHING)

    wakes = 0
    while world.now().local_s < 18 * HOUR:
        wake = next_wake(world.state, world.now())
        world.advance(max(wake - world.mono, 0.001))
        while world.local:
            world.give(world.local.pop(0))
        wakes += 1

    assert wakes <= 6 * 60 * 3, "health, windows and nothing else"


def test_the_stricter_of_both_windows_counts() -> None:
    world = world_at(NOON, windows=("12:30-15:00",))
    world.want(world.add(make_release(1)), "r-1", manners=Manners(windows=("11:00-13:00",)))

    until(world, Phase.FETCHING)

    assert report_of(world).detail == "waiting for its window 12:30-13:00"
    assert quiet(world, 1790) == 0
    assert quiet(world, 30) > 0


def test_windows_that_never_meet_are_refused_with_both() -> None:
    world = world_at(NOON, windows=("01:00-05:00",))
    world.want(world.add(make_release(1)), "r-1", manners=Manners(windows=("22:00-23:00",)))

    world.settle()

    assert phase_of(world) == (Phase.REJECTED, Reason.NO_PROGRESS)
    assert "22:00-23:00 in the order and 01:00-05:00" in report_of(world).detail


@pytest.mark.parametrize(
    ("own", "ordered", "expected"),
    [
        ((), (), "00:00-00:00"),
        (("22:00-04:00",), (), "22:00-04:00"),
        (("22:00-04:00",), ("03:00-23:00",), "03:00-04:00 or 22:00-23:00"),
        (("23:00-01:00", "00:30-02:00"), (), "23:00-02:00"),
        (("01:00-02:00",), ("02:00-03:00",), ""),
    ],
)
def test_windows_meet_as_on_a_clock(
    own: tuple[str, ...], ordered: tuple[str, ...], expected: str
) -> None:
    assert shown(openings(own, ordered)) == expected


@pytest.mark.parametrize(
    "text", ["1:00-05:00", "01:00", "24:00-01:00", "01:60-02:00", "03:00-03:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a window"):
        window_minutes(text)


# ---- caps


@pytest.mark.parametrize(
    ("own", "ordered", "expected"), [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5)]
)
def test_the_stricter_cap_counts(own: int, ordered: int, expected: int) -> None:
    assert rate(own, ordered) == expected


def test_an_order_caps_a_transfer_that_is_under_way() -> None:
    world = world_at(NOON, window_chunks=1)
    made = world.add(make_release(1))
    world.want(made, "r-1", manners=Manners(bytes_per_s=1024))
    until(world, Phase.FETCHING)
    begun = world.mono

    until(world, Phase.COMMITTED, steps=2000)

    total = sum(offer.transfer_bytes for offer in made.offers if offer.index in files_of(made))
    assert world.mono - begun >= total / 1024 - 2


# ---- turns


def test_devices_of_a_wave_begin_at_moments_of_their_own() -> None:
    begun = []
    for number in range(20):
        world = World(device=f"cam-{number}")
        made = world.add(make_release(1))
        world.want(made, "r-1", manners=Manners(spread_s=100))
        world.connect()
        start = world.mono
        while not world.fetched:
            world.go_on(1)
        begun.append(world.mono - start)

    assert max(begun) < 101
    assert max(begun) - min(begun) > 50
    assert sum(moment < 50 for moment in begun) in range(4, 17)


def test_a_device_that_restarts_keeps_its_turn() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1", manners=Manners(spread_s=10_000))
    until(world, Phase.PREFLIGHT)
    turn = world.state.fetch_at

    quiet(world, 100)
    world.crash()
    world.connect()
    world.go_on(5)

    assert not world.fetched
    assert report_of(world).detail == "waiting for its turn within 10000 s"
    assert world.state.fetch_at == pytest.approx(turn, abs=1)


def test_a_clock_set_back_does_not_prolong_a_turn() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1", manners=Manners(spread_s=600))
    until(world, Phase.PREFLIGHT)

    world.wall -= 1_000_000
    world.crash()
    world.settle(700)

    assert champion_of(world) == 1


def test_devices_do_not_all_begin_the_second_their_window_opens() -> None:
    begun = []
    for number in range(10):
        world = world_at(NOON, device=f"cam-{number}")
        made = world.add(make_release(1))
        world.want(made, "r-1", manners=Manners(windows=("13:00-14:00",), spread_s=600))
        until(world, Phase.FETCHING)
        before = len(world.fetched)
        while len(world.fetched) == before:
            world.go_on(1)
        begun.append(world.now().local_s - 13 * HOUR)

    assert all(0 <= moment < 620 for moment in begun)
    assert max(begun) - min(begun) > 120


# ---- holds


def test_a_held_device_fetches_nothing_and_goes_on_without_losing_a_chunk() -> None:
    world = World(rate_bytes_s=1024)
    made = world.add(make_release(1))
    world.want(made, "r-1")
    until(world, Phase.FETCHING)
    while sum(len(p.chunks) for p in world.partials.values()) < 2:
        world.go_on(1)

    world.hold(True)
    world.go_on(3)
    kept = sum(len(p.chunks) for p in world.partials.values())
    quiet(world, 100)
    idle = quiet(world, 10_000)
    held = report_of(world)
    world.hold(False)
    world.settle()

    assert idle == 0
    assert (held.waiting, held.detail) == (True, "held: its rollout is paused")
    assert held.bytes_done >= kept
    assert champion_of(world) == 1
    assert len(world.fetched) == len(set(world.fetched))


def test_a_hold_outlasts_a_restart() -> None:
    world = World(rate_bytes_s=1024)
    world.want(world.add(make_release(1)), "r-1")
    until(world, Phase.FETCHING)
    world.hold(True)
    world.go_on(5)
    quiet(world, 60)

    world.crash()
    world.connect()
    asked = quiet(world, 1000)
    world.hold(False)
    world.settle()

    assert asked == 0
    assert champion_of(world) == 1


def test_a_release_held_from_its_start_asks_for_nothing_at_all() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1", manners=Manners(held=True))
    world.connect()

    asked = quiet(world, 1000)

    assert asked == 0
    assert phase_of(world) == (Phase.PREFLIGHT, None)


def test_an_abort_ends_a_held_fetch_and_leaves_no_garbage() -> None:
    world = World(rate_bytes_s=1024)
    world.want(world.add(make_release(1)), "r-1")
    until(world, Phase.FETCHING)
    while not world.partials:
        world.go_on(1)
    world.hold(True)
    world.go_on(5)

    world.want_nothing()
    world.settle()

    assert phase_of(world)[0] is Phase.SUPERSEDED
    assert (world.partials, world.blobs) == ({}, {})


def test_a_device_that_waits_sleeps() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1", manners=Manners(held=True))
    until(world, Phase.PREFLIGHT)
    world.advance(0.1)

    assert next_wake(world.state, world.now()) > world.mono + 1


# ---- how far it is


def test_a_moving_fetch_reports_its_speed() -> None:
    world = World(rate_bytes_s=1024, window_chunks=1)
    made = world.add(make_release(1))
    world.want(made, "r-1")
    until(world, Phase.COMMITTED, steps=2000)

    speeds = [r.deployments[0].bytes_per_s for r in world.reports if r.deployments]

    assert any(300 < speed < 3000 for speed in speeds)
    assert report_of(world).bytes_per_s == 0


def test_a_fetch_that_stalls_has_no_speed() -> None:
    world = World(rate_bytes_s=1024, window_chunks=1)
    made = world.add(make_release(1))
    world.want(made, "r-1")
    while not (world.reports and report_of(world).bytes_per_s):
        world.connect()
        world.go_on(1)

    world.releases.clear()  # nobody answers any more
    quiet(world, 60)

    assert phase_of(world)[0] is Phase.FETCHING
    assert report_of(world).bytes_per_s == 0


def test_a_newer_rollout_of_the_same_release_goes_on_with_its_chunks() -> None:
    world = World(rate_bytes_s=1024)
    made = world.add(make_release(1))
    world.want(made, "r-1")
    until(world, Phase.FETCHING)
    while sum(len(p.chunks) for p in world.partials.values()) < 2:
        world.go_on(1)

    world.want(made, "r-2")
    world.settle()

    assert champion_of(world) == 1
    assert any("resuming" in line for line in world.log)
