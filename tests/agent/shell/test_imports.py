"""From the command that imports a bundle to the agent that takes it up, on a real disk."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.core.imports import Imported
from agent.errors import DeviceError
from agent.shell.imports import Imports, hand_over, tell_agent
from wire.bundle import BundleSeal
from wire.ids import digest_hex, digest_of
from wire.seal import Sealer, Verifier
from wire.transfer import Offer
from wire.twin import DesiredRelease, Probation

SEALER = Sealer(bytes(range(32)))
FILES = (b"the manifest of digits", b"weights", b"labels")


def seal_of(version: int = 2, model: str = "digits", device: str | None = None) -> BundleSeal:
    files = (b"%d %b" % (version, model.encode()) + FILES[0], *FILES[1:])
    offers = tuple(
        Offer(
            file=digest_of(file),
            file_bytes=len(file),
            transfer=digest_of(file),
            transfer_bytes=len(file),
            index=digest_of(b"index" + file),
        )
        for file in files
    )
    release = DesiredRelease(
        model=model,
        version=version,
        rollout="local-1",
        manifest=offers[0].file,
        offers=offers,
        probation=Probation(labelled_pairs=0),
    )
    return BundleSeal(release=release, device=device, install=True)


def bring(
    data_dir: Path,
    seal: BundleSeal,
    *,
    install: bool = False,
    sealer: Sealer = SEALER,
    reserve_bytes: int = 0,
    unpack: Callable[[Path], None] | None = None,
) -> Path:
    def write(into: Path) -> None:
        for offer in seal.release.offers:
            (into / digest_hex(offer.file)).write_bytes(b"x" * offer.file_bytes)

    return hand_over(
        data_dir,
        seal,
        sealer.seal(seal),
        install=install,
        reserve_bytes=reserve_bytes,
        unpack=unpack or write,
    )


class Desk:
    """An agent's imports and its slots."""

    def __init__(self, data_dir: Path, public: bytes = SEALER.public) -> None:
        self.imports = Imports(data_dir, Verifier((public,)), "cam-1")
        self.slots = data_dir / "blobs"
        self.slots.mkdir(exist_ok=True)

    def adopt(self, path: Path) -> None:
        path.replace(self.slots / path.name)

    def look(self) -> list[Imported]:
        return list(self.imports.take_up(self.adopt))

    def held(self) -> set[str]:
        return {f"sha256:{path.name}" for path in self.slots.iterdir()}


def left(data_dir: Path) -> set[str]:
    """Return every file below imports/, the lock apart."""
    root = data_dir / "imports"
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} - {"lock"}


def test_what_was_handed_over_is_taken_up_once_and_remembered(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    seal = seal_of()

    ready = bring(tmp_path, seal)
    found = desk.look()

    assert [(each.model, each.version, each.order) for each in found] == [("digits", 2, None)]
    assert set(found[0].files) == set(seal.files) == desk.held()
    assert not ready.exists()
    assert left(tmp_path) == {"digits.kept.json"}
    assert Desk(tmp_path).look() == found


def test_an_order_stays_one_until_it_is_in_the_journal(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    bring(tmp_path, seal_of(), install=True)

    before = [desk.look()[0].order, Desk(tmp_path).look()[0].order]
    desk.imports.journalled("digits")
    after = desk.look()[0].order

    assert before == [seal_of().release] * 2
    assert after is None
    assert left(tmp_path) == {"digits.kept.json"}


def test_the_latest_import_of_a_model_is_the_one_remembered(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for version in (2, 3):
        bring(tmp_path, seal_of(version))
        desk.look()
    bring(tmp_path, seal_of(1, "faces"))

    found = {(each.model, each.version) for each in desk.look()}

    assert found == {("digits", 3), ("faces", 1)}


def test_what_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    bring(tmp_path, seal_of(), install=True)
    desk.look()

    desk.imports.forget("digits")

    assert desk.look() == []
    assert left(tmp_path) == set()


@pytest.mark.parametrize("moved", range(4))
def test_a_power_cut_while_it_is_taken_up_loses_nothing(tmp_path: Path, moved: int) -> None:
    desk = Desk(tmp_path)
    seal = seal_of()
    bring(tmp_path, seal, install=True)

    class PowerCutError(Exception):
        pass

    def adopt(path: Path) -> None:
        if len(desk.held()) == moved:
            raise PowerCutError
        desk.adopt(path)

    if moved < 3:
        with pytest.raises(PowerCutError):
            desk.imports.take_up(adopt)
    else:
        desk.imports.take_up(adopt)
    [found] = Desk(tmp_path).look()

    assert desk.held() == set(seal.files)
    assert found.order == seal.release


def test_what_the_disk_refuses_is_left_for_the_next_look(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    bring(tmp_path, seal_of())

    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    first = desk.imports.take_up(refuse)

    assert first == ()
    assert len(desk.look()) == 1


@pytest.mark.parametrize("state", ["ready", "taken up"])
def test_a_seal_by_a_key_that_is_trusted_no_more_counts_no_more(tmp_path: Path, state: str) -> None:
    bring(tmp_path, seal_of(), install=True)
    if state == "taken up":
        Desk(tmp_path).look()
    later = Desk(tmp_path, public=Sealer(bytes(32)).public)

    assert later.look() == []
    assert left(tmp_path) == set()


def test_a_statement_for_another_device_is_not_followed(tmp_path: Path) -> None:
    bring(tmp_path, seal_of(device="cam-2"), install=True)

    assert Desk(tmp_path).look() == []
    assert left(tmp_path) == set()


def test_a_bundle_that_turns_out_wrong_leaves_nothing(tmp_path: Path) -> None:
    def turn_out_wrong(into: Path) -> None:
        (into / "half").write_bytes(b"of a file")
        raise DeviceError("bundle: wrong")

    with pytest.raises(DeviceError, match="wrong"):
        bring(tmp_path, seal_of(), unpack=turn_out_wrong)

    assert left(tmp_path) == set()
    assert Desk(tmp_path).look() == []


def test_what_a_killed_import_left_is_thrown_away_by_the_next(tmp_path: Path) -> None:
    incoming = tmp_path / "imports" / "incoming" / "abc"
    incoming.mkdir(parents=True)
    (incoming / "half").write_bytes(b"of a file")

    assert Desk(tmp_path).look() == []
    bring(tmp_path, seal_of())

    assert not incoming.exists()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"expected \d+ bytes free .* nothing was imported"):
        bring(tmp_path, seal_of(), reserve_bytes=2**60)

    assert left(tmp_path) == set()


def test_a_disk_that_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    def refuse(into: Path) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(DeviceError, match="cannot import into it: Input/output error; nothing"):
        bring(tmp_path, seal_of(), unpack=refuse)

    assert left(tmp_path) == set()


def test_two_imports_at_once_are_one_too_many(tmp_path: Path) -> None:
    inside, done = threading.Event(), threading.Event()

    def wait(into: Path) -> None:
        inside.set()
        assert done.wait(10)

    first = threading.Thread(target=bring, args=(tmp_path, seal_of()), kwargs={"unpack": wait})
    first.start()
    assert inside.wait(10)

    with pytest.raises(DeviceError, match="another one is under way"):
        bring(tmp_path, seal_of(3))

    done.set()
    first.join()
    assert [each.version for each in Desk(tmp_path).look()] == [2]


def test_the_agent_that_holds_the_directory_is_told(tmp_path: Path) -> None:
    program = (
        "import fcntl, os, signal, sys\n"
        f"lock = open({str(tmp_path / 'lock')!r}, 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print(os.getpid(), file=lock, flush=True)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "print('ready', flush=True)\n"
        "print(signal.sigtimedwait([signal.SIGUSR1], 10) is not None)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None and agent.stdout.readline() == "ready\n"

    told = tell_agent(tmp_path)

    assert told == agent.pid
    assert agent.communicate(timeout=10)[0] == "True\n"


def test_nobody_is_told_where_no_agent_runs(tmp_path: Path) -> None:
    before = tell_agent(tmp_path)
    # Left by an agent that ended; its number is somebody else's now.
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        after = tell_agent(tmp_path)

        assert (before, after) == (None, None)
        assert signal.SIGUSR1 not in signal.sigpending()
        with (tmp_path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
