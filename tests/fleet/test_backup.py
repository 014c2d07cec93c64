"""A backup of a running controller, and what goes on from it."""

import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fleet.core.errors import FleetError
from fleet.shell.backup import restore_backup, verify_backup, write_backup
from tests.brokers import start_mosquitto, start_nats
from tests.fleet.test_controller import World, wait_for

BROKERS = {"mosquitto": start_mosquitto, "nats": start_nats}


def silent(more: int) -> None:
    pass


@pytest.fixture(params=BROKERS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        broker = stack.enter_context(BROKERS[request.param](tmp_path))
        yield World(tmp_path, broker, stack)


def test_a_restored_controller_outbids_the_revisions_that_devices_have_seen(world: World) -> None:
    device = world.device("cam-1")
    world.push(1)
    world.ended(world.roll_out("digits@1").id)
    data, file = world.directory / "controller", world.directory / "fleet.backup"
    write_backup(data, file, silent)
    world.push(2)
    world.ended(world.roll_out("digits@2").id)
    seen = device.revision

    world.controller.stop()
    data.rename(world.directory / "lost")
    restore_backup(file, data, silent)
    world.restart_controller()

    wait_for(lambda: device.desired[-1].revision > seen, "a higher revision")
    assert [each.version for each in device.desired[-1].releases] == [1]
    world.push(2)
    world.ended(world.roll_out("digits@2").id)
    assert device.desired[-1].releases[0].version == 2


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with ExitStack() as stack:
        broker = stack.enter_context(start_mosquitto(tmp_path))
        world = World(tmp_path, broker, stack)
        world.push(1)
        write_backup(tmp_path / "controller", tmp_path / "b", silent)
    return tmp_path / "b"


def test_a_backup_is_for_its_owner_alone_and_never_restored_over_anything(backup: Path) -> None:
    full = backup.parent / "full"
    full.mkdir()
    (full / "mine").touch()

    with pytest.raises(FleetError, match="empty"):
        restore_backup(backup, full, silent)
    with pytest.raises(FleetError, match="exists already"):
        write_backup(backup.parent / "controller", backup, silent)

    assert verify_backup(backup, silent).members.keys() >= {"controller.key", "fleet.db"}
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [each.name for each in full.iterdir()] == ["mine"]


def test_a_broken_backup_is_told_and_leaves_nothing(backup: Path) -> None:
    whole, target = backup.read_bytes(), backup.parent / "restored"
    middle = len(whole) // 2
    tampered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]

    for broken in (tampered, whole[:middle], whole[:512], b"", b"no tar at all" * 100):
        backup.write_bytes(broken)
        with pytest.raises(FleetError, match="broken"):
            restore_backup(backup, target, silent)

    assert not target.exists()
    assert not list(backup.parent.glob(".fleet-*"))
