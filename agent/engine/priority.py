"""Low priority while a trial runs beside a serving champion, and back without privilege.

A niceness once raised stays, and leaving SCHED_IDLE needs a privilege too. So a trial that
computes in its own thread alone makes that thread nice and then ends it; one whose runtime
starts a pool of threads, which live on and serve, takes SCHED_BATCH, which anyone may leave.
"""

import contextlib
import os
import threading
from pathlib import Path


def lower(nice: int, threads: int) -> None:
    """Give the calling thread, and those it will start, less of the processor."""
    if nice <= 0:
        return
    if threads == 1:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    else:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def restore() -> None:
    """Bring every thread of the process back to the ordinary scheduler."""
    for task in Path("/proc/self/task").iterdir():
        # A thread may end between the listing and the call.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))
