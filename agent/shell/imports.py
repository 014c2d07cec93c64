"""Releases that came in a bundle: from the command that imports them to the agent that uses them.

    imports/lock                   held while a bundle is being imported
    imports/incoming/              what is being unpacked
    imports/ready/<release hex>/   verified whole, waiting for the agent: files by their digests,
                                   and the sealed statement, named order.json to be installed
    imports/<model>.json           the statement of what the agent took into its slots
    imports/<model>.order.json     the same, and its order is not in the journal yet

The command never touches the agent's slots: it hands a directory over by renaming it, so that
the agent may run, stop, or lose power at any time. There is one import a model, the latest.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.core.imports import Imported
from agent.errors import DeviceError
from wire.bundle import BundleSeal
from wire.codec import MAX_DOCUMENT_BYTES, DecodeError
from wire.ids import digest_hex
from wire.seal import SealError, Verifier

log = logging.getLogger(__name__)

KEPT, ORDERED = "kept.json", "order.json"
NEWS = signal.SIGUSR1
"""Tells a running agent to look. Not SIGHUP: a closed terminal still ends an agent in it."""

_HEX = re.compile("[0-9a-f]{64}")


class Imports:
    """The agent's side: takes up what is ready, and remembers it until it is told to forget."""

    def __init__(self, data_dir: Path, verifier: Verifier, device: str) -> None:
        self._root = data_dir / "imports"
        self._verifier = verifier
        self._device = device

    def take_up(self, adopt: Callable[[Path], None]) -> tuple[Imported, ...]:
        """Give every file that is ready to `adopt`, which moves it; return all that is kept.

        What the disk refuses is left for the next time.
        """
        for directory in _oldest_first(self._root / "ready", "*"):
            with _complaining(f"what waits in {directory}"):
                self._take(directory, adopt)
        found: list[Imported] = []
        for path in _oldest_first(self._root, "*.json"):
            with _complaining(f"the import in {path}"):
                found += self._kept(path)
        return tuple(found)

    def journalled(self, model: str) -> None:
        """Note that the order of this model's import is in the journal."""
        with _complaining(f"the order of {model}"), contextlib.suppress(FileNotFoundError):
            self._statement(model, ORDERED).replace(self._statement(model, KEPT))

    def forget(self, model: str) -> None:
        """Keep the files of this model's import no longer."""
        with _complaining(f"the import of {model}"):
            for name in (KEPT, ORDERED):
                self._statement(model, name).unlink(missing_ok=True)

    def _take(self, directory: Path, adopt: Callable[[Path], None]) -> None:
        for name in (KEPT, ORDERED):
            seal = self._read(directory / name)
            if seal is None:
                continue
            for file in directory.iterdir():
                if _HEX.fullmatch(file.name):
                    adopt(file)
            (directory / name).replace(self._statement(seal.release.model, name))
            _sync_directory(self._root)
        # Here it is empty, or its statement is not one to follow.
        shutil.rmtree(directory)

    def _kept(self, path: Path) -> Iterator[Imported]:
        seal = self._read(path)
        if seal is None:
            path.unlink(missing_ok=True)
            return
        release = seal.release
        ordered = seal.install and path.name == self._statement(release.model, ORDERED).name
        yield Imported(
            model=release.model,
            version=release.version,
            manifest=release.manifest,
            files=seal.files,
            since=path.stat().st_mtime,
            order=release if ordered else None,
        )

    def _read(self, path: Path) -> BundleSeal | None:
        """Return a statement that is there and by a key that is trusted still."""
        try:
            with path.open("rb") as file:
                seal = self._verifier.open(BundleSeal, file.read(MAX_DOCUMENT_BYTES + 1))
        except FileNotFoundError:
            return None
        except (SealError, DecodeError) as error:
            log.error("import: %s: %s; dropped", path, error)
            return None
        return seal if seal.device in (None, self._device) else None

    def _statement(self, model: str, name: str) -> Path:
        return self._root / f"{model}.{name}"


def hand_over(
    data_dir: Path,
    seal: BundleSeal,
    statement: bytes,
    *,
    install: bool,
    reserve_bytes: int,
    unpack: Callable[[Path], None],
) -> Path:
    """Have the files unpacked, and put them where the agent looks; return that directory.

    It is gone once an agent has taken it up. `unpack` writes the files and syncs each of them.

    Raises:
        DeviceError: another import is under way, or the disk is too full or refuses.
    """
    root, hex_digits = data_dir / "imports", digest_hex(seal.release.manifest)
    incoming, ready = root / "incoming" / hex_digits, root / "ready" / hex_digits
    try:
        root.mkdir(mode=0o750, parents=True, exist_ok=True)
        with _alone(root / "lock"):
            shutil.rmtree(incoming.parent, ignore_errors=True)
            try:
                _check_space(data_dir, seal.file_bytes, reserve_bytes)
                incoming.mkdir(mode=0o750, parents=True)
                unpack(incoming)
                _write_new(incoming / (ORDERED if install else KEPT), statement)
                _sync_directory(incoming)
                ready.parent.mkdir(mode=0o750, exist_ok=True)
                if ready.exists():
                    shutil.rmtree(ready)
                incoming.rename(ready)
            finally:
                shutil.rmtree(incoming.parent, ignore_errors=True)
            for each in (ready.parent, root, data_dir):
                _sync_directory(each)
    except OSError as error:
        denied = error.errno in (errno.EACCES, errno.EPERM)
        hint = "; run this as root or as its owner" if denied else ""
        raise DeviceError(
            f"data_dir {data_dir}: cannot import into it: {error.strerror}; "
            f"nothing was imported{hint}"
        ) from None
    return ready


def tell_agent(data_dir: Path) -> int | None:
    """Let the agent that uses the directory know that something is ready; return its process."""
    try:
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, ProcessLookupError):
            pid = int(os.pread(fd, 20, 0))
            os.kill(pid, NEWS)
            return pid
    finally:
        os.close(fd)
    return None


def act_as_owner(data_dir: Path) -> None:
    """Give up root's rights for those of the directory's owner, who has to read what we write."""
    if os.geteuid() != 0 or not data_dir.exists():
        return
    owner = data_dir.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


@contextlib.contextmanager
def _complaining(what: str) -> Iterator[None]:
    """Let nothing that the disk refuses end the agent; it is tried again with the next look."""
    try:
        yield
    except OSError as error:
        log.error("import: cannot see to %s: %s", what, error.strerror)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceError("import: another one is under way; try again after it") from None
        yield
    finally:
        os.close(fd)


def _check_space(data_dir: Path, needed: int, reserve_bytes: int) -> None:
    volume = os.statvfs(data_dir)
    free = volume.f_bavail * volume.f_frsize - reserve_bytes
    if needed > free:
        raise DeviceError(
            f"import: expected {needed} bytes free on the disk of {data_dir}, got {max(free, 0)} "
            f"beside the {reserve_bytes} that stay free; nothing was imported"
        )


def _oldest_first(directory: Path, pattern: str) -> list[Path]:
    found = []
    for path in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
