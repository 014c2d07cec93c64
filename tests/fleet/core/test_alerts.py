"""When an alert fires and resolves, and what is done about it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.alert_policy import DriftRule, Policy, read_policy
from fleet.core.alerts import (
    Act,
    Alert,
    Effect,
    Facts,
    Grade,
    Reading,
    State,
    Subject,
    Tell,
    acknowledge,
    concluded,
    count_by_severity,
    lasting,
    silence,
    step,
    unsilence,
)
from fleet.core.errors import FleetError

CAM = Subject("cam-1", device="cam-1")
DIGITS = Subject("digits@2", "digits", 2)
T0 = 1_000_000.0


def policy(*rules: dict[str, Any], **settings: Any) -> Policy:
    hooks = [{"name": "retrain", "command": ["retrain"]}]
    given = {"defaults": False, "hook": hooks, **settings, "rule": list(rules)}
    return read_policy(given, "alerts.toml")


def disk(**settings: Any) -> dict[str, Any]:
    return {"name": "disk", "kind": "disk", "below": 5, "for": "2m", **settings}


def accuracy(**settings: Any) -> dict[str, Any]:
    return {"name": "accuracy", "kind": "accuracy", "below": 0.9, "for": 0, **settings}


class World:
    """Looks, one a minute, at one policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state = State()
        self.now = T0
        self.effects: list[Effect] = []

    def look(
        self, grade: Grade | None, subject: Subject = CAM, rule: str = "disk", after: float = 60.0
    ) -> list[Effect]:
        readings = [] if grade is None else [Reading(rule, subject, grade, f"{grade}!", 60.0)]
        return self.see(*readings, looked={rule}, after=after)

    def see(self, *readings: Reading, looked: set[str], after: float = 60.0) -> list[Effect]:
        self.now += after
        facts = Facts(readings, frozenset(looked))
        self.state, effects = step(self.state, facts, self.policy, self.now)
        self.effects += effects
        return effects

    def told(self) -> list[str]:
        return [e.alert.state for e in self.effects if isinstance(e, Tell)]

    def acts(self) -> list[tuple[str, str]]:
        return [(e.action, e.outcome) for e in self.effects if isinstance(e, Act)]

    @property
    def only(self) -> Alert:
        (alert,) = self.state.alerts.values()
        return alert


def test_an_alert_fires_once_it_was_bad_for_as_long_as_its_rule_says() -> None:
    world = World(policy(disk()))

    seen = []
    for _ in range(4):
        world.look("bad")
        seen.append(world.only.state)

    assert seen == ["pending", "pending", "firing", "firing"]
    assert world.told() == ["firing"]
    assert (world.only.began_at, world.only.fired_at) == (T0 + 60, T0 + 180)


def test_what_is_bad_for_a_moment_is_forgotten_and_nobody_hears_of_it() -> None:
    world = World(policy(disk()))

    world.look("bad")
    world.look("between")

    assert world.state.alerts == {}
    assert world.told() == []


def test_an_alert_resolves_once_it_was_good_without_a_break_for_clear_for() -> None:
    world = World(policy(disk(clear_for="3m")))
    for _ in range(3):
        world.look("bad")

    states = []
    for grade in ("good", "good", "between", "good", "good", "good", "good"):
        world.look(grade)
        states.append(world.only.state)

    assert states == ["firing"] * 6 + ["resolved"]
    assert world.told() == ["firing", "resolved"]
    assert world.only.reason == "good!"


def test_no_data_neither_fires_an_alert_nor_resolves_one() -> None:
    pending, firing = World(policy(disk())), World(policy(disk()))
    pending.look("bad")
    for _ in range(3):
        firing.look("bad")

    for _ in range(50):
        pending.look(None)
        firing.look(None)

    assert pending.only.state == "pending"
    assert firing.only.state == "firing"


def test_one_rule_and_one_subject_are_one_alert_however_often_it_is_seen() -> None:
    world = World(policy(disk(**{"for": 0})))

    for _ in range(20):
        world.look("bad")

    assert len(world.state.alerts) == 1
    assert world.told() == ["firing"]


def test_what_comes_back_after_its_end_is_a_new_alert() -> None:
    world = World(policy(disk(**{"for": 0})))

    for grade in ("bad", "good", "bad"):
        world.look(grade)

    assert [a.state for a in world.state.alerts.values()] == ["resolved", "firing"]
    assert world.told() == ["firing", "resolved", "firing"]


def test_a_clock_that_jumps_ahead_is_worth_two_looks_at_most() -> None:
    world = World(policy(disk(**{"for": "10m"})))
    world.look("bad")

    world.look("bad", after=10 * 365 * 86_400.0)

    assert world.only.state == "pending"
    assert world.only.bad_s == 120.0


def test_a_clock_that_is_set_back_fires_nothing_and_loses_nothing() -> None:
    world = World(policy(disk(**{"for": "3m"})))
    world.look("bad")
    world.look("bad")

    world.look("bad", after=-1e6)
    before = world.only.state
    world.look("bad")
    world.look("bad")

    assert before == "pending"
    assert world.only.state == "firing"


def many(count: int, grade: Grade = "bad") -> list[Reading]:
    subjects = [Subject(f"cam-{n}", device=f"cam-{n}") for n in range(count)]
    return [Reading("disk", each, grade, "full", 60.0) for each in subjects]


def test_many_devices_at_once_are_one_alert_that_names_a_few() -> None:
    world = World(policy(disk(group_over=5, actions=["command:ping", "hook:retrain"])))

    for _ in range(3):
        world.see(*many(500), looked={"disk"})

    assert world.only.subject.name == "many devices"
    assert world.only.reason == "500 devices at once (cam-0, cam-1, cam-2 and 497 more): full"
    assert world.told() == ["firing"]
    # A command would go to nobody in particular.
    assert world.acts() == [("hook:retrain", "planned")]


def test_a_group_ends_when_half_as_many_are_bad_and_the_rest_are_told_one_by_one() -> None:
    world = World(policy(disk(group_over=4, **{"for": 0})))
    world.see(*many(5), looked={"disk"})

    world.see(*many(3), looked={"disk"})
    still = [a.subject.name for a in world.state.firing()]
    world.see(*many(2), looked={"disk"})

    assert still == ["many devices"]
    assert [a.subject.name for a in world.state.firing()] == ["cam-0", "cam-1"]


def test_a_silence_keeps_an_alert_from_being_told_and_acted_upon_until_it_ends() -> None:
    world = World(policy(accuracy(actions=["pause"])))
    world.state, quiet = silence(
        world.state, until=T0 + 200, reason="known", by="ann", rule="", subject="digits@2", now=T0
    )

    during = [world.look("bad", DIGITS, "accuracy") for _ in range(3)]
    after = world.look("bad", DIGITS, "accuracy")

    assert during == [[], [], []]
    assert [type(each) for each in after] == [Tell, Act]
    assert quiet.id not in world.state.silences


@pytest.mark.parametrize("subject", ["digits", "digits@2", "cam-1", "digits@2 on cam-1", "a-1"])
def test_a_silence_may_name_a_model_a_release_a_device_a_subject_or_an_alert(subject: str) -> None:
    about = Subject("digits@2 on cam-1", "digits", 2, "cam-1")
    world = World(policy(accuracy()))
    world.state, _ = silence(
        world.state, until=T0 + 1e6, reason="", by="", rule="", subject=subject, now=T0
    )
    # The silence took the first number.
    world.state = replace(world.state, last=0)

    world.look("bad", about, "accuracy")

    assert world.told() == []


def test_a_silence_of_another_rule_or_subject_keeps_nothing_back() -> None:
    world = World(policy(accuracy()))
    for rule, subject in (("disk", ""), ("", "digits@3"), ("accuracy", "cam-9")):
        world.state, _ = silence(
            world.state, until=T0 + 1e6, reason="", by="", rule=rule, subject=subject, now=T0
        )

    world.look("bad", DIGITS, "accuracy")

    assert world.told() == ["firing"]


def test_a_silence_taken_back_lets_the_alert_be_told_at_the_next_look() -> None:
    world = World(policy(accuracy()))
    world.state, quiet = silence(
        world.state, until=T0 + 1e6, reason="", by="", rule="", subject="", now=T0
    )
    world.look("bad", DIGITS, "accuracy")

    world.state = unsilence(world.state, quiet.id)
    world.look("bad", DIGITS, "accuracy")

    assert world.told() == ["firing"]


def test_what_was_silent_all_along_ends_without_a_word() -> None:
    world = World(policy(accuracy()))
    world.state, _ = silence(
        world.state, until=T0 + 1e6, reason="", by="", rule="", subject="", now=T0
    )

    world.look("bad", DIGITS, "accuracy")
    world.look("good", DIGITS, "accuracy")

    assert world.only.state == "resolved"
    assert world.told() == []


def test_an_acknowledged_alert_is_not_acted_upon_again() -> None:
    rule = accuracy(actions=["hook:retrain"], act_again="1h")
    world = World(policy(rule, act_once_in="1m"))
    world.look("bad", DIGITS, "accuracy")
    world.look("bad", DIGITS, "accuracy", after=3600)
    twice = len(world.acts())

    world.state = acknowledge(world.state, world.only.id, "ann", "on it", world.now)
    world.look("bad", DIGITS, "accuracy", after=3600)

    assert twice == 2
    assert len(world.acts()) == 2
    assert (world.only.acked_by, world.only.note) == ("ann", "on it")


def test_without_act_again_an_alert_is_acted_upon_once() -> None:
    world = World(policy(accuracy(actions=["hook:retrain"]), act_once_in="1m"))

    for _ in range(50):
        world.look("bad", DIGITS, "accuracy", after=3600)

    assert world.acts() == [("hook:retrain", "planned")]


def test_a_restart_keeps_alerts_that_fire_and_tells_and_does_nothing_twice() -> None:
    world = World(policy(accuracy(actions=["pause"])))
    world.look("bad", DIGITS, "accuracy")
    kept = {id: lasting(alert) for id, alert in world.state.alerts.items()}
    world.state = replace(world.state, alerts=kept)
    world.effects.clear()

    world.look("bad", DIGITS, "accuracy")
    quiet = list(world.effects)
    world.look("good", DIGITS, "accuracy")

    assert quiet == []
    assert world.told() == ["resolved"]


def test_one_kind_of_action_is_done_to_one_target_once_in_a_while() -> None:
    on_two = [Subject(f"digits@2 on cam-{n}", "digits", 2, f"cam-{n}") for n in (1, 2)]
    world = World(policy(accuracy(per="device", actions=["rollback"]), act_once_in="1h"))

    readings = [Reading("accuracy", each, "bad", "low", 60.0) for each in on_two]
    world.see(*readings, looked={"accuracy"})

    assert world.acts() == [("rollback", "planned"), ("rollback", "held_back")]
    held = list(world.state.acts.values())[1]
    assert held.detail == "x-3 did the same to digits@2 lately"


def test_what_was_refused_does_not_count_towards_the_limit() -> None:
    world = World(policy(accuracy(actions=["pause"])))
    world.look("bad", DIGITS, "accuracy")
    (act,) = world.state.acts.values()
    world.state = concluded(world.state, act.id, "refused", "no rollout runs", world.now)

    world.look("good", DIGITS, "accuracy")
    world.look("bad", DIGITS, "accuracy")

    assert [outcome for _, outcome in world.acts()] == ["planned", "planned"]


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_dry_run_says_what_would_be_done_and_does_not(everywhere: bool) -> None:
    rule = accuracy(actions=["rollback", "quarantine"], dry_run=not everywhere)
    world = World(policy(rule, dry_run=everywhere))

    world.look("bad", DIGITS, "accuracy")

    assert world.acts() == [("rollback", "dry_run"), ("quarantine", "dry_run")]
    assert world.told() == ["firing"]


def test_a_policy_in_which_drift_alone_rolls_back_is_refused() -> None:
    rule = {"name": "drift", "kind": "drift", "actions": ["rollback"]}

    with pytest.raises(FleetError, match="drift alone never rolls back"):
        policy(rule)


def test_drift_rolls_nothing_back_even_where_a_policy_was_not_checked() -> None:
    sound = DriftRule.model_validate({"name": "drift", "kind": "drift"})
    rule = sound.model_copy(update={"actions": ("rollback", "pause")})
    world = World(Policy.model_construct(**{**policy().__dict__, "rule": (rule,)}))

    world.look("bad", DIGITS, "drift")

    assert world.acts() == [("pause", "planned")]


def test_alerts_of_a_rule_that_is_no_more_end_with_that_reason() -> None:
    world = World(policy(disk(**{"for": 0})))
    world.look("bad")

    world.policy = policy()
    world.see(looked=set())

    assert world.only.state == "resolved"
    assert world.only.reason == "the rule is no more"


def test_alerts_are_bounded_and_those_refused_are_counted() -> None:
    world = World(policy(disk(group_over=1000), max_alerts=10))

    world.see(*many(25), looked={"disk"})

    assert len(world.state.alerts) == 10
    assert world.state.refused == 15


def test_alerts_that_fire_are_counted_by_severity() -> None:
    world = World(policy(disk(severity="critical", **{"for": 0}), accuracy()))

    world.see(*many(3), Reading("accuracy", DIGITS, "bad", "low", 60.0), looked={"disk"})

    assert count_by_severity(world.state.alerts.values()) == {"critical": 3, "warning": 1}


GRADES = st.sampled_from(["bad", "good", "between", "gone", None])
STEPS = st.tuples(GRADES, st.floats(-100, 400), st.booleans())


@given(st.lists(STEPS, max_size=40))
def test_whatever_comes_each_firing_is_told_once_and_each_end_once(
    steps: list[tuple[Grade | None, float, bool]],
) -> None:
    world = World(policy(disk(actions=["hook:retrain"], clear_for="3m")))

    for grade, after, restarted in steps:
        if restarted:
            alerts = world.state.alerts.items()
            kept = {id: lasting(each) for id, each in alerts if each.state != "pending"}
            world.state = replace(world.state, alerts=kept)
        world.look(grade, after=after)

    told = world.told()
    assert told == ["firing", "resolved"] * (len(told) // 2) + ["firing"] * (len(told) % 2)
    planned = [e.alert for e in world.effects if isinstance(e, Act)]
    assert len(planned) == len(set(planned))
    assert len(world.state.active()) <= 1
