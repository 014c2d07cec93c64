"""Stops runs that take too long, where their runtime can be told to stop.

Where it cannot, the daemon, which reads the blame file, ends the process.
"""

import threading
import time

from agent.engine.blame import Blame

LOOKS_A_LIMIT = 8
LONGEST_LOOK_S = 2.0


def watch(blame: Blame, limit_s: float) -> None:
    """Interrupt, from now on, what runs longer than `limit_s` seconds.

    In a thread: a model that never returns may hold up the event loop. It wakes a few times in
    `limit_s` whether anything runs or not, so that a run need not wake it.
    """

    def look() -> None:
        while True:
            time.sleep(min(limit_s / LOOKS_A_LIMIT, LONGEST_LOOK_S))
            blame.interrupt_older(time.monotonic_ns() - int(limit_s * 1e9))

    threading.Thread(target=look, name="watchdog", daemon=True).start()
