"""An operator who has seen enough opens all waves at once."""

from fleet.core.rollout import abort, notable, pause, promote, step
from fleet.core.views import RolloutStatus
from tests.fleet.core.worlds import NEW, OLD, T0, census_of, deployment, report, rollout_of
from wire.twin import Phase, Reason

WAVES = (("a",), ("b",), ("c", "d"))


def test_a_promotion_tells_all_that_are_left_at_once_and_the_verdict_is_kept() -> None:
    census = census_of("a", "b", "c", "d")
    rollout, _ = step(rollout_of(*WAVES), census, T0)

    hurried = promote(rollout, "by the operator: seen", T0 + 1)
    after, orders = step(hurried, census, T0 + 1)

    assert notable(rollout, hurried)
    assert [order.device for order in orders] == ["b", "c", "d"]
    assert after.open == 3
    assert [(v.gate, v.ruling, v.words) for v in after.verdicts] == [
        ("operator", "promote", "promoted to all 3 waves by the operator: seen")
    ]
    for id in "abcd":
        latest = deployment(Phase.COMMITTED)
        census.hear_reported(report(id, 2, NEW, latest), T0 + 2, retained=False)
    ended, _ = step(after, census, T0 + 2)
    assert (ended.status, ended.because) == (
        RolloutStatus.COMPLETED,
        "4 of 4 devices committed",
    )


def test_refusals_still_call_a_promoted_rollout_off() -> None:
    census = census_of("a", "b", "c", "d")
    rollout, _ = step(rollout_of(*WAVES), census, T0)
    rollout, _ = step(promote(rollout, "now", T0), census, T0)
    for id in "ab":
        latest = deployment(Phase.FAILED, reason=Reason.CRASHED)
        census.hear_reported(report(id, 2, OLD, latest), T0 + 1, retained=False)

    after, orders = step(rollout, census, T0 + 1)

    assert after.status is RolloutStatus.ABORTED
    assert {order.device for order in orders} == set("abcd")


def test_what_is_paused_over_or_all_open_is_not_promoted() -> None:
    census = census_of("a", "b", "c", "d")
    rollout, _ = step(rollout_of(*WAVES), census, T0)
    all_open, _ = step(promote(rollout, "now", T0), census, T0)

    for each in (pause(rollout, "lunch"), abort(rollout, "wrong", T0), all_open):
        assert promote(each, "now", T0) is each
