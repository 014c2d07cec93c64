"""What a fleet costs that has nothing to do."""

import time

import pytest

from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Fleet, cpu_seconds

WATCHED_S = 12.0
LIMIT = 0.01
"""Of one core."""


def test_who_has_nothing_to_do_uses_less_than_a_hundredth_of_a_core(
    default_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = default_fleet
    # As its unit runs it: without asserts and docstrings.
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    # Reports as rarely as they are by default.
    agent = fleet.agent("cam-1", telemetry={"window_s": 60, "health_s": 60})
    fleet.wait_until_online(agent)
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    with App(agent.url) as app:
        app.wait_for_answers(100)
    processes = {
        "agent": agent.pid,
        "engine": agent.engine().pid,
        "controller": fleet.controller.pid,
    }

    before = {name: cpu_seconds(pid) for name, pid in processes.items()}
    began = time.monotonic()
    time.sleep(WATCHED_S)
    elapsed = time.monotonic() - began
    shares = {name: (cpu_seconds(p) - before[name]) / elapsed for name, p in processes.items()}

    assert shares["agent"] + shares["engine"] < LIMIT, shares
    assert shares["controller"] < LIMIT, shares
