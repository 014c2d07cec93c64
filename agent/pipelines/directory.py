"""Files that appear in a directory: read when they are whole, let go of when they are answered."""

import errno
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import stat
import threading
import time
from collections import deque
from pathlib import Path

from agent.pipelines.buffer import LOOK_S, Backoff, Frame, Stopping
from agent.pipelines.counts import Counts
from agent.pipelines.frames import MAX_FRAME_BYTES
from agent.pipelines.plan import DirectorySource as Plan

log = logging.getLogger("pipelines")

MAX_FILES = 10_000
"""That are looked at in one go; the rest of a larger directory has its turn afterwards."""
UNFINISHED = (".tmp", ".part", ".partial")
"""Ends of names that writers give to what they are going to rename."""
FIRST_DELAY_S = 1.0
LAST_DELAY_S = 30.0
SLACK = 256
"""Files that are gone from the directory and may be remembered all the same."""

Mark = tuple[int, int, int]
"""Inode, size and time of the last change: another one is another file."""


class DirectorySource:
    """The oldest file first, one at a time. It waits as long as the model does."""

    def __init__(
        self, pipeline: str, plan: Plan, state_dir: str, counts: Counts, stop: threading.Event
    ) -> None:
        self._pipeline = pipeline
        self._plan = plan
        self._folder = Path(plan.directory)
        self._counts = counts
        self._stop = stop
        self._seen = Seen(Path(state_dir) / f"{pipeline}.seen")
        self._growing: dict[str, tuple[Mark, float]] = {}
        """Name -> how it was, and since when, monotonic."""
        self._ready: deque[tuple[str, Mark]] = deque()
        self._taken: dict[str, tuple[str, Mark]] = {}
        self._backoff = Backoff(FIRST_DELAY_S, LAST_DELAY_S)
        self._deaf = ""
        self._stuck = ""

    def next(self) -> Frame:
        """Wait for a whole file and read it.

        Raises:
            Stopping: this process ends first.
        """
        while not self._stop.is_set():
            while self._ready:
                name, mark = self._ready.popleft()
                frame = self._read(name, mark)
                if frame is not None:
                    return frame
            wait_s = LOOK_S
            try:
                self._look()
                self._deaf = ""
                self._backoff.reset()
            except OSError as error:
                self._tell_deaf(error.strerror or str(error))
                wait_s = self._backoff.next()
            if not self._ready and self._stop.wait(wait_s):
                break
        raise Stopping

    def settle(self, frame: Frame, *, good: bool) -> None:
        """Delete, move or remember the file of this frame, unless it changed meanwhile."""
        name, mark = self._taken.pop(frame.id)
        self._let_go(name, mark, self._plan.done if good else self._plan.failed)

    def close(self) -> None:
        """Do nothing: files stay."""

    # ---- looking

    def _look(self) -> None:
        """Find files that did not change for `settle_s`.

        Raises:
            OSError: the directory cannot be read.
        """
        now = time.monotonic()
        growing: dict[str, tuple[Mark, float]] = {}
        ready = []
        seen = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                mark = self._mark(entry)
                if mark is None:
                    continue
                if self._seen.has(entry.name, mark):
                    seen.add(entry.name)
                    continue
                before = self._growing.get(entry.name)
                since = before[1] if before is not None and before[0] == mark else now
                growing[entry.name] = (mark, since)
                if now - since >= self._plan.settle_s:
                    ready.append((mark[2], entry.name, mark))
                if len(growing) >= MAX_FILES:
                    break
            else:
                self._seen.retain(seen)
        self._growing = growing
        self._ready = deque((name, mark) for _, name, mark in sorted(ready))

    def _mark(self, entry: "os.DirEntry[str]") -> Mark | None:
        name = entry.name
        if name.startswith(".") or name.lower().endswith(UNFINISHED):
            return None
        if not fnmatch.fnmatchcase(name, self._plan.pattern):
            return None
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        return _mark_of(found) if stat.S_ISREG(found.st_mode) else None

    def _read(self, name: str, mark: Mark) -> Frame | None:
        """Return the file as a frame; None: it is gone, changed, or cannot be one."""
        try:
            # Not to wait for a pipe that took the file's place.
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                if _mark_of(os.fstat(fd)) != mark:
                    return None
                payload = file.read(MAX_FRAME_BYTES + 1)
                if _mark_of(os.fstat(fd)) != mark:
                    return None
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(name, mark, "unreadable", error.strerror or str(error))
            return None
        if len(payload) > MAX_FRAME_BYTES:
            text = f"expected at most {MAX_FRAME_BYTES} bytes, got {mark[1]}"
            self._give_up(name, mark, "too large", text)
            return None
        self._counts.took()
        # The same file has the same id, also after a restart: a repeated answer can be told.
        key = f"{self._pipeline}\0{name}\0{mark}".encode("utf-8", "surrogateescape")
        id = hashlib.blake2b(key, digest_size=10).hexdigest()
        self._taken[id] = (name, mark)
        return Frame(payload, name, id, time.time(), stream=id, number=1, last=True)

    def _give_up(self, name: str, mark: Mark, reason: str, text: str) -> None:
        self._counts.took()
        self._counts.failed(reason)
        log.warning("pipeline %s: %s: %s", self._pipeline, name, text)
        self._let_go(name, mark, self._plan.failed)

    # ---- letting go

    def _let_go(self, name: str, mark: Mark, how: str) -> None:
        path = self._folder / name
        try:
            if how == "leave":
                self._seen.add(name, mark)
            elif _mark_of(path.lstat()) == mark:
                if how == "delete":
                    path.unlink()
                else:
                    _move(path, Path(how) / name)
        except FileNotFoundError as error:
            if path.exists():
                self._keep(name, mark, error)
        except OSError as error:
            self._keep(name, mark, error)

    def _keep(self, name: str, mark: Mark, error: OSError) -> None:
        """Leave a file that cannot be let go of; it is answered once all the same."""
        why = error.strerror or str(error)
        level = logging.DEBUG if why == self._stuck else logging.WARNING
        log.log(level, "pipeline %s: %s stays where it is: %s", self._pipeline, name, why)
        self._stuck = why
        self._seen.add(name, mark, keep=False)

    def _tell_deaf(self, why: str) -> None:
        if why != self._deaf:
            log.warning(
                "pipeline %s: cannot read %s: %s; trying again", self._pipeline, self._folder, why
            )
        self._deaf = why


def _mark_of(found: os.stat_result) -> Mark:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _move(path: Path, to: Path) -> None:
    try:
        path.replace(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Whole under its name, or not there: another disk takes the bytes one by one.
        part = to.with_name(f".{to.name}.part")
        shutil.copyfile(path, part)
        part.replace(to)
        path.unlink()


class Seen:
    """Files that stay where they are and were answered, remembered over restarts.

    One line a file, and never many more than the directory has files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[str, Mark] = {}
        self._lines = 0
        self._load()

    def has(self, name: str, mark: Mark) -> bool:
        """Whether this very file was answered."""
        return self._marks.get(name) == mark

    def add(self, name: str, mark: Mark, *, keep: bool = True) -> None:
        """Remember a file; without `keep`, until this process ends.

        Raises:
            OSError: it cannot be written down.
        """
        self._marks[name] = mark
        if keep:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("a", encoding="ascii") as file:
                file.write(json.dumps([name, *mark]) + "\n")
            self._lines += 1

    def retain(self, here: set[str]) -> None:
        """Forget all but these, once that is worth a write."""
        if max(len(self._marks), self._lines) > 2 * len(here) + SLACK:
            self._marks = {name: mark for name, mark in self._marks.items() if name in here}
            self._write()

    def _load(self) -> None:
        try:
            lines = self._path.read_text("ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                name, inode, size, changed = json.loads(line)
            except ValueError:
                continue  # cut by a power loss
            self._marks[name] = (inode, size, changed)
        self._lines = len(lines)

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        with part.open("w", encoding="ascii") as file:
            file.writelines(json.dumps([name, *mark]) + "\n" for name, mark in self._marks.items())
        part.replace(self._path)
        self._lines = len(self._marks)
