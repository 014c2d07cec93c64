"""Automatic maintenance: answers are bad, an alert fires, and its hook brings a better release."""

import json
import sys
from pathlib import Path

from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Fleet, wait_for

POLICY = """
defaults = false
every = "300ms"

[[rule]]
name = "accuracy"
kind = "accuracy"
model = "digits"
per = "model"
below = 0.96
for = 0
min_samples = 100
false_alarms_a_year = 10000
severity = "critical"
actions = ["hook:retrain"]

[[hook]]
name = "retrain"
command = {command}
"""

RETRAIN = """
import subprocess, sys

release, summary = sys.argv[1:]
with open(summary, "w") as file:
    file.write(sys.stdin.read())
fleet = [sys.executable, "-m", "fleet"]
subprocess.run([*fleet, "model", "push", release], check=True)
subprocess.run([*fleet, "rollout", "start", "digits@2", "--no-probation"], check=True)
"""


def test_accuracy_that_falls_calls_a_hook_whose_release_mends_it(tmp_path: Path) -> None:
    script, told = tmp_path / "retrain.py", tmp_path / "summary.json"
    script.write_text(RETRAIN)
    command = [sys.executable, str(script), str(SAMPLES / "digits-2"), str(told)]
    policy = tmp_path / "alerts.toml"
    policy.write_text(POLICY.replace("{command}", json.dumps(command)))

    with Fleet(tmp_path, "mosquitto", "--alerts", str(policy)) as fleet:
        [agent] = fleet.join("cam-1")
        fleet.push(SAMPLES / "digits-3")
        fleet.rollout("digits@3")
        with App(agent.url, rate=150):
            (alert,) = wait_for("an alert", fleet.client.alerts)
            device = fleet.wait_until_serving(agent, "digits@2")
            wait_for("its end", lambda: not fleet.client.alerts())
        over = fleet.client.alert(alert.id)
        shown = fleet.command("alerts", "show", alert.id)
        events = fleet.command("events")

        assert device.serving[0].version == 2
        assert over.state == "resolved"
        assert "labelled accuracy 9" in over.reason
        (act,) = over.actions
        assert (act.action, act.outcome) == ("hook:retrain", "done")
        assert "digits: labelled accuracy" in act.reason
        assert "hook:retrain done" in shown
        assert f"{alert.id} accuracy is over (critical)" in events
        summary = json.loads(told.read_text())
        assert summary["alert"]["id"] == alert.id
        assert summary["model"] == "digits"
        assert summary["accuracy"]["labelled"]["share"] < 0.96
        assert summary["devices"] == 1
        assert sum(summary["classes"].values()) == summary["requests"]
