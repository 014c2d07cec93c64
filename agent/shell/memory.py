"""How much memory a further process may take, and how much the engines take."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def measure(pids: Mapping[int, int]) -> tuple[int, dict[int, int]]:
    """Return bytes that are available, and generation -> bytes of these generations' processes.

    A process counts with its proportional share of what it shares with others.
    """
    taken = {}
    for generation, pid in pids.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            taken[generation] = _taken(psutil.Process(pid))
    return available(), taken


def _taken(process: psutil.Process) -> int:
    try:
        share = process.memory_full_info().pss
    except (psutil.AccessDenied, OSError):  # a kernel that does not tell shares
        share = process.memory_info().rss
    return int(share)


def available(own: Path = OWN_CGROUP, cgroups: Path = CGROUPS) -> int:
    """Return what the machine has left, or less where a control group around us allows less."""
    left: int = psutil.virtual_memory().available
    group = _group(own, cgroups)
    while group is not None and group != cgroups:
        with contextlib.suppress(OSError, ValueError):
            left = min(left, _left_in(group))
        group = group.parent
    return max(left, 0)


def _group(own: Path, cgroups: Path) -> Path | None:
    """Return the directory of our group in the unified hierarchy, if there is one."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::/"):
                return cgroups / line.removeprefix("0::/")
    return None


def _left_in(group: Path) -> int:
    """Return what a group may still take, counting cached files that nobody reads lately.

    Raises:
        OSError, ValueError: it has no limit.
    """
    limit = int((group / "memory.max").read_text())
    used = int((group / "memory.current").read_text())
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == "inactive_file":
            used -= int(count)
    return limit - used
