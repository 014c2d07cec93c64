"""Drift of inputs, from the telemetry of devices to what is done about it: never a return."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.core.alert_policy import Policy, read_policy
from fleet.core.alert_rules import Memory
from fleet.core.alerts import Act, Facts, State, Tell, step
from fleet.core.errors import FleetError
from tests.fleet.core.test_alert_rules import NOW, Fleet, drifting

EVERYTHING_BUT = ["pause", "quarantine", "hook:retrain"]
SUSPECT = (400, 0, 0, 0)
"""Counts of an hour that all lie in the first of the four bins that the baseline has alike."""


def policy(*given: dict[str, Any], defaults: bool = True) -> Policy:
    hooks = [{"name": "retrain", "command": ["retrain"]}]
    return read_policy({"defaults": defaults, "hook": hooks, "rule": list(given)}, "alerts.toml")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "telemetry.db")
    yield made
    made.telemetry.close()


def run(fleet: Fleet, policy: Policy, hours: int, **counts: Any) -> list[Act | Tell]:
    """Let hours of inputs drift, with these counts beside them; return all that follows."""
    state, effects = State(), []
    fleet.memory = Memory()
    for hour in range(hours):
        drifting(fleet, hour, SUSPECT)
        if counts:
            fleet.count("cam-1", NOW - (NOW // 3600 + hour) * 3600 - 500, **counts)
        for minute in range(0, 60, 5):
            now = (NOW // 3600 + hour + 1) * 3600 + 901 + 60 * minute
            readings = tuple(fleet.see(policy, now))
            looked = frozenset(each.rule for each in readings)
            state, more = step(state, Facts(readings, looked), policy, now)
            effects += more
    return effects


def test_drift_alone_never_rolls_back_whatever_else_it_may_do(fleet: Fleet) -> None:
    """Every action that a drift rule takes, beside rules on accuracy that would roll back."""
    fleet.serve("cam-1")
    given = policy(
        {"name": "drift", "kind": "drift", "window": "1h", "actions": EVERYTHING_BUT},
        {"name": "worse", "kind": "accuracy", "drop": 0.05, "for": 0, "actions": ["rollback"]},
    )

    effects = run(fleet, given, hours=6)

    acts = [each.action for each in effects if isinstance(each, Act)]
    assert sorted(acts) == sorted(EVERYTHING_BUT)
    told = [each.alert.rule for each in effects if isinstance(each, Tell)]
    assert "drift" in told
    assert "worse" not in told


def test_labels_that_show_worse_answers_beside_drift_do_roll_back(fleet: Fleet) -> None:
    """So that the test above would see one."""
    fleet.serve("cam-1")
    given = policy(
        {"name": "drift", "kind": "drift", "window": "1h", "actions": EVERYTHING_BUT},
        {"name": "worse", "kind": "accuracy", "drop": 0.05, "for": 0, "actions": ["rollback"]},
        defaults=False,
    )

    effects = run(fleet, given, hours=6, requests=400, labelled=400, correct=200)

    acts = [(each.action, each.reason) for each in effects if isinstance(each, Act)]
    assert [reason for action, reason in acts if action == "rollback"] != []
    assert all("labelled accuracy" in reason for action, reason in acts if action == "rollback")


@pytest.mark.parametrize(
    ("rule", "because"),
    [
        ({"kind": "drift"}, "drift alone never rolls back"),
        (
            {"kind": "accuracy", "evidence": "estimated", "drop": 0.1},
            "estimated accuracy alone never rolls back",
        ),
    ],
)
def test_a_policy_that_would_roll_back_for_changed_inputs_is_refused(
    rule: dict[str, Any], because: str
) -> None:
    with pytest.raises(FleetError, match=because):
        policy({"name": "mine", "actions": ["rollback"], **rule})
