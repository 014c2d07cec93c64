"""How far devices are, as `fleet rollout status` and `fleet device show` tell it."""

from typing import Any

import pytest

from fleet.cli import views
from fleet.core.views import DeviceView, RolloutDeviceView, RolloutStatus, RolloutView
from wire.twin import DeploymentReport, Phase, Probation

MIB = 1024 * 1024
NOW = 1_800_000_000.0


def member(id: str, phase: Phase = Phase.FETCHING, **more: Any) -> RolloutDeviceView:
    return RolloutDeviceView(id=id, wave=1, online=True, phase=phase, **more)


def rollout(*members: RolloutDeviceView) -> RolloutView:
    return RolloutView(
        id="r-1",
        release="digits@2",
        digest="sha256:" + "0" * 64,
        to="all",
        status=RolloutStatus.RUNNING,
        because="wave 1 of 1: waiting for 3 of 3 devices",
        started_at=NOW,
        ended_at=None,
        probation=Probation(),
        waves=(),
        devices=members,
    )


def test_status_shows_bytes_speed_and_what_is_left_of_each_and_of_all() -> None:
    moving = member("cam-1", bytes_done=21 * MIB, bytes_total=50 * MIB, bytes_per_s=MIB)
    still = member("cam-2", bytes_total=50 * MIB)
    through = member("cam-3", Phase.TRIAL, bytes_done=50 * MIB, bytes_total=50 * MIB)

    lines = views.rollout_status(rollout(moving, still, through))

    assert lines[1:] == [
        "  fetching 21%, 21.0 MiB of 100.0 MiB, 1.0 MiB/s, 1 min left",
        "running: wave 1 of 1: waiting for 3 of 3 devices",
        "  cam-1  fetching 42%, 21.0 MiB of 50.0 MiB, 1.0 MiB/s, 29 s left",
        "  cam-2  fetching 0%, 0 B of 50.0 MiB",
        "  cam-3  trial",
    ]
    assert views.bytes_progress(rollout(moving, still, through)) == (21 * MIB, 100 * MIB)


def test_a_device_that_waits_says_what_for() -> None:
    early = member("cam-1", Phase.PREFLIGHT, waiting=True, detail="held: its rollout is paused")
    late = member(
        "cam-2",
        bytes_done=MIB,
        bytes_total=2 * MIB,
        waiting=True,
        detail="waiting for its window 01:00-05:00",
    )

    lines = views.rollout_status(rollout(early, late))

    assert lines[-2:] == [
        "  cam-1  preflight, held: its rollout is paused",
        "  cam-2  fetching 50%, 1.0 MiB of 2.0 MiB, waiting for its window 01:00-05:00",
    ]


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        (0, "digits@2 fetching 25%, 16.0 MiB of 64.0 MiB"),
        (64 * 1024, "digits@2 fetching 25%, 16.0 MiB of 64.0 MiB, 64.0 KiB/s, 12 min left"),
    ],
)
def test_show_says_how_far_a_device_is_and_what_it_wrote(speed: int, expected: str) -> None:
    report = DeploymentReport(
        model="digits",
        version=2,
        rollout="r-1",
        manifest="sha256:" + "0" * 64,
        phase=Phase.FETCHING,
        since=1,
        bytes_done=16 * MIB,
        bytes_total=64 * MIB,
        bytes_per_s=speed,
    )
    device = DeviceView(
        id="cam-1",
        online=True,
        last_seen=NOW,
        deployments=(report,),
        health={"agent_cpu_percent": 1.0, "agent_rss_bytes": MIB, "flash_bytes_written": 3 * MIB},
    )

    lines = views.device_show(device, NOW)

    assert f"  deployment  {expected}" in lines
    assert any(line.endswith("flash written 3.0 MiB") for line in lines)
    assert views.deployment(report) == "digits@2 fetching 25%", "short, for tables"
