"""A control group for every engine, where the service manager lets us make them.

With `Delegate=memory` in its unit a service owns the groups below its own. A group that limits its
children may hold no process itself, so the daemon moves into one of them. Where any of this is
not allowed there are no groups, and the limit of the address space is the only one.
"""

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
DAEMON = "agent"


class Cgroups:
    """Groups below the daemon's own, one an engine."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def limit(self, generation: int, pid: int, memory_bytes: int) -> bool:
        """Put a process into a group that may take `memory_bytes`; return whether that worked."""
        group = self._base / f"engine-{generation}"
        try:
            group.mkdir(exist_ok=True)
            (group / "memory.max").write_text(str(memory_bytes))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.warning("engine %d: no control group: %s", generation, error.strerror)
            self.remove(generation)
            return False
        return True

    def remove(self, generation: int) -> None:
        """Remove the group of an engine that ended."""
        with contextlib.suppress(OSError):
            (self._base / f"engine-{generation}").rmdir()


def open_cgroups(own: Path = OWN_CGROUP, cgroups: Path = CGROUPS) -> Cgroups | None:
    """Return groups to limit engines with, None where they are not ours to make."""
    try:
        base = _delegated(own, cgroups)
        if base is None:
            return None
        leaf = base / DAEMON
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        (base / "cgroup.subtree_control").write_text("+memory")
    except OSError:
        return None
    for stale in base.glob("engine-*"):
        with contextlib.suppress(OSError):
            stale.rmdir()
    return Cgroups(base)


def _delegated(own: Path, cgroups: Path) -> Path | None:
    """Return the group that was given to us to divide, if it can limit memory.

    Raises:
        OSError: there are no control groups.
    """
    lines = own.read_text().splitlines()
    path = next((line[4:] for line in lines if line.startswith("0::/")), "")
    if not path:
        return None  # the root, or none: nobody gave it to us
    # After a restart of the daemon alone it is where its predecessor put itself.
    base = cgroups / path.removesuffix(f"/{DAEMON}")
    controllers = (base / "cgroup.controllers").read_text().split()
    return base if "memory" in controllers and os.access(base, os.W_OK) else None
