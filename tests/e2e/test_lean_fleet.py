"""Two hundred lean devices on one controller: the bench `fleet` in small, without a clock."""

from pathlib import Path

import pytest

from fleet.core.views import RolloutRequest
from scripts.benches._crowd import Crowd, allow_files
from tests.brokers import start_mosquitto
from tests.e2e.harness import NO_PROBATION, Fleet
from tests.e2e.models import write_big_model
from wire.twin import Probation

pytestmark = pytest.mark.e2e

DEVICES = 200
LIMIT_S = 60.0


def test_two_hundred_devices_are_told_answer_and_complete_two_rollouts(tmp_path: Path) -> None:
    allow_files(DEVICES)
    with Fleet(tmp_path, start_mosquitto(tmp_path)) as fleet:
        first, second = (_push(fleet, tmp_path, version) for version in (1, 2))
        [variant] = fleet.client.release("big", 1).variants
        with Crowd(fleet, DEVICES, 1, every_s=2.0, labels_s=1.0, variant=variant.name) as crowd:
            crowd.wait(
                "all online", lambda: fleet.client.health().devices_online == DEVICES, LIMIT_S
            )
            plain = RolloutRequest(release=first, probation=NO_PROBATION)
            waves = RolloutRequest(
                release=second, waves=("100", "100%"), probation=Probation(labelled_pairs=100)
            )

            ends = [
                fleet.wait_until_over(fleet.client.start_rollout(each).id)
                for each in (plain, waves)
            ]

            for end in ends:
                assert (end.status, end.because) == ("completed", "200 of 200 devices committed")
                # What the devices say of themselves comes once a second.
                crowd.wait(
                    "all to have ended", lambda id=end.id: crowd.ended(id) == DEVICES, LIMIT_S
                )  # type: ignore[misc]
                assert crowd.told(end.id)[0] == DEVICES
            crowd.wait("windows of all", lambda: _counted(fleet) == DEVICES, LIMIT_S)
            assert crowd.total("lost") == 0


def _push(fleet: Fleet, home: Path, version: int) -> str:
    return fleet.push(
        write_big_model(home / "big.onnx", 1 / 64, version), "--version", str(version)
    )


def _counted(fleet: Fleet) -> int:
    """Return how many devices serve the second release, with windows of it and none missing."""
    return sum(
        [s.version for s in each.serving] == [2]
        and any(score.version == 2 for score in each.scores)
        and not each.missing
        for each in fleet.client.devices()
    )
