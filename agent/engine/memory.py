"""How the process uses memory: little arenas, and a limit that ends in an exception."""

import ctypes
import resource
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8


def settle() -> None:
    """Make the allocator return freed memory early and keep one arena for all threads.

    Large tensors come and go with every request; the defaults keep their peak for ever. A C
    library without these settings is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_TRIM_THRESHOLD, 65536)
    mallopt(_M_ARENA_MAX, 1)


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
