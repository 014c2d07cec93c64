"""What daemon and engines tell each other of the shared memory that apps registered.

A socket pair beside the control socket carries JSON lines and, with each `Keep`, the descriptor
of the object itself: its name may be gone by then, or be another object's. The daemon holds what
one engine opened, so that the next one has it, and answers each word of an engine with `Noted`.

Standard library alone: both the small daemon and the engine import this.
"""

import array
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

MAX_REGIONS = 64
MAX_NAME_CHARACTERS = 200
MAX_KEY_CHARACTERS = 256

_MAX_LINE_BYTES = 8192
_READ_BYTES = 16 * 1024
_MAX_READS = 2 * MAX_REGIONS
"""In one go: a read ends where a descriptor comes along."""
_MAX_FDS = 128
"""Of one read, and waiting for their lines."""


@dataclass(frozen=True, slots=True)
class Keep:
    """A part of a shared-memory object; its descriptor comes along."""

    KIND: ClassVar[str] = "keep"
    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class Forget:
    """A region that was unregistered."""

    KIND: ClassVar[str] = "forget"
    name: str


@dataclass(frozen=True, slots=True)
class Noted:
    """The daemon has done as told, and every other engine was told too."""

    KIND: ClassVar[str] = "noted"


Word = Keep | Forget | Noted


class Passage:
    """One end of the socket. Nothing here waits."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._bytes = b""
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, word: Word, fd: int | None = None) -> None:
        """Send a word, a `Keep` with its descriptor.

        Raises:
            OSError: the other side is gone or does not read; nothing may be sent any more.
        """
        line = json.dumps({"kind": word.KIND, **asdict(word)}).encode() + b"\n"
        with_it = []
        if fd is not None:
            with_it.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd])))
        if self._socket.sendmsg([line], with_it) != len(line):
            raise BlockingIOError("the other side does not read")

    def receive(self) -> Iterator[tuple[Word, int | None]]:
        """Yield what has come: words, and with each `Keep` its descriptor, now the caller's.

        Raises:
            EOFError: the other side is gone.
            ValueError: it does not keep to the protocol.
            OSError: the socket failed.
        """
        for _ in range(_MAX_READS):
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._socket, _READ_BYTES, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            self._fds += fds
            if not data:
                raise EOFError
            *lines, self._bytes = (self._bytes + data).split(b"\n")
            for line in lines:
                yield self._read(line)
            if len(self._bytes) > _MAX_LINE_BYTES or len(self._fds) > _MAX_FDS:
                raise ValueError("regions: a line without an end, or descriptors without lines")

    def close(self) -> None:
        """Hang up, and close what was not taken."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._socket.close()

    def _read(self, line: bytes) -> tuple[Word, int | None]:
        try:
            word = _word(json.loads(line))
            return word, self._fds.pop(0) if isinstance(word, Keep) else None
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"regions: {error!r} in {line[:80]!r}") from None


def _word(body: Any) -> Word:
    match body:
        case {"kind": "keep", "name": str(name), "key": str(key), "offset": offset, "byte_size": n}:
            sane = type(offset) is int and type(n) is int and offset >= 0 and n >= 0
            if sane and len(name) <= MAX_NAME_CHARACTERS and len(key) <= MAX_KEY_CHARACTERS:
                return Keep(name, key, offset, n)
        case {"kind": "forget", "name": str(name)}:
            return Forget(name)
        case {"kind": "noted"}:
            return Noted()
    raise ValueError("no such word")
