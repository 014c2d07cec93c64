"""Word of the model that is being run, left where it survives a crash of the process."""

import mmap
import os
import threading

BLAME_BYTES = 64


class Blame:
    """The name of the running model in a shared file, NUL-padded; zeros while none runs.

    Of several that run at once the one that began last is named.
    """

    def __init__(self, fd: int | None) -> None:
        self._page = bytearray(BLAME_BYTES) if fd is None else _map(fd)
        self._running: list[bytes] = []
        self._lock = threading.Lock()

    def begin(self, model: bytes) -> None:
        """Note that `model` runs from here on."""
        with self._lock:
            self._running.append(model)
            self._page[:] = model.ljust(BLAME_BYTES, b"\0")

    def end(self, model: bytes) -> None:
        """Note that one run of `model` is over."""
        with self._lock:
            self._running.remove(model)
            last = self._running[-1] if self._running else b""
            self._page[:] = last.ljust(BLAME_BYTES, b"\0")


def _map(fd: int) -> mmap.mmap:
    os.ftruncate(fd, BLAME_BYTES)
    return mmap.mmap(fd, BLAME_BYTES)
