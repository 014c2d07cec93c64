"""The agent's core as a whole, told as stories of one device."""

from itertools import pairwise

import pytest

from agent.core import actions as do
from agent.core import events as ev
from agent.core.lifecycle import TRANSITIONS, Misuse, move
from agent.core.state import Instant
from agent.core.step import next_wake
from tests.agent.core.world import Made, World, champion_of, make_release, phase_of
from wire.command import Command
from wire.transfer import ChunkFrame
from wire.twin import Finding, Phase, Probation, Reason


@pytest.fixture
def world() -> World:
    return World()


def at_version_1(world: World) -> None:
    world.want(world.add(make_release(1)), "r-1")
    world.settle()
    assert champion_of(world) == 1


def test_a_first_release_is_fetched_tried_and_committed(world: World) -> None:
    world.want(world.add(make_release(1)), "r-1")

    world.settle()

    assert phase_of(world) == (Phase.COMMITTED, None)
    assert champion_of(world) == 1
    assert world.reports[-1].serving[0].runtime == "onnxruntime 1.32.0"


def test_every_chunk_is_fetched_once_when_nothing_is_lost(world: World) -> None:
    world.want(world.add(make_release(1)), "r-1")

    world.settle()

    assert len(world.fetched) == len(set(world.fetched))


def test_an_equal_release_passes_probation_and_replaces_the_champion(world: World) -> None:
    at_version_1(world)

    world.want(world.add(make_release(2)), "r-2")
    world.settle()

    assert champion_of(world) == 2
    assert world.journal.previous["digits"].version == 1
    assert "labelled" in world.state.journal.deployments["digits"].detail


def test_a_worse_release_is_refused_with_the_figures(world: World) -> None:
    at_version_1(world)

    world.want(world.add(make_release(2, "worse")), "r-2")
    world.settle()

    assert phase_of(world) == (Phase.ROLLED_BACK, Reason.WORSE_THAN_CHAMPION)
    assert champion_of(world) == 1
    assert "worse" in world.reports[-1].deployments[0].detail
    assert len(world.engines) == 1


def test_a_release_that_fails_its_golden_samples_never_meets_a_live_input(world: World) -> None:
    at_version_1(world)

    world.want(world.add(make_release(2, "fails golden")), "r-2")
    world.settle()

    assert phase_of(world) == (Phase.FAILED, Reason.GOLDEN_MISMATCH)
    assert champion_of(world) == 1


def test_a_crashing_challenger_costs_its_attempts_and_never_displaces_the_champion(
    world: World,
) -> None:
    at_version_1(world)

    world.want(world.add(make_release(2, "crashes at load")), "r-2")
    world.settle()

    assert phase_of(world) == (Phase.FAILED, Reason.CRASHED)
    assert world.state.journal.deployments["digits"].attempts == 3
    assert champion_of(world) == 1


def test_a_refused_release_is_not_tried_again_for_the_same_rollout(world: World) -> None:
    at_version_1(world)
    bad = world.add(make_release(2, "fails golden"))
    world.want(bad, "r-2")
    world.settle()
    fetched = len(world.fetched)

    world.want(bad, "r-2")
    world.crash()
    world.settle()

    assert phase_of(world) == (Phase.FAILED, Reason.GOLDEN_MISMATCH)
    assert len(world.fetched) == fetched


def test_a_refused_release_is_tried_again_by_a_new_rollout(world: World) -> None:
    at_version_1(world)
    bad = world.add(make_release(2, "worse"))
    world.want(bad, "r-2")
    world.settle()

    world.want(bad, "r-3", probation=Probation(labelled_pairs=0))
    world.settle()

    assert champion_of(world) == 2


def test_after_an_abort_the_old_desired_release_asks_nothing_of_the_device(world: World) -> None:
    at_version_1(world)
    good = make_release(1)
    world.want(world.add(make_release(2, "worse")), "r-2")
    world.settle()
    starts = world.state.last_generation

    world.want(good, "r-1")
    world.settle()

    assert phase_of(world) == (Phase.ROLLED_BACK, Reason.WORSE_THAN_CHAMPION)
    assert world.state.last_generation == starts
    assert world.reports[-1].desired_revision == world.revision


def test_a_rollback_after_commit_needs_no_download_and_no_probation(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")
    world.settle()
    fetched = len(world.fetched)

    world.want(make_release(1), "r-2", purpose="rollback")
    world.settle()

    assert champion_of(world) == 1
    assert len(world.fetched) == fetched
    assert world.journal.previous == {}


def test_a_release_that_crashes_only_after_its_commit_is_taken_back(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")
    world.settle()

    for _ in range(3):
        world.kill_engine(max(world.engines))
        world.settle()

    deployment = world.reports[-1].deployments[0]
    assert champion_of(world) == 1
    assert (deployment.purpose, deployment.rollout) == ("fallback", "r-2")
    assert deployment.reason is Reason.CRASHED


def test_what_was_taken_back_stays_away_while_the_same_rollout_is_desired(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")
    world.settle()
    for _ in range(3):
        world.kill_engine(max(world.engines))
        world.settle()

    world.crash()
    world.settle()

    assert champion_of(world) == 1


def test_a_refusal_is_remembered_when_the_champion_that_judged_it_is_gone(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")
    world.settle()
    world.want(world.add(make_release(3, "worse")), "r-3")
    world.settle()
    starts = world.state.last_generation

    for _ in range(3):
        world.kill_engine(max(world.engines))
        world.settle()

    assert champion_of(world) == 1
    assert world.state.last_generation == starts + 3


def test_a_release_that_a_later_rollout_adopted_is_not_tried_again_after_it_crashed(
    world: World,
) -> None:
    at_version_1(world)
    made = world.add(make_release(2))
    world.want(made, "r-2", probation=Probation(labelled_pairs=0))
    world.settle()
    world.want(made, "r-3", probation=Probation(labelled_pairs=0))
    world.settle()

    for _ in range(3):
        serving = [number for number, engine in world.engines.items() if engine.serving]
        world.kill_engine(serving[-1])
        world.settle()

    assert champion_of(world) == 1
    assert world.journal.deployments["digits"].purpose == "fallback"


def test_an_engine_that_crashes_without_a_previous_release_is_restarted(world: World) -> None:
    at_version_1(world)

    for _ in range(8):
        world.kill_engine(max(world.engines))
        world.settle()

    assert champion_of(world) == 1


def test_a_stable_run_forgives_earlier_crashes(world: World) -> None:
    at_version_1(world)
    world.kill_engine(max(world.engines))
    world.settle()
    assert world.journal.crashes == {"digits": 1}

    world.advance(601)

    assert world.journal.crashes == {}


def test_a_download_resumes_after_a_crash_without_asking_for_what_is_on_disk(
    world: World,
) -> None:
    made = world.add(make_release(1))
    world.want(made, "r-1")
    world.connect()
    while sum(len(p.chunks) for p in world.partials.values()) < 2:
        queue = world.local or world.network
        world.give(queue.pop(0))

    world.crash()
    world.settle()

    assert champion_of(world) == 1
    assert any("resuming" in line for line in world.log)
    # Only what was under way when the agent died is asked for twice.
    assert len(world.fetched) <= len(set(world.fetched)) + 3


def test_a_probation_cut_by_a_crash_starts_again_and_costs_an_attempt(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")
    world.connect()
    while world.state.journal.deployments["digits"].phase is not Phase.PROBATION:
        queue = world.local or world.network
        world.give(queue.pop(0)) if queue else world.advance(1)

    world.crash()
    world.settle()

    assert champion_of(world) == 2
    assert world.state.journal.deployments["digits"].attempts == 2


def test_the_finding_of_a_probation_is_frozen_and_reported_while_it_goes_on(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")

    world.settle()

    first = Finding(pairs=150, worse=3, better=3)
    latest = world.reports[-1].deployments[0]
    phases = [each.phase for r in world.reports for each in r.deployments if each.finding]
    assert phases[0] is Phase.PROBATION
    assert (latest.phase, latest.labelled_pairs, latest.finding) == (Phase.COMMITTED, 300, first)


def test_a_crash_after_the_finding_does_not_choose_another(world: World) -> None:
    at_version_1(world)
    policy = Probation(labelled_pairs=600, deadline_s=600)
    world.want(world.add(make_release(2)), "r-2", probation=policy)
    world.connect()
    while world.state.journal.deployments["digits"].finding is None:
        queue = world.local or world.network
        world.give(queue.pop(0)) if queue else world.advance(1)
    frozen = world.state.journal.deployments["digits"].finding

    world.crash()
    kept = world.journal.deployments["digits"].finding
    world.settle()

    assert kept == frozen == world.reports[-1].deployments[0].finding


def test_the_figures_of_a_long_probation_are_reported_more_and_more_seldom(world: World) -> None:
    at_version_1(world)
    policy = Probation(labelled_pairs=1_000_000, finding_pairs=0)
    world.want(world.add(make_release(2)), "r-2", probation=policy)
    world.connect()
    while world.state.journal.deployments["digits"].phase is not Phase.PROBATION:
        queue = world.local or world.network
        world.give(queue.pop(0)) if queue else world.advance(1)
    begun, until = len(world.reports), world.now().mono + 600

    told = []
    while world.now().mono < until:
        queue = world.local or world.network
        world.give(queue.pop(0)) if queue else world.advance(1)
        if len(world.reports) > begun + len(told):
            told.append(world.now().mono)

    gaps = [round(late - early) for early, late in pairwise(told)]
    assert gaps[:5] == [4, 8, 16, 32, 60]
    assert set(gaps[5:]) == {60}
    pairs = [report.deployments[0].labelled_pairs for report in world.reports[begun:]]
    assert pairs == sorted(pairs)


def test_a_clean_stop_gives_the_attempt_back(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(2)), "r-2")
    while world.state.journal.deployments["digits"].phase is not Phase.PROBATION:
        queue = world.local or world.network
        world.give(queue.pop(0)) if queue else world.advance(1)

    world.give(ev.StopAsked())

    assert world.journal.deployments["digits"].attempts == 0
    assert world.journal.deployments["digits"].phase is Phase.VERIFIED


def test_too_little_space_is_refused_before_the_first_byte_of_the_model(world: World) -> None:
    at_version_1(world)
    made = world.add(make_release(2))
    world.free_bytes = 100
    world.want(made, "r-2")

    world.settle()

    assert phase_of(world) == (Phase.REJECTED, Reason.NO_SPACE)
    weights = made.manifest.variants[0].artifact.digest
    assert not [f for f in world.fetched if f[0] == weights]


def test_a_disk_that_fills_up_midway_fails_the_deployment_and_leaves_no_partial(
    world: World,
) -> None:
    at_version_1(world)
    world.disk_full = True
    world.want(world.add(make_release(2)), "r-2")

    world.settle()

    assert phase_of(world) == (Phase.FAILED, Reason.NO_SPACE)
    assert world.partials == {}
    assert champion_of(world) == 1


def test_a_fetch_without_progress_times_out_only_while_the_broker_is_there(world: World) -> None:
    made = make_release(1)
    world.want(made, "r-1")  # a release the controller cannot serve
    world.connect()
    while world.network or world.local:
        world.give((world.local or world.network).pop(0))

    world.disconnect()
    for _ in range(10):
        world.advance(100)
    assert phase_of(world)[0] is Phase.PREFLIGHT

    world.connect()
    for _ in range(40):
        world.advance(10)
    assert phase_of(world) == (Phase.TIMED_OUT, Reason.NO_PROGRESS)


def test_a_device_without_the_runtime_says_which_one_it_lacks(world: World) -> None:
    world.state.capabilities = world.state.capabilities.model_copy(
        update={"runtimes": {"ai-edge-litert": "2.3.0"}}
    )
    world.want(world.add(make_release(1)), "r-1")

    world.settle()

    assert phase_of(world) == (Phase.REJECTED, Reason.NO_RUNTIME)
    assert "onnxruntime" in world.reports[-1].deployments[0].detail


def test_a_newer_wish_supersedes_the_one_under_way(world: World) -> None:
    world.want(world.add(make_release(1)), "r-1")
    world.connect()
    for _ in range(6):
        world.give((world.local or world.network).pop(0))

    world.want(world.add(make_release(2)), "r-2")
    world.settle()

    assert champion_of(world) == 2
    assert any("superseded" in line for line in world.log)


def test_an_older_desired_document_changes_nothing(world: World) -> None:
    at_version_1(world)
    old = world.sent[-1]
    world.want(world.add(make_release(2)), "r-2")
    world.settle()

    world.give(ev.DesiredCame(old))
    world.settle()

    assert champion_of(world) == 2


def test_a_document_that_names_no_model_stops_no_model(world: World) -> None:
    at_version_1(world)

    world.want_nothing()
    world.settle()

    assert champion_of(world) == 1


def test_two_models_are_brought_one_after_the_other_and_served_together(world: World) -> None:
    at_version_1(world)
    world.want(world.add(make_release(1, model="faces")), "r-2")

    world.settle()

    assert champion_of(world) == 1
    assert champion_of(world, "faces") == 1
    assert len(world.engines) == 1


def test_without_labels_a_probation_ends_at_its_deadline(world: World) -> None:
    at_version_1(world)
    policy = Probation(labelled_pairs=1_000_000, deadline_s=30)
    world.want(world.add(make_release(2)), "r-2", probation=policy)

    world.settle()

    assert phase_of(world) == (Phase.TIMED_OUT, Reason.NO_EVIDENCE)
    assert champion_of(world) == 1


def test_a_poisoned_frame_is_dropped_counted_and_asked_for_again(world: World) -> None:
    poisoned: list[ev.Event] = []

    def flip(event: ev.Event) -> ev.Event:
        if not isinstance(event, ev.FramesCame) or len(poisoned) == 3:
            return event
        (frame,) = event.frames
        if frame.part != "data":
            return event
        poisoned.append(event)
        payload = bytes([frame.payload[0] ^ 1]) + frame.payload[1:]
        return ev.FramesCame(event.index, (ChunkFrame("data", frame.number, payload),))

    world.tamper = flip
    world.want(world.add(make_release(1)), "r-1")

    world.settle()

    assert world.state.chunks_bad == 3
    assert champion_of(world) == 1


def test_a_source_that_only_poisons_costs_few_requests_and_the_rollout(world: World) -> None:
    at_version_1(world)

    def poison(event: ev.Event) -> ev.Event:
        if not isinstance(event, ev.FramesCame) or event.frames[0].part != "data":
            return event
        wrong = [
            ChunkFrame("data", frame.number, b"\0" * len(frame.payload)) for frame in event.frames
        ]
        return ev.FramesCame(event.index, tuple(wrong))

    asked_before = len(world.fetched)
    world.tamper = poison
    world.want(world.add(make_release(2)), "r-2")
    world.settle()

    assert phase_of(world) == (Phase.TIMED_OUT, Reason.NO_PROGRESS)
    assert champion_of(world) == 1
    assert not world.partials
    bad = world.state.chunks_bad
    assert f"{bad} wrong frames were dropped" in world.reports[-1].deployments[0].detail
    assert 3 < len(world.fetched) - asked_before < 40


def test_what_is_no_frame_counts_as_a_wrong_one(world: World) -> None:
    broken: list[ev.Event] = []

    def cut(event: ev.Event) -> ev.Event:
        if not isinstance(event, ev.FramesCame) or len(broken) == 2:
            return event
        broken.append(event)
        return ev.FrameBroken(event.index, "frame: expected at least 8 bytes, got 3")

    world.tamper = cut
    world.want(world.add(make_release(1)), "r-1")
    world.settle()

    assert world.state.chunks_bad == 2
    assert champion_of(world) == 1


def test_a_file_that_vanished_from_the_disk_is_fetched_again(world: World) -> None:
    at_version_1(world)
    made = world.add(make_release(2))
    labels = made.manifest.labels
    assert labels is not None
    del world.blobs[labels.digest]

    world.want(made, "r-2", probation=Probation(labelled_pairs=0))
    world.settle()

    assert champion_of(world) == 2
    assert labels.digest in world.blobs


def test_a_delta_whose_base_vanished_gives_way_to_the_whole_file(world: World) -> None:
    at_version_1(world)
    old = make_release(1)
    made = world.add(make_release(2).as_delta_to(old))
    del world.blobs[old.manifest.variants[0].artifact.digest]

    world.want(made, "r-2", probation=Probation(labelled_pairs=0))
    world.settle()

    assert champion_of(world) == 2
    assert weights_fetched(world, made) == ["identity"]


def weights_fetched(world: World, made: Made) -> list[str]:
    """Return in what form the artifact travelled."""
    artifact = made.manifest.variants[0].artifact.digest
    forms = {offer.index: offer.encoding for offer in made.offers if offer.file == artifact}
    return list(dict.fromkeys(forms[f[0]] for f in world.fetched if f[0] in forms))


def test_a_delta_is_taken_where_its_base_lies_on_the_disk(world: World) -> None:
    at_version_1(world)
    made = world.add(make_release(2).as_delta_to(make_release(1)))
    world.want(made, "r-2")

    world.settle()

    assert champion_of(world) == 2
    assert weights_fetched(world, made) == ["delta"]


def test_a_device_without_the_base_takes_the_whole_file(world: World) -> None:
    made = world.add(make_release(2).as_delta_to(make_release(1)))
    world.want(made, "r-1")

    world.settle()

    assert champion_of(world) == 2
    assert weights_fetched(world, made) == ["identity"]


def test_a_delta_that_does_not_decode_is_followed_by_the_whole_file(world: World) -> None:
    at_version_1(world)
    world.deltas_fail = True
    made = world.add(make_release(2).as_delta_to(make_release(1)))
    world.want(made, "r-2")

    world.settle()

    assert champion_of(world) == 2
    assert weights_fetched(world, made) == ["delta", "identity"]


def test_a_command_is_obeyed_once_and_never_late(world: World) -> None:
    at_version_1(world)
    soon, late = int(world.wall) + 60, int(world.wall) - 60

    ping = Command(device="cam-1", id="c-1", verb="ping", expires_at=soon)
    first = world.give(ev.CommandCame(ping))
    again = world.give(ev.CommandCame(ping))
    old = world.give(
        ev.CommandCame(Command(device="cam-1", id="c-2", verb="ping", expires_at=late))
    )

    answers = [a.result.outcome for a in first if isinstance(a, do.PublishResult)]
    assert answers == ["done"]
    assert not [a for a in again if isinstance(a, do.PublishResult)]
    refused = next(a for a in old if isinstance(a, do.PublishResult))
    assert refused.result.outcome == "refused"
    assert "expired" in refused.result.detail


def test_a_restarted_engine_takes_over_before_the_old_one_leaves(world: World) -> None:
    at_version_1(world)
    command = Command(
        device="cam-1", id="c-1", verb="restart-engine", expires_at=int(world.wall) + 60
    )
    before = max(world.engines)

    world.give(ev.CommandCame(command))
    assert world.engines[before].serving
    world.settle()

    assert champion_of(world) == 1
    assert before not in world.engines


def test_of_two_agents_with_one_id_the_later_one_leaves_and_names_the_clash(
    world: World,
) -> None:
    world.connect()
    ours = world.state.settings.started

    stays = world.give(ev.TwinSeen("other", ours + 5))
    leaves = world.give(ev.TwinSeen("other", ours - 5))

    assert not [a for a in stays if isinstance(a, do.Yield)]
    assert [a for a in stays if isinstance(a, do.PublishOnline)]
    assert [a for a in leaves if isinstance(a, do.Yield)]
    assert any("speaks as cam-1" in line for line in world.log)


def test_an_idle_agent_wakes_only_for_its_reports(world: World) -> None:
    at_version_1(world)
    world.advance(700)

    wakes = 0
    end = world.mono + 600
    while world.mono < end:
        wake = next_wake(world.state, Instant(world.mono, world.wall))
        world.advance(max(wake - world.mono, 0.001))
        while world.local:
            world.give(world.local.pop(0))
        wakes += 1

    assert wakes <= 25


def test_no_arrow_leaves_a_final_phase() -> None:
    for phase, ways in TRANSITIONS.items():
        assert phase.final == (not ways)
    assert set(TRANSITIONS) == set(Phase)


def test_a_move_that_the_table_lacks_is_our_own_bug(world: World) -> None:
    at_version_1(world)

    with pytest.raises(Misuse, match="no way from committed"):
        move(world.state.journal.deployments["digits"], Phase.TRIAL, 0.0)
