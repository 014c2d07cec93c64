"""The bytes of one transfer on disk, hashed while they come rather than when all are there."""

import hashlib
import os
from collections.abc import Callable

PIECE_BYTES = 256 * 1024


class Partial:
    """An open partial: one thread writes, another one syncs and hashes behind it.

    Chunks nearly always come in order. The hash follows them up to the first gap; what lies
    behind it is hashed at the end.
    """

    def __init__(self, fd: int, size: int, upto: int = 0) -> None:
        """Take over `fd`, of `size` bytes, of which the first `upto` are right."""
        self.fd = fd
        self.size = size
        self._upto = upto
        self._hashed = 0
        self._hasher = hashlib.sha256()

    def write(self, payload: bytes, offset: int) -> None:
        """Write verified bytes where they belong.

        Raises:
            OSError: the disk refuses.
        """
        write_all(self.fd, payload, offset)
        if offset == self._upto:
            self._upto += len(payload)

    def hash_on(self, fd: int, most: int, check: Callable[[], None]) -> None:
        """Hash up to `most` bytes of what lies there without a gap, read from `fd`.

        `check` is called before each piece, to raise what is to end this early.

        Raises:
            OSError: the disk refuses.
        """
        end = min(self._upto, self._hashed + most)
        while self._hashed < end:
            check()
            piece = os.pread(fd, min(PIECE_BYTES, end - self._hashed), self._hashed)
            if not piece:
                return
            self._hasher.update(piece)
            self._hashed += len(piece)

    def digest(self, check: Callable[[], None]) -> str:
        """Return the SHA-256 of the whole file, in hex digits.

        Raises:
            OSError: the disk refuses.
        """
        self._upto = self.size
        self.hash_on(self.fd, self.size, check)
        return self._hasher.hexdigest()


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`, however the kernel cuts it.

    Raises:
        OSError: the disk refuses.
    """
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
