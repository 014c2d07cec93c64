"""A place with little room in it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.models import MEBIBYTE

ROOM_BYTES = 64 * MEBIBYTE
NOISE_BYTES = 1024 * MEBIBYTE
"""How much others may write or delete meanwhile on a disk that is not ours alone."""

ATTEMPTS = 100


class Disk:
    """A directory with about 64 MiB of room above the agent's reserve, which can be taken away."""

    def __init__(self, path: Path, reserve_mb: int, noise_bytes: int) -> None:
        self.path = path
        self.reserve_mb = reserve_mb
        self._noise_bytes = noise_bytes
        self._ballast = path / "ballast"

    def leave(self, size_bytes: int) -> None:
        """Take all the room but this much, if not more."""
        with self._ballast.open("wb") as file:
            for _ in range(ATTEMPTS):
                room = free_bytes(self.path) - self.reserve_mb * MEBIBYTE + self._noise_bytes
                if room <= size_bytes:
                    return
                end = os.fstat(file.fileno()).st_size
                # It fails as a whole when the agent took some of the room just now.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), end, room - size_bytes)
        raise AssertionError(f"{self.path}: expected to fill it in {ATTEMPTS} attempts")

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink()


def free_bytes(path: Path) -> int:
    volume = os.statvfs(path)
    return volume.f_bavail * volume.f_frsize


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Disk]:
    """Give a small file system of its own; where mounting one is not allowed, a directory.

    There the agent's reserve makes a big disk look small to it: nearly all of it is reserved.
    """
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield Disk(path, 0, 0)
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
        return
    reserve_bytes = free_bytes(path) - ROOM_BYTES - NOISE_BYTES
    yield Disk(path, reserve_bytes // MEBIBYTE, NOISE_BYTES)
    (path / "ballast").unlink(missing_ok=True)
