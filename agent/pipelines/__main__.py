"""`python -m agent.pipelines`: all pipelines of one agent, until standard input ends."""

import json
import logging
import os
import select
import signal
import sys
import threading
import time
from typing import Any

from agent.pipelines.counts import words
from agent.pipelines.pipeline import Pipeline
from agent.pipelines.plan import read_plan

log = logging.getLogger("pipelines")

REPORT_S = 1.0
"""How often counts are told, when they changed."""
LOG_S = 300.0
FINISH_S = 1.0
"""For the frames under way."""
CLOSE_S = 3.0
"""For commands to end."""


def main() -> int:
    """Work until told to stop; return the exit status."""
    # The daemon has the clock and the name; it reads the level back.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    wake = _wake_on_signals()
    line = _first_line()
    if not line:
        return 0  # the daemon was gone before it could say anything
    plan = read_plan(line)
    stop = threading.Event()
    pipelines = [Pipeline(each, plan, stop) for each in plan.pipelines]
    for pipeline in pipelines:
        pipeline.start()
    reporter = Reporter(pipelines)
    # It tells false when the daemon is gone.
    while reporter.tell() and not _told_to_stop(wake):
        reporter.log()
    stop.set()
    _end(pipelines)
    reporter.tell()
    reporter.log(now=True)
    return 0


def _wake_on_signals() -> int:
    """Return a descriptor that can be read once a signal came."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return woken


def _first_line() -> bytes:
    # Unbuffered: what follows is an end that `select` is to see.
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data:
            break
        line += data
    return line


def _told_to_stop(wake: int) -> bool:
    """Wait a moment for a signal or the end of standard input."""
    ready, _, _ = select.select([0, wake], [], [], REPORT_S)
    return bool(ready)


class Reporter:
    """Tells what was counted: the daemon when it changed, the log every so often."""

    def __init__(self, pipelines: list[Pipeline]) -> None:
        self._pipelines = pipelines
        self._told = ""
        self._logged = self._values()
        self._log_at = time.monotonic() + LOG_S

    def tell(self) -> bool:
        """Tell the daemon; False when it is gone."""
        line = json.dumps(self._values())
        if line != self._told:
            try:
                os.write(1, line.encode() + b"\n")
            except BrokenPipeError:
                return False
            self._told = line
        return True

    def log(self, *, now: bool = False) -> None:
        """Log what changed, when it is time."""
        if not now and time.monotonic() < self._log_at:
            return
        values = self._values()
        for name, counts in values.items():
            if counts != self._logged[name]:
                log.info("pipeline %s: %s", name, words(counts))
        self._logged, self._log_at = values, time.monotonic() + LOG_S

    def _values(self) -> dict[str, Any]:
        return {pipeline.name: pipeline.counts.values() for pipeline in self._pipelines}


def _end(pipelines: list[Pipeline]) -> None:
    """Let frames under way be finished, then cut them, and wait for commands to end."""
    finish_by = time.monotonic() + FINISH_S
    late = [pipeline for pipeline in pipelines if not pipeline.join(finish_by - time.monotonic())]
    for pipeline in late:
        pipeline.cut()
    close_by = time.monotonic() + CLOSE_S
    for pipeline in late:
        pipeline.join(close_by - time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
