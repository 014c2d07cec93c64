"""Challengers that hang, eat memory or crash, in their trial or on probation, beside a champion."""

from pathlib import Path

import pytest

from fleet.core.views import DeviceView
from tests.e2e.app import App
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from tests.e2e.models import write_challenger
from wire.twin import DeploymentReport, Phase, Probation, Reason

LIMITS = {"engine": {"runtimes": ["onnxruntime"], "memory_mb": 256, "invoke_timeout_s": 2}}
LONG = Probation(labelled_pairs=100_000, deadline_s=600)


def end_of(fleet: Fleet, agent: Agent, version: int) -> DeploymentReport:
    """Return how the deployment of a version ended."""

    def ended() -> DeploymentReport | None:
        device: DeviceView = fleet.device(agent)
        found = [d for d in device.deployments if d.version == version and d.phase.final]
        return found[0] if found else None

    return wait_for(f"the end of digits@{version}", ended)


@pytest.mark.parametrize(
    ("when", "phase", "reasons"),
    [
        ("in its trial", Phase.FAILED, [Reason.HUNG, Reason.OUT_OF_MEMORY, Reason.CRASHED]),
        ("on probation", Phase.ROLLED_BACK, [Reason.HUNG, Reason.CRASHED, Reason.CRASHED]),
    ],
)
def test_a_challenger_that_misbehaves_never_disturbs_the_champion(
    default_fleet: Fleet, tmp_path: Path, when: str, phase: Phase, reasons: list[Reason]
) -> None:
    fleet = default_fleet
    agent = fleet.agent("cam-1", **LIMITS)
    fleet.wait_until_online(agent)
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    champion = agent.engine()
    ends = []

    with App(agent.url, seed=1) as app:
        for version, mood in enumerate(("hangs", "eats", "crashes"), 2):
            file = write_challenger(tmp_path / f"{mood}.onnx", mood, at_once=when == "in its trial")
            release = fleet.push(file, "--name", "digits")
            fleet.start_rollout(release, probation=LONG)
            ends.append(end_of(fleet, agent, version))
            app.wait_for_answers(20)

    assert [(end.phase, end.reason) for end in ends] == [(phase, reason) for reason in reasons]
    assert agent.running and agent.engine().pid == champion.pid
    assert not app.broken and not app.refused
    assert set(app.versions) == {1}
    # On a busy machine; a hang would be the whole of its time, four times 2 s at low priority.
    assert app.longest_wait_s < 6
