"""A limit to the memory of the process, ending in an exception; and who goes when all is short."""

import contextlib
import resource
from pathlib import Path

_BADNESS = Path("/proc/self/oom_score_adj")
_FIRST = 500


def limit(beyond_bytes: int) -> None:
    """Allow `beyond_bytes` of address space more than is in use now; 0: no limit.

    An allocation beyond it fails as an exception, where without it the kernel would kill.
    """
    if beyond_bytes <= 0:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + beyond_bytes
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def unlimit(beyond_bytes: int) -> None:
    """Take a limit back that was for the trial alone; one of `beyond_bytes` is for good."""
    if beyond_bytes <= 0:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def go_first() -> int:
    """Be the first that the kernel ends when memory runs out; return the badness of before."""
    try:
        before = int(_BADNESS.read_text())
        _BADNESS.write_text(str(max(before, _FIRST)))
    except (OSError, ValueError):
        return 0  # a kernel that does not tell ends whom it likes
    return before


def go_no_sooner(badness: int) -> None:
    """Be as dear to the kernel as before."""
    with contextlib.suppress(OSError):
        _BADNESS.write_text(str(badness))
