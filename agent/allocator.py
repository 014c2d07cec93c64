"""How a process of ours keeps the memory that it has freed."""

import contextlib
import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = 2 * 1024 * 1024


def settle() -> None:
    """Return freed memory early, and keep one arena for all threads.

    To begin takes more than to go on, a model to load more than to run; the defaults keep that
    peak for ever.
    """
    _call("mallopt", _M_TRIM_THRESHOLD, 65536)
    _call("mallopt", _M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what is free by now."""
    _call("malloc_trim", 0)


def reuse() -> None:
    """Keep what a request's tensors took for those of the next, up to 2 MiB.

    Else each would be given fresh pages, which the system clears one by one: for an image of
    600 KB that takes longer than to receive it.
    """
    _call("mallopt", _M_TRIM_THRESHOLD, _KEPT_BYTES)
    _call("mallopt", _M_MMAP_THRESHOLD, _KEPT_BYTES)


def _call(name: str, *values: int) -> None:
    # A C library without these functions is left as it is.
    with contextlib.suppress(AttributeError):
        getattr(ctypes.CDLL(None), name)(*values)
