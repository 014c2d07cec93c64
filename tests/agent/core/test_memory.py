"""Devices with and without room for two engines, and models that hang."""

import pytest

from agent.control import Loaded
from agent.core import actions as do
from agent.core import events as ev
from agent.core.report import report
from tests.agent.core.world import ENGINE_BYTES, World, champion_of, make_release, phase_of
from wire.command import Command
from wire.twin import Phase, Probation, Reason

LENIENT = Probation(labelled_pairs=300, deadline_s=600, at_deadline="commit")
NONE = Probation(labelled_pairs=0)


class Small(World):
    """A device on which two engines at once are one too many."""

    most_engines = 0
    in_background: tuple[bool, ...] = ()

    def _carry_out(self, action: do.Action) -> None:
        super()._carry_out(action)
        if isinstance(action, do.StartEngine):
            self.in_background += (action.background,)
        self.most_engines = max(self.most_engines, len(self.engines))


@pytest.fixture
def world() -> Small:
    small = Small(make_release(1), memory_reserve_bytes=1_000_000)
    small.want(make_release(1), "r-1")
    small.settle()
    small.memory_bytes = ENGINE_BYTES
    return small


def test_a_second_engine_that_leaves_the_reserve_free_comes_up_beside_the_first(
    world: Small,
) -> None:
    world.memory_bytes = ENGINE_BYTES + 1_100_000

    world.want(world.add(make_release(2)), "r-2", probation=NONE)
    world.settle()

    assert champion_of(world) == 2
    assert world.most_engines == 2


def test_without_room_for_two_the_old_engine_ends_before_the_new_one_starts(world: Small) -> None:
    world.want(world.add(make_release(2)), "r-2", probation=NONE)
    world.settle()

    assert champion_of(world) == 2
    assert world.most_engines == 1
    assert any("a second engine needs about 47 MiB" in line for line in world.log)


@pytest.mark.parametrize("conduct", ["fails golden", "crashes at load", "hangs in trial"])
def test_without_room_a_release_that_fails_its_trial_gives_the_place_back(
    world: Small, conduct: str
) -> None:
    world.want(world.add(make_release(2, conduct)), "r-2", probation=NONE)  # type: ignore[arg-type]
    world.settle()

    assert phase_of(world)[0] is Phase.FAILED
    assert champion_of(world) == 1
    assert world.most_engines == 1
    assert world.state.making_way == ""


def test_between_attempts_the_champion_answers_for_a_while(world: Small) -> None:
    serving = []
    world.want(world.add(make_release(2, "crashes at load")), "r-2", probation=NONE)
    world.go_on(1)
    while not phase_of(world)[0].final:
        world.go_on(1)
        generation = world.state.generation("serving")
        if generation is not None and generation.number not in serving:
            serving.append(generation.number)

    assert serving == [1, 3, 5, 7]  # and the trials are 2, 4 and 6


def test_without_room_a_release_that_needs_a_probation_is_refused_and_nobody_is_disturbed(
    world: Small,
) -> None:
    number = world.state.last_generation

    world.want(world.add(make_release(2)), "r-2")
    world.settle()

    assert phase_of(world) == (Phase.FAILED, Reason.OUT_OF_MEMORY)
    assert "no probation is possible" in world.state.journal.deployments["digits"].detail
    assert world.state.last_generation == number
    assert champion_of(world) == 1


def test_without_room_a_policy_that_commits_without_evidence_rests_on_the_trial(
    world: Small,
) -> None:
    world.want(world.add(make_release(2)), "r-2", probation=LENIENT)
    world.settle()

    assert champion_of(world) == 2
    assert world.most_engines == 1
    assert "too short for a probation" in world.state.journal.deployments["digits"].detail


def test_a_larger_model_needs_more_than_the_engine_takes_now(world: Small) -> None:
    made = world.add(make_release(2))
    world.want(made, "r-2", probation=NONE)
    weights = max(len(body) for body in made.bodies.values())
    world.memory_bytes = ENGINE_BYTES + 1_000_000 + weights - 1

    world.settle()

    assert world.most_engines == 1


def test_without_room_a_fresh_engine_comes_after_the_old_one(world: Small) -> None:
    number = world.state.last_generation
    give_command(world)
    world.settle()

    assert world.state.last_generation == number + 1
    assert world.most_engines == 1
    assert world.in_background == (False, False)
    assert champion_of(world) == 1


def test_with_room_a_fresh_engine_comes_beside_the_old_one(world: Small) -> None:
    world.memory_bytes = 10**9
    number = world.state.last_generation
    give_command(world)
    world.settle()

    assert world.state.last_generation == number + 1
    assert world.most_engines == 2
    assert world.in_background == (False, True)


def test_a_crash_of_what_made_way_brings_the_champion_back(world: Small) -> None:
    world.want(world.add(make_release(2)), "r-2", probation=NONE)
    while world.state.making_way == "":
        world.go_on(1)
    world.crash()
    world.settle()

    assert champion_of(world) == 2
    assert world.most_engines == 1


def give_command(world: World) -> None:
    command = Command(
        device="cam-1", id="c-1", verb="restart-engine", expires_at=int(world.wall) + 60
    )
    world.give(ev.CommandCame(command))


# ---- models that hang


def hang(world: World) -> None:
    """Have a run of the serving engine be stopped."""
    [number] = world.engines
    world.give(ev.EngineHung(number, "digits", "a run was stopped after 30 s"))


def test_a_release_that_hangs_after_its_commit_goes_back_though_its_engine_lives() -> None:
    world = World(make_release(1))
    world.want(make_release(1), "r-1")
    world.settle()
    world.want(world.add(make_release(2)), "r-2", probation=NONE)
    world.settle()

    hang(world)
    hang(world)
    world.settle()
    still = champion_of(world)
    hang(world)
    world.settle()

    deployment = world.state.journal.deployments["digits"]
    assert still == 2
    assert champion_of(world) == 1
    assert (deployment.purpose, deployment.reason) == ("fallback", Reason.HUNG)


def test_an_engine_that_had_to_be_killed_for_hanging_counts_the_same() -> None:
    world = World(make_release(1))
    world.want(make_release(1), "r-1")
    world.settle()
    world.want(world.add(make_release(2)), "r-2", probation=NONE)
    world.settle()

    for _ in range(3):
        [number] = world.engines
        world.give(ev.EngineFailed(number, "digits", Reason.HUNG, "a run took more than 30 s"))
        world.kill_engine(number, -9)
        world.settle()

    deployment = world.state.journal.deployments["digits"]
    assert champion_of(world) == 1
    assert (deployment.purpose, deployment.reason) == ("fallback", Reason.HUNG)


def test_a_challenger_that_hangs_on_probation_is_rolled_back() -> None:
    world = World(make_release(1))
    world.want(make_release(1), "r-1")
    world.settle()
    world.want(world.add(make_release(2)), "r-2")
    while phase_of(world)[0] is not Phase.PROBATION:
        world.go_on(1)
    challenger = world.state.generation("challenger")
    assert challenger is not None

    world.give(ev.EngineHung(challenger.number, "digits", "a run was stopped after 30 s"))
    world.settle()

    assert phase_of(world) == (Phase.ROLLED_BACK, Reason.HUNG)
    assert champion_of(world) == 1


# ---- accelerators


def test_why_a_model_runs_on_the_processor_is_reported_while_its_engine_serves() -> None:
    world = World(make_release(1))
    world.want(make_release(1), "r-1")
    world.settle()
    [number] = world.engines
    loaded = Loaded("digits", "onnxruntime 1.32.0", 1.0, 0.1, fallback="QNN: not there")

    world.give(ev.EngineReady(number, (loaded,)))
    [serving] = report(world.state).serving
    world.kill_engine(number)
    world.go_on(1)
    [gone] = report(world.state).serving

    assert (serving.runtime, serving.fallback) == ("onnxruntime 1.32.0", "QNN: not there")
    assert (gone.runtime, gone.fallback) == ("", None)
