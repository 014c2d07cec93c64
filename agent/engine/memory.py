"""How the process uses memory: little arenas, and a limit that ends in an exception."""

import contextlib
import ctypes
import resource
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = 2 * 1024 * 1024


def settle() -> None:
    """Make the allocator return freed memory early and keep one arena for all threads.

    Models take much more to load than to run; the defaults keep that peak for ever.
    """
    _set(_M_TRIM_THRESHOLD, 65536)
    _set(_M_ARENA_MAX, 1)


def reuse() -> None:
    """Keep what a request's tensors took for those of the next, up to 2 MiB.

    Else each would be given fresh pages, which the system clears one by one: for an image of
    600 KB that takes longer than to receive it.
    """
    _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    _set(_M_MMAP_THRESHOLD, _KEPT_BYTES)


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


def _set(parameter: int, value: int) -> None:
    # A C library without these settings is left as it is.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(parameter, value)
