"""Stops runs that take too long, where their runtime can be told to stop.

Where it cannot, the daemon, which reads the blame file, ends the process.
"""

import math
import threading
import time

from agent.engine.blame import Blame

LOOKS_A_LIMIT = 8
LONGEST_LOOK_S = 2.0


class Watchdog:
    """Interrupts what runs longer than `limit_s` seconds, which may change at any time."""

    def __init__(self, blame: Blame, limit_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self._blame = blame

    def start(self) -> None:
        """Look from now on, in a thread: a model that never returns may hold up the event loop.

        It wakes a few times in `limit_s` whether anything runs or not, so that no run need wake it.
        """
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(min(self.limit_s / LOOKS_A_LIMIT, LONGEST_LOOK_S))
            self._blame.interrupt_older(time.monotonic_ns() - int(self.limit_s * 1e9))
