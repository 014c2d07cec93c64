"""Real devices that fetch when they may, and are paused in the middle."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fleet.core.views import RolloutStatus
from fleet.shell.blobs import CHUNK_BYTES
from tests.e2e.harness import Fleet, wait_for
from tests.e2e.models import MEBIBYTE, write_big_model
from tests.e2e.wiretap import Wiretap
from wire.ids import digest_of

WINDOW = 8
SLOW = {"bytes_per_s": 4 * MEBIBYTE, "window_chunks": WINDOW, "reserve_mb": 0}


def test_a_paused_fetch_stands_still_and_goes_on_without_losing_a_chunk(
    mosquitto_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = mosquitto_fleet
    agent = fleet.agent("cam-1", transfer=SLOW)
    file = write_big_model(tmp_path / "big.onnx", 16)
    content = file.read_bytes()
    release = fleet.push(file)
    fleet.wait_until_online(agent)

    def device():
        return fleet.client.rollout(rollout).devices[0]

    with Wiretap(fleet.client.health().broker_url, "farflung/a/#") as tap:
        rollout = fleet.start_rollout(release)
        agent.wait_until_fetched(len(content) // 4)
        fleet.client.pause_rollout(rollout, "lunch")
        wait_for("the hold", lambda: device().waiting, 30)
        time.sleep(1.5)  # what was asked for may still come
        before = dict(tap.sent_bytes)
        time.sleep(2.0)
        after, held = dict(tap.sent_bytes), device()
        fleet.client.resume_rollout(rollout)
        view = fleet.wait_until_over(rollout)

    assert after == before
    assert held.detail == "held: its rollout is paused"
    assert len(content) // 4 <= held.bytes_done < len(content)
    assert view.status is RolloutStatus.COMPLETED
    assert tap.sent_bytes[digest_of(content)] <= len(content) + WINDOW * CHUNK_BYTES
    wait_for("its report", lambda: fleet.health(agent).get("flash_bytes_written", 0) > 0, 30)


def test_a_device_outside_its_window_waits_for_it(mosquitto_fleet: Fleet, tmp_path: Path) -> None:
    fleet = mosquitto_fleet
    now = datetime.now(UTC)
    closed = f"{(now + timedelta(hours=3)):%H}:00-{(now + timedelta(hours=5)):%H}:00"
    agent = fleet.agent("cam-1", transfer={**SLOW, "windows": [closed], "timezone": "UTC"})
    file = write_big_model(tmp_path / "big.onnx", 4)
    release = fleet.push(file)
    fleet.wait_until_online(agent)

    rollout = fleet.start_rollout(release)
    waits = wait_for(
        "the wait",
        lambda: next((d for d in fleet.client.rollout(rollout).devices if d.waiting), None),
        15,
    )

    assert waits.phase == "fetching"
    assert waits.detail == f"waiting for its window {closed}"
    assert waits.bytes_done < 200_000
