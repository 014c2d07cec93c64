"""A rollout told wave by wave, judged by what devices report, and taken back."""

from dataclasses import replace

import pytest

from fleet.core.census import Census
from fleet.core.gate import Standing
from fleet.core.rollout import (
    ANSWER_S,
    SILENCE_S,
    Assign,
    Rollout,
    abort,
    fallback_for,
    notable,
    pause,
    resume,
    step,
    supersede,
)
from fleet.core.views import RolloutStatus
from tests.fleet.core.worlds import (
    NEW,
    OLD,
    T0,
    census_of,
    deployment,
    report,
    rollout_of,
    status,
)
from wire.manners import Manners
from wire.twin import Phase, Reason

FIVE = ("a", "b", "c", "d", "e")


def hear(census: Census, id: str, sequence: int, phase: Phase, now: float = T0) -> None:
    took = phase is Phase.COMMITTED
    census.hear_reported(
        report(id, sequence, NEW if took else OLD, deployment(phase)), now, retained=False
    )


def refuse(census: Census, id: str, sequence: int = 2) -> None:
    latest = deployment(
        Phase.ROLLED_BACK,
        reason=Reason.WORSE_THAN_CHAMPION,
        detail="27 worse, 6 better, E = 1024",
    )
    census.hear_reported(report(id, sequence, OLD, latest), T0, retained=False)


def told(orders: list[Assign]) -> list[str]:
    return [
        order.device for order in orders if order.assignment and order.assignment.manifest == NEW
    ]


def test_the_first_step_tells_the_first_wave_alone() -> None:
    census = census_of(*FIVE)

    rollout, orders = step(rollout_of(("a", "b"), ("c", "d", "e")), census, T0)

    assert told(orders) == ["a", "b"]
    assert rollout.open == 1
    assert rollout.because == "wave 1 of 2: waiting for 2 of 2 devices"


def test_a_step_without_news_returns_the_same_rollout_and_no_orders() -> None:
    census = census_of(*FIVE)
    rollout, _ = step(rollout_of(FIVE), census, T0)

    again, orders = step(rollout, census, T0 + 1)

    assert again is rollout
    assert orders == []


def test_the_next_wave_opens_when_the_open_ones_have_answered() -> None:
    census = census_of(*FIVE)
    rollout, _ = step(rollout_of(("a", "b"), ("c", "d", "e")), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)
    half, early = step(rollout, census, T0)
    hear(census, "b", 2, Phase.COMMITTED)

    rollout, orders = step(half, census, T0)

    assert early == []
    assert told(orders) == ["c", "d", "e"]


def test_it_completes_when_the_last_wave_has_answered() -> None:
    census = census_of("a", "b")
    rollout, _ = step(rollout_of(("a", "b")), census, T0)
    for id in "ab":
        hear(census, id, 2, Phase.COMMITTED)

    rollout, orders = step(rollout, census, T0 + 9)

    assert (rollout.status, rollout.because) == (
        RolloutStatus.COMPLETED,
        "2 of 2 devices committed",
    )
    assert rollout.ended_at == T0 + 9
    assert orders == []


def test_refusals_above_the_limit_abort_with_the_devices_own_words() -> None:
    census = census_of(*FIVE)
    rollout, _ = step(rollout_of(FIVE), census, T0)
    refuse(census, "a")
    bearable, none = step(rollout, census, T0)
    refuse(census, "b")

    rollout, orders = step(bearable, census, T0)

    assert bearable.status is RolloutStatus.RUNNING
    assert none == []
    assert rollout.status is RolloutStatus.ABORTED, "nobody took it: there is nothing to wait for"
    assert rollout.because == (
        "2 of 5 devices refused digits@2: worse_than_champion "
        "(a: 27 worse, 6 better, E = 1024); limit 20%; 5 of 5 devices on the release before"
    )
    assert len(orders) == 5


def test_a_recall_needs_no_probation_unless_the_old_order_still_holds() -> None:
    census = census_of(*FIVE)
    rollout, _ = step(rollout_of(FIVE), census, T0)
    refuse(census, "a")
    refuse(census, "b")
    hear(census, "c", 2, Phase.COMMITTED)

    rollout, orders = step(rollout, census, T0)

    recalls = {order.device: order.assignment for order in orders}
    assert recalls["a"] == rollout.previous["a"], "it refused: the order it had"
    for id in ("c", "d"):
        recall = recalls[id]
        assert recall is not None
        assert (recall.manifest, recall.rollout, recall.purpose) == (OLD, "r-2", "rollback")
        assert recall.probation.labelled_pairs == 0


def test_it_is_aborted_once_all_that_can_be_reached_are_back() -> None:
    census = census_of("a", "b", "c")
    rollout, _ = step(rollout_of(("a", "b", "c"), limit=0), census, T0)
    hear(census, "b", 2, Phase.COMMITTED)
    hear(census, "c", 2, Phase.COMMITTED)
    census.hear_status(status("c", online=False), T0, retained=False)
    refuse(census, "a")
    rollout, _ = step(rollout, census, T0)
    waiting, _ = step(rollout, census, T0 + 1)
    latest = deployment(Phase.COMMITTED, purpose="rollback", manifest=OLD)
    census.hear_reported(report("b", 3, OLD, latest), T0 + 2, retained=False)

    rollout, orders = step(waiting, census, T0 + SILENCE_S)

    assert waiting.status is RolloutStatus.ROLLING_BACK
    assert rollout.status is RolloutStatus.ABORTED
    assert rollout.because.endswith("; 2 of 3 devices on the release before; not c")
    assert orders == []


@pytest.mark.parametrize(
    "latest",
    [
        deployment(Phase.COMMITTED, purpose="fallback", manifest=OLD, reason=Reason.CRASHED),
        deployment(Phase.COMMITTED),
    ],
)
def test_a_release_taken_back_after_its_commit_counts_as_refused(latest: object) -> None:
    census = census_of("a", "b")
    rollout, _ = step(rollout_of(("a",), ("b",)), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)
    rollout, _ = step(rollout, census, T0)
    census.hear_reported(
        report("a", 3, OLD).model_copy(update={"deployments": (latest,)}), T0, retained=False
    )

    after, _ = step(rollout, census, T0)

    assert after.told["a"].answer.standing is Standing.REFUSED
    assert after.status is RolloutStatus.ABORTED
    assert "1 of 2 devices refused digits@2" in after.because


def test_a_completed_rollout_stays_completed_whatever_happens_later() -> None:
    census = census_of("a")
    rollout, _ = step(rollout_of(("a",)), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)
    rollout, _ = step(rollout, census, T0)
    fallback = deployment(Phase.COMMITTED, purpose="fallback", manifest=OLD)
    census.hear_reported(report("a", 3, OLD, fallback), T0, retained=False)

    assert step(rollout, census, T0 + 60) == (rollout, [])
    assert abort(rollout, "late", T0) is rollout
    assert supersede(rollout, census, "r-3", T0) == (rollout, [])


def held(orders: list[Assign]) -> dict[str, bool]:
    return {o.device: o.assignment.manners.held for o in orders if o.assignment is not None}


def test_a_pause_holds_who_is_on_the_way_and_opens_no_wave() -> None:
    census = census_of("a", "b", "c")
    rollout, _ = step(rollout_of(("a", "b"), ("c",)), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)

    rollout, orders = step(pause(rollout, "lunch"), census, T0)
    hear(census, "b", 2, Phase.COMMITTED)
    later, none = step(rollout, census, T0 + 7 * 86_400)

    assert held(orders) == {"b": True}
    assert (later.status, later.because, later.open) == (RolloutStatus.PAUSED, "lunch", 1)
    assert none == []


def test_a_resume_lets_everybody_go_on_and_the_waves_follow() -> None:
    census = census_of("a", "b", "c")
    rollout, _ = step(rollout_of(("a", "b"), ("c",)), census, T0)
    rollout, _ = step(pause(rollout, "lunch"), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)

    rollout, orders = step(resume(rollout, T0 + 60), census, T0 + 60)
    hear(census, "b", 2, Phase.COMMITTED)
    rollout, more = step(rollout, census, T0 + 61)

    assert held(orders) == {"a": False, "b": False}
    assert held(more) == {"c": False}
    assert pause(resume(rollout, T0), "again").status is RolloutStatus.PAUSED


def test_too_many_refusals_end_a_paused_rollout_as_well() -> None:
    census = census_of("a", "b")
    rollout, _ = step(rollout_of(("a",), ("b",)), census, T0)
    rollout, _ = step(pause(rollout, "lunch"), census, T0)
    hear(census, "a", 2, Phase.FAILED)

    rollout, orders = step(rollout, census, T0)

    assert rollout.status is RolloutStatus.ABORTED
    assert held(orders) == {"a": False}


def test_whom_a_paused_rollout_held_goes_on_when_it_is_superseded() -> None:
    census = census_of("a", "b")
    rollout, _ = step(rollout_of(("a", "b")), census, T0)
    rollout, _ = step(pause(rollout, "lunch"), census, T0)

    ended, orders = supersede(rollout, census, "r-3", T0)

    assert ended.status is RolloutStatus.SUPERSEDED
    assert held(orders) == {"a": False, "b": False}


def test_whom_an_aborted_rollout_held_is_taken_back_before_a_newer_one_begins() -> None:
    census = census_of("a", "b")
    rollout, _ = step(rollout_of(("a", "b")), census, T0)
    rollout, _ = step(pause(rollout, "lunch"), census, T0)
    rollout = abort(rollout, "no", T0)

    ended, orders = supersede(rollout, census, "r-3", T0)

    assert ended.status is RolloutStatus.SUPERSEDED
    assert held(orders) == {"a": False, "b": False}
    assert {order.assignment.manifest for order in orders if order.assignment} == {OLD}


def test_nobody_is_taken_for_silent_because_of_a_pause() -> None:
    census = census_of("a")
    rollout, _ = step(rollout_of(("a",)), census, T0)
    rollout, _ = step(pause(rollout, "a long lunch"), census, T0)
    late = T0 + 5 * 86_400
    census.hear("a", late)

    rollout, _ = step(resume(rollout, late), census, late)

    assert rollout.status is RolloutStatus.RUNNING
    assert rollout.because == "wave 1 of 1: waiting for 1 of 1 device"


def test_a_device_that_waits_for_its_window_is_waited_for() -> None:
    census = census_of("a")
    rollout, _ = step(rollout_of(("a",)), census, T0)
    waits = deployment(Phase.FETCHING).model_copy(update={"waiting": True})
    census.hear_reported(report("a", 2, OLD, waits), T0, retained=False)
    rollout, _ = step(rollout, census, T0)
    patience = 1800 + 86_400 + 1200
    for late in (T0 + patience + 60, T0 + patience + 86_400 + 60):
        census.hear("a", late)
        rollout, _ = step(rollout, census, late)
        if late < T0 + patience + 86_400:
            assert rollout.because == "wave 1 of 1: waiting for 1 of 1 device"

    assert rollout.because == "wave 1 of 1: holding, no device of it answers"


@pytest.mark.parametrize(
    ("asked", "devices", "expected"), [(None, 199, 0), (None, 10_000, 50), (7, 10_000, 7)]
)
def test_the_devices_of_a_large_wave_begin_spread_over_time(
    asked: int | None, devices: int, expected: int
) -> None:
    rollout = replace(rollout_of(tuple(f"d-{n}" for n in range(devices))), spread_s=asked)

    _, orders = step(rollout, Census(), T0)

    assert {o.assignment.manners.spread_s for o in orders if o.assignment} == {expected}


def test_the_way_back_is_taken_at_once_and_no_faster_than_the_line_may_carry() -> None:
    census = census_of("a")
    manners = Manners(bytes_per_s=4096, windows=("01:00-05:00",))
    rollout, orders = step(replace(rollout_of(("a",)), manners=manners, spread_s=60), census, T0)

    _, recall = step(abort(rollout, "stop", T0), census, T0)

    assert orders[0].assignment is not None
    assert orders[0].assignment.manners == manners.model_copy(update={"spread_s": 60})
    assert recall[0].assignment is not None
    assert recall[0].assignment.manners == Manners(bytes_per_s=4096)


def test_a_silent_device_does_not_block_the_wave_for_ever_and_never_passes_it_alone() -> None:
    census = census_of("a", "b", "c")
    rollout, _ = step(rollout_of(("a", "b"), ("c",)), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)
    census.hear_status(status("b", online=False), T0, retained=False)

    waits, none = step(rollout, census, T0 + SILENCE_S - 1)
    census.hear("c", T0 + SILENCE_S)
    goes_on, orders = step(waits, census, T0 + SILENCE_S)

    assert none == []
    assert told(orders) == ["c"]
    assert goes_on.told["b"].answer.standing is Standing.WORKING


def test_a_wave_that_nobody_answers_holds_and_is_given_up_in_the_end() -> None:
    census = census_of("a", "b")
    for id in "ab":
        census.hear_status(status(id, online=False), T0, retained=False)
    rollout, _ = step(rollout_of(("a",), ("b",)), census, T0)

    holds, none = step(rollout, census, T0 + ANSWER_S - 1)
    over, _ = step(holds, census, T0 + ANSWER_S)

    assert none == []
    assert holds.because == "wave 1 of 2: holding, no device of it answers"
    assert over.because.startswith("wave 1 of 2: holding, no device of it answers, for 7 days")
    assert over.status is RolloutStatus.ABORTED


def test_a_first_release_has_nothing_to_go_back_to() -> None:
    census = census_of("a")
    rollout = replace(rollout_of(("a",), limit=0), previous={"a": None})
    rollout, _ = step(rollout, census, T0)
    refuse(census, "a")

    rollout, orders = step(rollout, census, T0)

    assert orders == [Assign("a", "digits", None)]
    assert rollout.status is RolloutStatus.ABORTED


def test_the_way_back_leads_to_what_a_device_serves() -> None:
    census = census_of("a")
    past = {"r-2": rollout_of(("a",))}
    current = replace(rollout_of(("a",)).previous["a"], manifest=NEW, version=2, rollout="r-2")

    refused_it = fallback_for(census.get("a"), current, past)
    census.hear_reported(report("a", 2, NEW), T0, retained=False)
    took_it = fallback_for(census.get("a"), current, past)

    assert refused_it == past["r-2"].previous["a"]
    assert took_it == current


def test_progress_alone_is_not_worth_storing() -> None:
    census = census_of("a")
    rollout, _ = step(rollout_of(("a",)), census, T0)
    hear(census, "a", 2, Phase.FETCHING)
    fetching, _ = step(rollout, census, T0)
    more = deployment(Phase.FETCHING).model_copy(update={"bytes_done": 65536})
    census.hear_reported(report("a", 3, OLD, more), T0, retained=False)

    moved, _ = step(fetching, census, T0 + 5)

    assert moved.told["a"].moved_at == T0 + 5
    assert not notable(fetching, moved)
    assert notable(rollout, abort(rollout, "why", T0))


def test_an_empty_wave_is_passed_over() -> None:
    census = census_of("a", "b")
    rollout, orders = step(rollout_of((), ("a",), (), ("b",)), census, T0)
    hear(census, "a", 2, Phase.COMMITTED)

    after, more = step(rollout, census, T0)

    assert (told(orders), rollout.open) == (["a"], 2)
    assert (told(more), after.open) == (["b"], 4)


def test_a_rollout_is_a_value() -> None:
    rollout = rollout_of(("a",))

    step(rollout, census_of("a"), T0)

    assert rollout == rollout_of(("a",))
    assert isinstance(rollout, Rollout)
