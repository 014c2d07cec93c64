"""A controller's data directory in one file, taken while it runs, and back.

The file is a tar; its last member, `backup.json`, names every other one with its length and
SHA-256. So a file that was cut off has no `backup.json`, and one that changed does not match.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from fleet.core.errors import FleetError

_LIST = "backup.json"
_MAX_LIST_BYTES = 256 * 1024 * 1024
_DATABASES = ("fleet.db", "telemetry.db")
_NEEDED = ("controller.key", *_DATABASES)
_LEDGER = "authority/ledger.db"
"""Of the certificates that were issued; there is none before `fleet authority init`."""
_FILES = (
    "controller.key",
    "alerts.toml",
    "broker/settings.json",
    "authority/ca.pem",
    "authority/ca.key",
)
_FOLDERS = ("blobs", "transfers", "samples")
_PLACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_PIECE = 1024 * 1024

Progress = Callable[[int], None]
"""Told how many more bytes are done."""


class Member(BaseModel):
    """One file of a backup."""

    size_bytes: int
    sha256: str


class Contents(BaseModel):
    """What a backup says that it holds."""

    format: int = 1
    members: dict[str, Member]


def write_backup(data: Path, target: Path, progress: Progress) -> Contents:
    """Write everything that a controller in `data` needs to `target`, all of it or nothing.

    Raises:
        FleetError: no controller's directory, `target` exists, or the disk refuses.
    """
    if not all((data / name).is_file() for name in _NEEDED):
        raise FleetError(
            f"backup: expected the data directory of a controller, got {data}",
            "fleet backup write FILE --data DIR",
        )
    if target.exists():
        raise FleetError(f"backup: {target} exists already", "fleet backup write ANOTHER-FILE")
    try:
        with tempfile.TemporaryDirectory(prefix=".fleet-backup-", dir=target.parent) as work:
            # mkdtemp makes it for its owner alone; the file itself holds the key, too.
            fresh = Path(work) / "backup"
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                contents = _write(data, Path(work), f, progress)
                f.flush()
                os.fsync(f.fileno())
            fresh.rename(target)
            _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise FleetError(
            f"backup: cannot write {target}: {_words(error)}; nothing was kept",
            "fleet backup write FILE, on a disk with room",
        ) from error
    return contents


def verify_backup(source: Path, progress: Progress) -> Contents:
    """Read a backup to its end and return what it holds.

    Raises:
        FleetError: it cannot be read, is cut off, or is not what was written.
    """
    return _read(source, None, progress)


def restore_backup(source: Path, data: Path, progress: Progress) -> Contents:
    """Make `data` of a backup, all of it or nothing.

    Raises:
        FleetError: `data` has something in it, the backup is broken, or the disk refuses.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise FleetError(
            f"restore: expected {data} to be empty or not there; nothing was changed",
            f"fleet restore {source} --data ANOTHER-DIR",
        )
    try:
        data.absolute().parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".fleet-restore-", dir=data.absolute().parent))
        try:
            contents = _read(source, fresh, progress)
            _sync(fresh)
            fresh.rename(data)
            _sync(data.absolute().parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise FleetError(
            f"restore: cannot write {data}: {_words(error)}; nothing was kept",
            f"fleet restore {source} --data DIR, on a disk with room",
        ) from error
    return contents


def _write(data: Path, work: Path, out: IO[bytes], progress: Progress) -> Contents:
    members: dict[str, Member] = {}
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in (*_DATABASES, *([_LEDGER] if (data / _LEDGER).is_file() else [])):
            # First: all that they tell of is on the disk already, and stays there.
            copy = work / "copy.db"
            with closing(sqlite3.connect(data / name)) as live, closing(sqlite3.connect(copy)) as c:
                live.backup(c)
            members[name] = _add(tar, name, copy, progress)
            copy.unlink()
        for name in _others(data):
            try:
                members[name] = _add(tar, name, data / name, progress)
            except FileNotFoundError:
                continue  # A sample that was deleted just now.
        contents = Contents(members=members)
        text = json.dumps(contents.model_dump()).encode()
        info = tarfile.TarInfo(_LIST)
        info.size, info.mode = len(text), 0o600
        tar.addfile(info, io.BytesIO(text))
    return contents


def _others(data: Path) -> Iterator[str]:
    for name in _FILES:
        if (data / name).is_file():
            yield name
    for folder in _FOLDERS:
        for path in sorted((data / folder).rglob("*")):
            if path.is_file() and not path.name.startswith(("tmp", ".")) and path.suffix != ".new":
                yield path.relative_to(data).as_posix()


class _Hashing:
    """Reads a file, and knows what was read."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self._progress(len(data))
        return data


def _add(tar: tarfile.TarFile, name: str, path: Path, progress: Progress) -> Member:
    with path.open("rb") as file:
        info = tarfile.TarInfo(name)
        info.size, info.mode = os.fstat(file.fileno()).st_size, 0o600
        reader = _Hashing(file, progress)
        tar.addfile(info, reader)  # type: ignore[arg-type]
    return Member(size_bytes=info.size, sha256=reader.sha256.hexdigest())


def _read(source: Path, into: Path | None, progress: Progress) -> Contents:
    found: dict[str, Member] = {}
    contents: Contents | None = None
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if contents is not None or not info.isreg() or not _PLACE.fullmatch(info.name):
                    raise _broken(source, f"expected no {info.name[:80]!r} in it")
                member = tar.extractfile(info)
                assert member is not None
                if info.name == _LIST:
                    contents = Contents.model_validate_json(member.read(_MAX_LIST_BYTES))
                elif info.name in found:
                    raise _broken(source, f"{info.name} is in it twice")
                else:
                    found[info.name] = _take(member, info.name, into, progress)
    except (tarfile.TarError, EOFError, ValidationError) as error:
        raise _broken(source, "it is cut off, or no backup") from error
    except OSError as error:
        if into is not None and error.filename != str(source):
            raise
        raise FleetError(f"backup: cannot read {source}: {_words(error)}") from error
    if contents is None:
        raise _broken(source, "its end is missing")
    if contents.format != 1:
        raise FleetError(
            f"backup: expected {source} to be of format 1, got {contents.format}",
            "a newer farflung wrote it: upgrade this one",
        )
    for name in sorted(found.keys() | contents.members.keys() | set(_NEEDED)):
        if name not in found or found[name] != contents.members.get(name):
            raise _broken(source, f"{name} is missing, or not what was written")
    return contents


def _take(member: IO[bytes], name: str, into: Path | None, progress: Progress) -> Member:
    reader, size = _Hashing(member, progress), 0
    if into is None:
        while piece := reader.read(_PIECE):
            size += len(piece)
    else:
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            while piece := reader.read(_PIECE):
                size += out.write(piece)
            out.flush()
            os.fsync(out.fileno())
    return Member(size_bytes=size, sha256=reader.sha256.hexdigest())


def _broken(source: Path, why: str) -> FleetError:
    return FleetError(
        f"backup: {source} is broken: {why}; nothing was changed", "use another backup"
    )


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
