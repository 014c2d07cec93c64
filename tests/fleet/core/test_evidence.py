"""Rollouts that are decided by tests over devices: when they end, go on, grow or hold."""

from dataclasses import replace
from itertools import pairwise

import pytest
from pydantic import TypeAdapter

from fleet.core.census import Census
from fleet.core.evidence import (
    ALPHA,
    LEAST_DEVICES,
    SPLIT,
    Evidence,
    believable,
    promotion,
    readings,
    too_small,
)
from fleet.core.gate import Answer, Standing
from fleet.core.rollout import ANSWER_S, SILENCE_S, Rollout, approve, notable, step
from fleet.core.views import RolloutStatus
from tests.fleet.core.worlds import NEW, OLD, T0, census_of, deployment, report, rollout_of, status
from wire.twin import Finding, Phase, Reason


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"cam-{n:03}" for n in range(count))


def waves_of(*marks: int) -> Rollout:
    """digits@2 to as many devices, cut at these marks, judged by tests alone."""
    every = ids(marks[-1])
    waves = [every[a:b] for a, b in pairwise((0, *marks))]
    return replace(rollout_of(*waves), max_refused_percent=None)


def commit(census: Census, id: str, finding: Finding | None, phase: Phase = Phase.COMMITTED):
    latest = deployment(phase).model_copy(update={"finding": finding})
    serving = NEW if phase is Phase.COMMITTED else OLD
    census.hear_reported(report(id, 2, serving, latest), T0, retained=False)


def refuse(census: Census, id: str, reason: Reason, labelled: int = 0, worse: int = 0) -> None:
    latest = deployment(Phase.ROLLED_BACK, reason=reason).model_copy(
        update={"labelled_pairs": labelled, "worse": worse}
    )
    census.hear_reported(report(id, 2, OLD, latest), T0, retained=False)


def equal(place: int) -> Finding:
    return Finding(pairs=100, worse=2 + place % 3, better=2 + (place + 1) % 3)


def worse(place: int) -> Finding:
    return Finding(pairs=100, worse=5 + place % 2, better=1)


def begun(rollout: Rollout) -> tuple[Rollout, Census]:
    census = census_of(*(id for wave in rollout.waves for id in wave))
    return step(rollout, census, T0)[0], census


def test_the_parts_of_alpha_are_alpha():
    assert sum(SPLIT.values()) == pytest.approx(ALPHA)


def test_an_equal_release_goes_on_and_says_by_which_numbers():
    rollout, census = begun(waves_of(30, 60))
    for place, id in enumerate(ids(30)):
        commit(census, id, equal(place))

    rollout, orders = step(rollout, census, T0)

    assert (rollout.open, len(orders), rollout.promoted) == (2, 30, True)
    verdict = rollout.verdicts[-1]
    assert (verdict.gate, verdict.ruling, verdict.wave, verdict.devices) == (
        "promotion", "promote", 1, 30,
    )  # fmt: skip
    assert verdict.words.startswith("promotion: accuracy +0.00 points on the mean of 30 devices")


def test_a_worse_release_is_aborted_before_it_is_committed_anywhere():
    rollout, census = begun(waves_of(30, 60))
    for place, id in enumerate(ids(15)):
        commit(census, id, worse(place), Phase.PROBATION)

    rollout, orders = step(rollout, census, T0)

    assert rollout.status is RolloutStatus.ROLLING_BACK
    assert len(orders) == 30
    assert rollout.because == rollout.verdicts[-1].words
    assert rollout.because.startswith("accuracy: 15 devices froze 1500 labelled pairs; 82 worse")
    assert "decides at 33.3 (alpha 0.03 of 0.05)" in rollout.because


def test_an_finding_counts_once_however_often_and_however_else_it_is_told():
    rollout, census = begun(waves_of(30, 60))
    commit(census, "cam-000", equal(0), Phase.PROBATION)
    rollout, _ = step(rollout, census, T0)
    latest = deployment(Phase.PROBATION).model_copy(update={"finding": worse(0)})
    census.hear_reported(report("cam-000", 3, OLD, latest), T0, retained=False)

    again, _ = step(rollout, census, T0)

    assert again.evidence == rollout.evidence
    assert again.evidence.bets.values == 1
    assert again.told["cam-000"].finding == equal(0)


def test_an_finding_is_worth_storing_and_survives_the_store():
    before, census = begun(waves_of(30, 60))
    commit(census, "cam-000", equal(0), Phase.PROBATION)
    after, _ = step(before, census, T0)
    store = TypeAdapter(Rollout)

    assert notable(before, after)
    assert store.validate_json(store.dump_json(after)) == after


def test_a_device_that_refused_first_is_counted_apart_and_once():
    rollout, census = begun(waves_of(30, 60))
    refuse(census, "cam-000", Reason.WORSE_THAN_CHAMPION, labelled=60, worse=7)
    rollout, _ = step(rollout, census, T0)
    rollout, _ = step(rollout, census, T0)

    assert rollout.evidence.bets.values == 0
    assert (rollout.evidence.refused_before, rollout.evidence.mean.values) == (1, 1)


def test_an_undecided_wave_takes_in_devices_of_the_next_one():
    rollout, census = begun(waves_of(30, 100))
    for place, id in enumerate(ids(30)):
        commit(census, id, Finding(pairs=100, worse=place % 12, better=(place + 3) % 10))

    grown, orders = step(rollout, census, T0)
    again, none = step(grown, census, T0)

    assert [order.device for order in orders] == list(ids(40)[30:])
    assert [len(wave) for wave in grown.waves] == [40, 60]
    assert (grown.open, grown.enlarged, grown.verdicts[-1].ruling) == (1, 10, "enlarge")
    assert grown.because == "wave 1 of 2: waiting for 10 of 40 devices"
    assert again is grown and none == []


def test_a_wave_that_grew_fourfold_undecided_holds_until_it_is_approved():
    rollout, census = begun(waves_of(30, 100, 200))
    for place, id in enumerate(ids(120)):
        swing = 30 if place % 2 else 0
        commit(census, id, Finding(pairs=100, worse=swing + 1, better=31 - swing))
    for _ in range(12):
        rollout, _ = step(rollout, census, T0)
        for id in ids(120):
            census.hear(id, T0)

    later, none = step(rollout, census, T0 + 30 * 86_400)
    approved, orders = step(approve(later, "by the operator: seen", T0), census, T0)

    assert [len(wave) for wave in rollout.waves] == [120, 0, 80]
    assert later.status is RolloutStatus.RUNNING and none == []
    assert "holding, undecided; promotion: accuracy" in later.because
    assert later.verdicts[-1].ruling == "hold"
    assert len(orders) == 80
    assert approved.verdicts[-1].words == "wave 1 of 3: approved by the operator: seen"


def test_without_any_finding_a_wave_neither_passes_nor_fails():
    rollout, census = begun(waves_of(30, 60))
    for id in ids(30):
        refuse(census, id, Reason.NO_EVIDENCE)

    rollout, orders = step(rollout, census, T0)

    assert orders == []
    assert rollout.status is RolloutStatus.RUNNING
    assert "no device has a finding" in rollout.because


def test_a_first_release_has_nothing_to_be_compared_with():
    rollout = waves_of(30, 60)
    rollout, census = begun(replace(rollout, previous=dict.fromkeys(rollout.previous)))
    for id in ids(30):
        commit(census, id, None)

    rollout, orders = step(rollout, census, T0)

    assert (rollout.open, len(orders)) == (2, 30)


def test_silent_devices_count_against_their_wave_after_their_deadline():
    rollout, census = begun(waves_of(30, 60))
    for place, id in enumerate(ids(30)):
        if place < 23:
            commit(census, id, equal(place))
        else:
            census.hear_status(status(id, online=False), T0, retained=False)

    waits, _ = step(rollout, census, T0 + 10)
    holds, orders = step(rollout, census, T0 + SILENCE_S)
    commit(census, "cam-023", equal(23))
    goes_on, more = step(holds, census, T0 + SILENCE_S + 86_400)

    assert waits.because == "wave 1 of 2: waiting for 7 of 30 devices"
    assert orders == []
    assert holds.because == (
        "wave 1 of 2: holding, 7 of 30 devices are silent past their deadline, at most 20% may be"
    )
    assert (goes_on.open, len(more)) == (2, 30)


def test_a_silent_last_wave_is_followed_up_for_days_and_then_let_go():
    rollout, census = begun(waves_of(30))
    for place, id in enumerate(ids(30)):
        if place < 20:
            commit(census, id, equal(place))
        else:
            census.hear_status(status(id, online=False), T0, retained=False)

    holds, _ = step(rollout, census, T0 + 3 * 86_400)
    over, _ = step(holds, census, T0 + ANSWER_S)

    assert holds.status is RolloutStatus.RUNNING
    assert over.status is RolloutStatus.COMPLETED
    assert over.because == "20 of 30 devices committed, 10 without an answer"


@pytest.mark.parametrize(
    ("reason", "labelled", "worse_pairs", "gate", "count"),
    [
        (Reason.CRASHED, 0, 0, "crashes", 8),
        (Reason.TOO_SLOW, 0, 0, "cpu-time", 9),
        (Reason.WORSE_THAN_CHAMPION, 30, 9, "heavy-losses", 8),
        (Reason.WORSE_THAN_CHAMPION, 100, 10, "refusals", 20),
        (Reason.NO_SPACE, 0, 0, "failures", 20),
    ],
)
def test_more_devices_that_end_badly_than_may_end_the_rollout(
    reason: Reason, labelled: int, worse_pairs: int, gate: str, count: int
):
    rollout, census = begun(waves_of(30, 60))
    for id in ids(count):
        refuse(census, id, reason, labelled, worse_pairs)

    rollout, _ = step(rollout, census, T0)

    assert rollout.status is RolloutStatus.ABORTED
    assert (rollout.verdicts[-1].gate, rollout.verdicts[-1].ruling) == (gate, "abort")
    assert rollout.because.startswith(f"{gate}: {count} of 30 devices told")


def test_one_refusal_among_thirty_is_bearable():
    rollout, census = begun(waves_of(30, 60))
    refuse(census, "cam-000", Reason.CRASHED)

    rollout, _ = step(rollout, census, T0)

    assert rollout.status is RolloutStatus.RUNNING


def test_few_devices_are_judged_by_a_share_and_many_by_tests():
    small, census = begun(waves_of(5, 100))
    for id in ids(2):
        refuse(census, id, Reason.WORSE_THAN_CHAMPION, 100, 9)
    large, others = begun(waves_of(30, 100))
    for id in ids(9):
        refuse(others, id, Reason.WORSE_THAN_CHAMPION, 100, 9)

    small, _ = step(small, census, T0)
    large, _ = step(large, others, T0)

    assert small.verdicts[-1].gate == "threshold"
    assert small.status is RolloutStatus.ABORTED
    assert large.status is RolloutStatus.RUNNING


def test_who_wants_a_threshold_gets_it():
    wanted, census = begun(replace(waves_of(30, 100), max_refused_percent=5))
    alone, others = begun(replace(waves_of(30, 100), judged_by="threshold"))
    for id in ids(2):
        refuse(census, id, Reason.CRASHED)
    for place, id in enumerate(ids(30)):
        commit(others, id, worse(place))

    wanted, _ = step(wanted, census, T0)
    alone, _ = step(alone, others, T0)

    assert wanted.verdicts[-1].words == "2 of 30 devices refused digits@2: crashed; limit 5%"
    assert (alone.status, alone.open) == (RolloutStatus.RUNNING, 2)


def test_what_cannot_be_is_not_counted():
    impossible = Finding(pairs=10, worse=9, better=9)
    rollout, census = begun(waves_of(30, 60))
    commit(census, "cam-000", impossible, Phase.PROBATION)

    rollout, _ = step(rollout, census, T0)

    assert not believable(impossible)
    assert rollout.evidence == Evidence()


def test_a_commit_without_labels_counts_for_going_on_alone():
    evidence = Evidence()
    for n in range(60):
        evidence = evidence.after(Finding(pairs=2000, worse=n % 3, labelled=False))

    assert evidence.bets.values == 0
    assert promotion(evidence, T0, 1).ruling == "promote"


def test_every_gate_says_how_it_stands():
    answers = [Answer(Standing.WORKING)] * 30

    found = readings(Evidence(), answers, T0, 1)

    assert [each.gate for each in found] == list(SPLIT)
    assert {each.ruling for each in found} == {"hold"}
    assert all(f"alpha {each.alpha:g} of 0.05" in each.words for each in found)


def test_waves_too_small_to_decide_are_named():
    assert too_small(LEAST_DEVICES) == ""
    assert too_small(2).startswith("2 devices told by then are too few to decide")
    assert "break down" in too_small(12)
