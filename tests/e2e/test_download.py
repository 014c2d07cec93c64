"""Downloads that are cut, and disks that are full."""

from pathlib import Path

from fleet.shell.blobs import CHUNK_BYTES
from tests.e2e.app import App
from tests.e2e.disk import Disk, small_disk
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from tests.e2e.models import MEBIBYTE, write_big_model
from tests.e2e.wiretap import Wiretap
from wire.ids import digest_of
from wire.transfer import chunk_hash
from wire.twin import Reason

WINDOW = 16
SLOW = {"bytes_per_s": 6 * MEBIBYTE, "window_chunks": WINDOW, "reserve_mb": 0}


def test_a_killed_agent_goes_on_with_its_download(fleet: Fleet, tmp_path: Path) -> None:
    agent = fleet.agent("cam-1", transfer=SLOW)
    file = write_big_model(tmp_path / "big.onnx", 30)
    content = file.read_bytes()
    transfer = digest_of(content)
    release = fleet.push(file)
    fleet.wait_until_online(agent)

    with Wiretap(broker_url(fleet), "farflung/a/#") as tap:
        rollout = fleet.start_rollout(release)
        agent.wait_until_fetched(len(content) // 4)
        agent.kill()
        kept = chunks_kept(agent.partial(transfer), content)
        agent.start()
        view = fleet.wait_until_over(rollout)
        # Health comes once a second.
        missing = len(content) - kept * CHUNK_BYTES
        wait_for("its report", lambda: fleet.health(agent).get("transfer_bytes") == missing, 30)

    assert view.status == "completed"
    assert kept * CHUNK_BYTES >= len(content) // 4
    assert f"resuming, {kept} of {-(-len(content) // CHUNK_BYTES)} chunks on disk" in agent.said()
    chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
    index = b"".join(chunk_hash(chunk) for chunk in chunks)
    bound = len(content) + 2 * len(index) + WINDOW * CHUNK_BYTES
    assert len(content) <= tap.sent_bytes[digest_of(index)] <= bound
    fleet.wait_until_serving(agent, release)


def test_a_model_that_does_not_fit_is_not_fetched(mosquitto_fleet: Fleet, tmp_path: Path) -> None:
    fleet = mosquitto_fleet
    with small_disk(tmp_path / "disk") as disk:
        agent, big = serving_digits(fleet, disk, tmp_path)
        disk.leave(8 * MEBIBYTE)

        with App(agent.url) as app, Wiretap(broker_url(fleet), "farflung/a/#") as tap:
            view = fleet.wait_until_over(fleet.start_rollout(big))

        assert [d.reason for d in view.devices] == [Reason.NO_SPACE]
        assert [d.phase for d in view.devices] == ["rejected"]
        assert max(tap.sent_bytes.values()) < MEBIBYTE
        check_still_serving(fleet, agent, app)
        fleet.wait_for_requests(agent, app.answered)
        agent.kill()


def test_a_disk_that_fills_up_midway_costs_the_download_alone(
    mosquitto_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = mosquitto_fleet
    with small_disk(tmp_path / "disk") as disk:
        agent, big = serving_digits(fleet, disk, tmp_path)

        with App(agent.url) as app:
            rollout = fleet.start_rollout(big)
            agent.wait_until_fetched(4 * MEBIBYTE)
            disk.leave(0)
            view = fleet.wait_until_over(rollout)

        assert [d.reason for d in view.devices] == [Reason.NO_SPACE]
        assert [d.phase for d in view.devices] == ["failed"]
        check_still_serving(fleet, agent, app)

        disk.free()
        fleet.rollout(big)
        fleet.wait_until_serving(agent, big)
        agent.kill()


def broker_url(fleet: Fleet) -> str:
    return fleet.client.health().broker_url


def chunks_kept(part: Path, content: bytes) -> int:
    """Count the chunks of a partial file that are right."""
    held = part.read_bytes()
    places = range(0, len(content), CHUNK_BYTES)
    return sum(held[at : at + CHUNK_BYTES] == content[at : at + CHUNK_BYTES] for at in places)


def serving_digits(fleet: Fleet, disk: Disk, tmp_path: Path) -> tuple[Agent, str]:
    """Start an agent on `disk` that serves digits; return it, and a big release that fits."""
    agent = fleet.agent(
        "cam-1",
        data_dir=str(disk.path / "data"),
        transfer={**SLOW, "reserve_mb": disk.reserve_mb},
    )
    fleet.push(SAMPLES / "digits-1")
    big = fleet.push(write_big_model(tmp_path / "big.onnx", 24))
    fleet.wait_until_online(agent)
    fleet.rollout("digits@1")
    return agent, big


def check_still_serving(fleet: Fleet, agent: Agent, app: App) -> None:
    device = fleet.wait_until_serving(agent, "digits@1")
    assert device.online
    assert app.answered and not app.broken and not app.refused
    [deployment] = [d for d in device.deployments if d.model == "big"]
    assert deployment.reason is Reason.NO_SPACE and deployment.detail
