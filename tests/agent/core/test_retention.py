"""What a device keeps on its disk, and what goes, as stories."""

from tests.agent.core.world import Made, Partial, World, champion_of, make_release, phase_of
from wire.twin import Phase, Probation, Reason

QUICK = Probation(labelled_pairs=0)


def size_of(made: Made) -> int:
    return sum(offer.file_bytes for offer in made.offers)


def bring(world: World, version: int, model: str = "digits", *, tag: str = "") -> Made:
    """Roll out a release to its end."""
    made = world.add(make_release(version, model=model))
    world.want(made, f"r-{model}-{version}{tag}", probation=QUICK)
    world.settle()
    return made


def whole(world: World, made: Made) -> bool:
    """Whether every file of a release is on the disk."""
    return set(made.bodies) <= set(world.blobs)


def test_the_running_and_the_previous_release_stay_and_older_ones_go() -> None:
    world = World()

    first, second, third = (bring(world, version) for version in (1, 2, 3))

    assert champion_of(world) == 3
    assert whole(world, second)
    assert whole(world, third)
    assert not whole(world, first)


def test_a_pinned_release_stays_whatever_came_after_it_and_returns_without_a_byte() -> None:
    world = World(pins=frozenset({("digits", 1)}))
    first = bring(world, 1)
    for version in (2, 3, 4):
        bring(world, version)
    asked = len(world.fetched)

    world.want(first, "r-back", probation=QUICK)
    world.settle()

    assert champion_of(world) == 1
    assert len(world.fetched) == asked
    assert world.journal.pinned == ()


def test_a_pin_that_is_taken_away_lets_its_release_go_at_the_next_start() -> None:
    world = World(pins=frozenset({("digits", 1)}))
    first = bring(world, 1)
    for version in (2, 3):
        bring(world, version)
    assert whole(world, first)

    world.settings = {}
    world.crash()

    assert not whole(world, first)
    assert world.journal.pinned == ()


def test_a_pinned_release_whose_file_is_lost_is_forgotten_and_not_believed() -> None:
    world = World(pins=frozenset({("digits", 1)}))
    first = bring(world, 1)
    for version in (2, 3):
        bring(world, version)

    del world.blobs[first.manifest.variants[0].artifact.digest]
    world.crash()
    world.settle()

    assert world.journal.pinned == ()
    assert champion_of(world) == 3


def test_beyond_the_quota_the_previous_release_goes_and_never_the_running_one() -> None:
    first, second = make_release(1), make_release(2)
    world = World(quota_bytes=size_of(first) + size_of(second) + 100)
    bring(world, 1)
    bring(world, 2)

    third = bring(world, 3)

    assert champion_of(world) == 3
    assert whole(world, second), "it was running while the third came"
    assert not whole(world, first)
    assert sum(len(body) for body in world.blobs.values()) <= world.settings["quota_bytes"]
    assert whole(world, third)
    assert any("digits@1: deleted to make room for digits@3" in line for line in world.log)


def test_a_release_that_no_deletion_makes_room_for_is_refused_with_figures_and_none_goes() -> None:
    size = size_of(make_release(1))
    world = World(quota_bytes=2 * size + 100, pins=frozenset({("digits", 1)}))
    first, second = bring(world, 1), bring(world, 2)

    bring(world, 3)

    assert phase_of(world) == (Phase.REJECTED, Reason.NO_SPACE)
    detail = world.reports[-1].deployments[0].detail
    assert f"quota of {2 * size + 100}" in detail
    assert champion_of(world) == 2
    assert whole(world, first)
    assert whole(world, second)


def test_what_came_in_a_bundle_counts_against_the_quota_and_stays() -> None:
    size = size_of(make_release(1))
    world = World(quota_bytes=int(3.3 * size))
    bring(world, 1)
    stick = world.add(make_release(5))
    world.bring(stick)
    world.settle()

    bring(world, 2)
    bring(world, 3)

    assert champion_of(world) == 3
    assert whole(world, stick)
    assert world.journal.previous["digits"].version == 2
    assert any("digits@1: deleted to make room" in line for line in world.log)


def test_with_another_model_the_one_to_be_replaced_gives_up_its_previous_first() -> None:
    size = size_of(make_release(1))
    world = World(quota_bytes=int(4.3 * size))
    for model in ("faces", "digits"):
        bring(world, 1, model)
        bring(world, 2, model)

    bring(world, 3)

    assert world.journal.previous["faces"].version == 1
    assert world.journal.previous["digits"].version == 2


def test_a_full_disk_lets_the_previous_release_go_as_well() -> None:
    size = size_of(make_release(1))
    world = World()
    bring(world, 1)
    bring(world, 2)
    world.disk_bytes = int(2.3 * size)

    bring(world, 3)

    assert champion_of(world) == 3
    assert world.journal.previous["digits"].version == 2


def test_a_rollback_never_deletes_what_it_goes_back_to() -> None:
    size = size_of(make_release(1))
    world = World()
    first = bring(world, 1)
    bring(world, 2)
    world.disk_bytes = int(2.1 * size)

    world.want(first, "r-digits-2", purpose="rollback")
    world.settle()

    assert champion_of(world) == 1


def test_what_is_already_there_of_a_transfer_needs_no_room_of_its_own() -> None:
    made = make_release(1)
    world = World(rate_bytes_s=1024)
    world.add(made)
    world.disk_bytes = size_of(made) + 50
    world.want(made, "r-1")
    world.connect()
    while sum(len(p.chunks) for p in world.partials.values()) < 3:
        world.go_on(1)

    world.want(made, "r-2")
    world.settle()

    assert champion_of(world) == 1, "partials count as room for what they are a part of"


def test_partials_and_files_that_nobody_wants_are_gone_after_a_start() -> None:
    world = World()
    bring(world, 1)
    stray = make_release(9)
    world.blobs |= stray.bodies
    world.partials = {offer.transfer: Partial(offer) for offer in stray.offers}

    world.crash()

    assert stray.digest not in world.blobs
    assert world.partials == {}
    world.settle()
    assert champion_of(world) == 1


def test_garbage_is_taken_out_every_day_even_if_nothing_happens() -> None:
    world = World()
    bring(world, 1)
    stray = make_release(9)
    world.blobs |= stray.bodies

    world.advance(86_401)

    assert stray.digest not in world.blobs
    assert champion_of(world) == 1


def test_thirty_releases_leave_no_more_than_two_on_the_disk() -> None:
    world = World()
    for version in range(1, 31):
        bring(world, version)

    assert len(world.blobs) == len(set(make_release(30).bodies) | set(make_release(29).bodies))
    assert world.partials == {}
