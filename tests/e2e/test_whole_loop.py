"""From push to accuracy: three releases on three runtimes, with the brokers we embed."""

import json
from pathlib import Path

import pytest

from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Agent, Fleet

RUNTIMES = {"cam-1": "onnxruntime", "cam-2": "ai-edge-litert", "cam-3": "tflite-runtime"}


@pytest.mark.parametrize("broker", ["nats", "mosquitto"])
def test_good_releases_reach_every_runtime_and_a_bad_one_is_refused_there(
    tmp_path: Path, broker: str
) -> None:
    with Fleet(tmp_path, broker) as fleet:
        agents = [fleet.agent(id, runtime=runtime) for id, runtime in RUNTIMES.items()]
        for agent in agents:
            fleet.wait_until_online(agent)
        for version in (1, 2, 3):
            fleet.push(SAMPLES / f"digits-{version}")

        first = fleet.cli("rollout", "start", "digits@1", "--watch")
        apps = [App(agent.url, seed=place, rate=100) for place, agent in enumerate(agents)]
        second = fleet.cli("rollout", "start", "digits@2", "--watch")
        third = fleet.cli("rollout", "start", "digits@3", "--watch", code=1)
        for app in apps:
            app.stop()

        assert "completed: 3 of 3 devices committed" in first
        assert "completed: 3 of 3 devices committed" in second
        refused, aborted = refusal(fleet, "r-3")
        assert "next: fleet rollout status r-3" in third
        assert "worse" in refused and "digits@3" in aborted
        for agent, app in zip(agents, apps, strict=True):
            device = fleet.wait_until_serving(agent, "digits@2")
            assert device.serving[0].runtime.startswith(RUNTIMES[agent.id])
            assert set(app.versions) == {1, 2}
            check_counts(fleet, agent, app)

        for agent in agents:
            assert agent.stop() == 0
        for agent, app in zip(agents, apps, strict=True):
            fleet.wait_until_offline(agent)
            assert fleet.requests(agent) == app.answered


def refusal(fleet: Fleet, rollout: str) -> tuple[str, str]:
    """Return why a device refused the rollout's release, and why the rollout ended."""
    view = fleet.client.rollout(rollout)
    assert view.status == "aborted"
    [detail, *_] = [d.detail for d in view.devices if d.reason == "worse_than_champion"]
    return detail, view.because


def check_counts(fleet: Fleet, agent: Agent, app: App) -> None:
    """What the app did is what the controller knows, to the last request and label."""
    assert not app.broken and not app.refused
    fleet.wait_for_requests(agent, app.answered)
    scores = fleet.device(agent).scores
    assert {score.version: score.requests for score in scores} == dict(app.versions)
    assert sum(score.labelled for score in scores) == app.labelled
    assert sum(score.correct for score in scores) == app.correct
    assert not any(score.errors for score in scores)
    for score in scores:
        assert score.p50_ms is not None and score.p95_ms is not None
        assert 0 < score.p50_ms <= score.p95_ms
        assert score.accuracy is not None
        assert score.accuracy_low is not None and score.accuracy_high is not None
        assert score.accuracy_low < score.accuracy < score.accuracy_high
        assert score.accuracy > 0.9
    shown = fleet.command("device", "show", agent.id)
    best = scores[-1]
    assert f"{best.requests} requests, p95 {best.p95_ms:.1f} ms" in shown
    assert f"{100 * best.accuracy:.1f}% (" in shown  # type: ignore[operator]
    assert json.loads(fleet.command("device", "show", agent.id, "--json"))["scores"]
