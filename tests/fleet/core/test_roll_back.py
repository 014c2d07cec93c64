"""A rollout that is over, taken back all the same; and releases that are condemned by one."""

from dataclasses import replace

import pytest

from fleet.core.census import Census
from fleet.core.evidence import Verdict, blames
from fleet.core.gate import Answer, Standing
from fleet.core.present import rollout_view
from fleet.core.rollout import SILENCE_S, Rollout, condemned, roll_back, step, supersede
from fleet.core.views import RolloutStatus
from tests.fleet.core.worlds import NEW, OLD, T0, census_of, deployment, report, rollout_of, status
from wire.twin import Phase, Reason

LATER = T0 + 3600


def completed(*ids: str) -> tuple[Rollout, Census]:
    census = census_of(*ids)
    rollout, _ = step(rollout_of(ids), census, T0)
    for id in ids:
        latest = deployment(Phase.COMMITTED)
        census.hear_reported(report(id, 2, NEW, latest), T0, retained=False)
    rollout, _ = step(rollout, census, T0)
    assert rollout.status is RolloutStatus.COMPLETED
    return rollout, census


def returns(census: Census, id: str, sequence: int = 3) -> None:
    latest = deployment(Phase.COMMITTED, purpose="rollback", manifest=OLD)
    census.hear_reported(report(id, sequence, OLD, latest), LATER, retained=False)


def test_a_completed_rollout_takes_all_its_devices_back_to_what_they_had() -> None:
    rollout, census = completed("a", "b")

    rolling, orders = step(roll_back(rollout, {"a", "b"}, "wrong", LATER), census, LATER)

    assert rolling.status is RolloutStatus.ROLLING_BACK
    assert rolling.ended_at is None
    assert [(o.device, o.assignment and o.assignment.manifest) for o in orders] == [
        ("a", OLD),
        ("b", OLD),
    ]
    for id in "ab":
        returns(census, id)
    ended, more = step(rolling, census, LATER + 1)
    assert more == []
    assert (ended.status, ended.because) == (
        RolloutStatus.ABORTED,
        "wrong; 2 of 2 devices on the release before",
    )


def test_a_device_with_another_order_since_is_left_alone() -> None:
    rollout, census = completed("a", "b")

    rolling, orders = step(roll_back(rollout, {"a"}, "wrong", LATER), census, LATER)
    returns(census, "a")
    ended, _ = step(rolling, census, LATER + 1)

    assert [order.device for order in orders] == ["a"]
    assert ended.because == (
        "wrong; 1 of 1 device on the release before; 1 left alone, told something else since"
    )
    shown = {d.id: d.recall for d in rollout_view(ended, census, LATER, with_devices=True).devices}
    assert shown == {"a": "back", "b": "left alone"}


def test_an_offline_device_is_named_and_keeps_its_order_to_return() -> None:
    rollout, census = completed("a", "b")
    census.hear_status(status("b", online=False), LATER, retained=False)

    rolling, orders = step(roll_back(rollout, {"a", "b"}, "wrong", LATER), census, LATER)
    returns(census, "a")
    waiting, _ = step(rolling, census, LATER + 1)
    ended, _ = step(waiting, census, LATER + SILENCE_S + 1)

    assert [order.device for order in orders] == ["a", "b"]
    assert waiting.status is RolloutStatus.ROLLING_BACK
    assert ended.because == "wrong; 1 of 2 devices on the release before; not b"
    shown = {d.id: d.recall for d in rollout_view(ended, census, LATER, with_devices=True).devices}
    assert shown == {"a": "back", "b": "offline"}


def test_a_device_that_cannot_go_back_says_why() -> None:
    rollout, census = completed("a")
    rolling, _ = step(roll_back(rollout, {"a"}, "wrong", LATER), census, LATER)
    latest = deployment(
        Phase.FAILED, purpose="rollback", manifest=OLD, reason=Reason.NO_SPACE, detail="3 MiB free"
    )
    census.hear_reported(report("a", 3, NEW, latest), LATER, retained=False)

    ended, _ = step(rolling, census, LATER + 1)

    [device] = rollout_view(ended, census, LATER, with_devices=True).devices
    assert ended.because.endswith("0 of 1 device on the release before; not a")
    assert device.recall == "cannot: no_space, 3 MiB free"


def test_a_first_release_has_nothing_before() -> None:
    rollout, census = completed("a")
    first = replace(rollout, previous={"a": None})

    ended, orders = step(roll_back(first, {"a"}, "wrong", LATER), census, LATER)

    [device] = rollout_view(ended, census, LATER, with_devices=True).devices
    assert [order.assignment for order in orders] == [None]
    assert device.recall == "nothing before"


def test_a_superseded_rollout_can_be_taken_back_and_one_that_is_back_cannot_again() -> None:
    census = census_of("a", "b")
    again, _ = step(rollout_of(("a",), ("b",)), census, T0)
    over, _ = supersede(again, census, "r-3", T0)

    rolling = roll_back(over, {"a"}, "wrong", LATER)
    ended, _ = step(replace(rolling, told={}), census, LATER)

    assert rolling.status is RolloutStatus.ROLLING_BACK
    assert ended.status is RolloutStatus.ABORTED
    assert roll_back(rolling, {"a"}, "wrong", LATER) is rolling
    assert roll_back(ended, {"a"}, "wrong", LATER) is ended


@pytest.mark.parametrize(
    ("gate", "reasons", "own"),
    [
        ("accuracy", [], True),
        ("crashes", [], True),
        ("failures", [], False),
        ("threshold", [Reason.CRASHED, Reason.WORSE_THAN_CHAMPION, Reason.NO_SPACE], True),
        ("threshold", [Reason.CRASHED, Reason.NO_SPACE], False),
        ("threshold", [Reason.WRONG_ARCH], False),
    ],
)
def test_a_release_is_condemned_for_what_it_is_and_not_for_a_full_disk(
    gate: str, reasons: list[Reason], own: bool
) -> None:
    answers = [Answer(Standing.REFUSED, Phase.REJECTED, reason) for reason in reasons]

    assert blames(gate, [*answers, Answer(Standing.COMMITTED)]) is own


def test_an_operator_who_calls_a_rollout_off_condemns_nothing() -> None:
    before, _ = step(rollout_of(("a",)), census_of("a"), T0)
    off = replace(before, status=RolloutStatus.ROLLING_BACK)
    decided = (Verdict("accuracy", "abort", T0, "E"),)

    assert not condemned(before, off)
    assert not condemned(None, replace(off, verdicts=decided))
    assert not condemned(replace(off, verdicts=decided), replace(off, verdicts=decided))
    assert condemned(before, replace(off, verdicts=decided))
