"""The core and the slots together, on a real directory whose every operation may fail."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from agent.core import actions as do
from agent.core import events as ev
from agent.errors import DeviceError
from agent.shell.slots import slots
from tests.agent.core.world import CHUNK, World, champion_of, make_release, phase_of
from tests.agent.shell.desk import Desk
from tests.operations import (
    DiskTap,
    Fault,
    Remove,
    Resize,
    Sync,
    SyncNames,
    Write,
)
from tests.power_cut import Recording
from wire.ids import digest_hex
from wire.twin import Phase, Reason

OLD = make_release(1)
NEW = make_release(2)
REASONS = {errno.ENOSPC: Reason.NO_SPACE, errno.EIO: Reason.IO_ERROR}
SAVE_ATTEMPTS = 1000


class DeviceOnDisk(World):
    """The world with real slots under it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.desk = Desk(root)
        super().__init__(OLD, NEW)

    def boot(self) -> None:
        self.journal = self.desk.slots.load_journal()
        if self.journal.desired is not None:
            self.revision = self.journal.desired.revision
        self.blobs = dict.fromkeys(self.desk.slots.blobs(), b"")
        super().boot()

    def _carry_out(self, action: do.Action) -> None:
        disk = self.desk.slots
        match action:
            case do.SaveJournal(journal):
                self._save(action)
                self.journal = journal
            case do.MeasureSpace():
                self.local.append(ev.SpaceMeasured(disk.measure_space(), disk.blob_sizes()))
            case do.OpenTransfer(offer):
                disk.open_transfer(offer)
                self.local.append(self.desk.next())
            case do.WriteIndex(transfer, index):
                disk.write_index(transfer, index)
            case do.WriteChunk(transfer, offset, payload):
                disk.write_chunk(transfer, offset, payload)
            case do.FinishTransfer(offer):
                disk.finish(offer)
                self.local.append(self.desk.next())
            case do.CloseTransfer(transfer):
                disk.close_transfer(transfer)
            case do.ReadManifest(digest):
                disk.read_manifest(digest)
            case do.CollectGarbage(files, transfers, heard):
                disk.collect_garbage(files, transfers, heard)
            case _:
                super()._carry_out(action)
        while not self.desk.events.empty():
            self.local.append(self.desk.events.get())
        self.blobs = dict.fromkeys(disk.blobs(), b"")

    def _save(self, action: do.SaveJournal) -> None:
        """Try until the disk takes it, as the daemon does."""
        for _ in range(SAVE_ATTEMPTS):
            try:
                return self.desk.slots.save_journal(action.journal)
            except DeviceError:
                continue
        raise AssertionError("the journal was never written")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device's directory on which the old release is the champion."""
    root = tmp_path_factory.mktemp("installed") / "data"
    with DiskTap(root, Recording()):
        world = DeviceOnDisk(root)
        world.want(OLD, "r-1")
        world.settle()
    assert champion_of(world) == 1
    world.desk.slots.close()
    return root


def test_whatever_operation_fails_the_old_model_serves_and_nothing_is_left(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "SYNC_BYTES", 2 * CHUNK)
    kinds: set[type] = set()
    for code in REASONS:
        for skip in range(1000):
            fault = Fault(code, skip)
            root = tmp_path / f"{code}-{skip}"
            shutil.copytree(installed, root)
            with DiskTap(root, fault):
                outcome = roll_out_over(root, fault)
            if fault.struck is None:
                assert outcome is Phase.COMMITTED
                break
            kinds.add(type(fault.struck))
        assert skip > 60

    assert kinds >= {Write, Resize, Sync, SyncNames, Remove}


def roll_out_over(root: Path, fault: Fault) -> Phase:
    """Roll the new release out on a faulty disk, and again on a sound one; return how it went."""
    world = DeviceOnDisk(root)
    try:
        world.settle()
        fault.armed = True
        world.want(NEW, "r-2")
        world.settle()
        phase, reason = phase_of(world)
        about = f"{os.strerror(fault.code)} at {fault.struck}: {phase} {reason}"
        if phase is not Phase.COMMITTED or fault.lost_bytes:
            assert (phase, reason) == (Phase.FAILED, REASONS[fault.code]), about
            assert champion_of(world) == 1, about
            told = world.reports[-1].deployments[-1]
            assert (told.phase, told.reason) == (phase, reason) and told.detail, about
            check_tidy(world, about)
        fault.armed = False
        world.want(NEW, "r-3")
        world.settle()
        assert phase_of(world) == (Phase.COMMITTED, None), about
        assert champion_of(world) == 2, about
        world.crash()
        world.settle()
        assert champion_of(world) == 2, about
        check_tidy(world, about)
        return phase
    finally:
        world.desk.slots.close()


def check_tidy(world: DeviceOnDisk, about: str) -> None:
    """What lies on the disk is what the journal names, and nothing else."""
    journal = world.journal
    installed = (*journal.champions.values(), *journal.previous.values())
    kept = {digest_hex(digest) for each in installed for digest in each.files}
    assert {path.name for path in (world.root / "blobs").iterdir()} == kept, about
    assert [path.name for path in (world.root / "partial").iterdir()] == [], about
    assert list(world.root.glob("*.new")) == [], about
