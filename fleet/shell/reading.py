"""A paho client that reads what is there at once, and not a message by four reads and a wait.

Every read lets other threads in, and waits for them before it goes on: a busy controller spent
more time on that than on what it read.
"""

from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

ROOM_BYTES = 65_536
"""Read at most at once."""

TOGETHER = 32
"""Messages taken before what waits to be sent has its turn."""


class Buffered:
    """A socket that reads ahead; it is the socket itself in all else."""

    def __init__(self, sock: Any) -> None:
        """Stand before `sock`, from which nothing was read yet."""
        self._sock = sock
        self._ahead = b""
        self._at = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes; nothing at the end.

        Raises:
            OSError: as the socket says, BlockingIOError when there is nothing.
        """
        if self._at >= len(self._ahead):
            if size >= ROOM_BYTES:
                return bytes(self._sock.recv(size))
            self._ahead, self._at = self._sock.recv(ROOM_BYTES), 0
        data = self._ahead[self._at : self._at + size]
        self._at += len(data)
        if self._at >= len(self._ahead):
            self._ahead, self._at = b"", 0
        return data

    def pending(self) -> int:
        """Return how many bytes are there of which `select` knows nothing."""
        below = getattr(self._sock, "pending", None)
        return len(self._ahead) - self._at + (below() if below is not None else 0)


class Client(mqtt.Client):
    """paho's client, on a socket that reads ahead."""

    def _create_socket(self) -> Any:
        # Not in paho's documents. A paho without it reads as it always did, and is only slower.
        return Buffered(super()._create_socket())

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Take what was read already, without a wait between messages."""
        for _ in range(TOGETHER):
            code = super().loop_read(max_packets)
            sock = self.socket()
            if code or not isinstance(sock, Buffered) or not sock.pending():
                break
        return code
