"""Word of the models that are being run, left where it survives a crash of the process."""

import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.control import BLAME

Interrupt = Callable[[], None]

_NOBODY = bytes(BLAME.size)


@dataclass(slots=True, eq=False)
class Run:
    """One run of a model, from `begin` to `end`."""

    model: bytes
    since_ns: int
    """Monotonic; 0: it may take as long as it likes."""
    interrupt: Interrupt | None
    """Ends it, called from another thread; None: nothing does but the end of the process."""
    interrupted: bool = False


class Blame:
    """The running models in a shared file laid out as `agent.control.BLAME`.

    The daemon reads there whose crash it was, and which run takes too long.
    """

    def __init__(self, fd: int | None) -> None:
        self.on_interrupted: Callable[[str], None] = lambda _: None
        """Told of every run that ended after it was interrupted, in the thread that ran it."""
        self._page = bytearray(BLAME.size) if fd is None else _map(fd)
        self._running: list[Run] = []
        self._lock = threading.Lock()

    def begin(self, model: bytes, interrupt: Interrupt | None = None, *, timed: bool = True) -> Run:
        """Note that `model` runs from here on."""
        run = Run(model, time.monotonic_ns() if timed else 0, interrupt)
        with self._lock:
            self._running.append(run)
            if len(self._running) == 1:
                self._page[:] = BLAME.pack(model, model, run.since_ns)
            else:
                self._write()
        return run

    def end(self, run: Run) -> None:
        """Note that a run is over."""
        with self._lock:
            self._running.remove(run)
            if self._running:
                self._write()
            else:
                self._page[:] = _NOBODY
        if run.interrupted:
            self.on_interrupted(run.model.decode())

    def interrupt_older(self, since_ns: int) -> None:
        """Interrupt the runs that began before and can be, each once.

        None is interrupted after its `end`: the next run of the same model is not to suffer.
        """
        with self._lock:
            for run in self._running:
                if (
                    run.interrupt is not None
                    and not run.interrupted
                    and 0 < run.since_ns < since_ns
                ):
                    run.interrupted = True
                    run.interrupt()

    def _write(self) -> None:
        latest = self._running[-1]
        longest = next((run for run in self._running if run.since_ns), latest)
        self._page[:] = BLAME.pack(latest.model, longest.model, longest.since_ns)


def _map(fd: int) -> mmap.mmap:
    os.ftruncate(fd, BLAME.size)
    return mmap.mmap(fd, BLAME.size)
