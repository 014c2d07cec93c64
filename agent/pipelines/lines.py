"""Answers as JSON lines in a file that never grows beyond its bounds."""

import logging
import os
import threading
from pathlib import Path

from agent.pipelines.buffer import Backoff, Stopping
from agent.pipelines.plan import FileSink as Plan

log = logging.getLogger("pipelines")

FIRST_DELAY_S = 1.0
LAST_DELAY_S = 30.0
BLOCK_BYTES = 64 * 1024


class FileSink:
    """Appends; at `max_bytes` the file becomes FILE.1, that FILE.2, and the last one goes.

    Each line is handed to the kernel whole and at once, so a killed process loses none; when it
    reaches the flash is the kernel's business, which spares it.
    """

    def __init__(self, pipeline: str, plan: Plan, stop: threading.Event) -> None:
        self._pipeline = pipeline
        self._plan = plan
        self._path = Path(plan.file)
        self._stop = stop
        self._fd: int | None = None
        self._size = 0
        self._told = ""
        self._backoff = Backoff(FIRST_DELAY_S, LAST_DELAY_S)

    def put(self, line: bytes) -> None:
        """Append a line, waiting for the disk to have room.

        Raises:
            Stopping: this process ends first.
        """
        while True:
            try:
                self._append(line)
            except OSError as error:
                self.close()
                self._tell(error.strerror or str(error))
                if self._stop.wait(self._backoff.next()):
                    raise Stopping from None
            else:
                self._told = ""
                self._backoff.reset()
                return

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, line: bytes) -> None:
        fd = self._open()
        if self._size and self._size + len(line) > self._plan.max_bytes:
            self._rotate()
            fd = self._open()
        written = os.write(fd, line)
        if written < len(line):
            os.ftruncate(fd, self._size)
            raise OSError(28, "no space left for a whole line")
        self._size += written

    def _open(self) -> int:
        """Return the file that has the name now: somebody may have moved ours away."""
        if self._fd is not None:
            try:
                here = self._path.stat()
                ours = os.fstat(self._fd)
                if (here.st_ino, here.st_dev) == (ours.st_ino, ours.st_dev):
                    return self._fd
            except FileNotFoundError:
                pass
            self.close()
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        self._size = _without_broken_line(self._fd)
        return self._fd

    def _rotate(self) -> None:
        self.close()
        names = [
            self._path.with_name(f"{self._path.name}.{n}") for n in range(self._plan.keep, 0, -1)
        ]
        for older, newer in zip(names, [*names[1:], self._path], strict=False):
            if newer.exists():
                newer.replace(older)
        if not names:
            self._path.unlink()

    def _tell(self, why: str) -> None:
        if why != self._told:
            log.warning(
                "pipeline %s: cannot write %s: %s; trying again", self._pipeline, self._path, why
            )
        self._told = why


def _without_broken_line(fd: int) -> int:
    """Cut a last line that a power loss left without its end; return the size then."""
    size = end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - BLOCK_BYTES)
        place = os.pread(fd, end - begin, begin).rfind(b"\n")
        if place >= 0:
            end = begin + place + 1
            break
        end = begin
    if end < size:
        os.ftruncate(fd, end)
    return end
