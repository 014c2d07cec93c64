"""A limit to the memory of the process, that ends in an exception."""

import resource
from pathlib import Path


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
