"""Lines between a device and its broker: a slow one, and one that counts."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

BUFFER_BYTES = 65536


class Line:
    """A TCP relay to a broker. `pace`: bytes a second towards the device; 0: as fast as it goes."""

    def __init__(self, url: str, pace: int = 0) -> None:
        address = urlsplit(url)
        self._broker = (address.hostname, address.port)
        self._pace = pace
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._delivered: dict[int, int] = {}
        """Port of the device's end -> bytes handed to the kernel for it."""
        self.port: int = self._listener.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def received(self) -> int:
        """Return the bytes that programs behind the line have read, MQTT's own included.

        What lies unread in a socket does not count. To be exact, stop the device first: once its
        process is gone, nobody knows.
        """
        with self._lock:
            return sum(
                sent - _queued(self.port, device) for device, sent in self._delivered.items()
            )

    def close(self) -> None:
        """Cut every connection."""
        self._ended.set()
        self._listener.close()

    def settle(self) -> int:
        """Return `received` and count anew: the connections there were are over."""
        count = self.received()
        with self._lock:
            self._delivered.clear()
        return count

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                device, address = self._listener.accept()
                device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                broker = socket.socket()
                broker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
                try:
                    broker.connect(self._broker)
                except OSError:  # it restarts just now
                    device.close()
                    continue
                down, up = (broker, device, address[1]), (device, broker, 0)
                for way in (down, up):
                    threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, device: int) -> None:
        with suppress(OSError):
            while data := source.recv(8192):
                while data:
                    sent = target.send(data)
                    data = data[sent:]
                    if device:
                        with self._lock:
                            self._delivered[device] = self._delivered.get(device, 0) + sent
                        if self._pace and self._ended.wait(sent / self._pace):
                            return
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _queued(line: int, device: int) -> int:
    """Return the bytes between the line's end of a connection and the device's program."""
    total = 0
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = row.split()
        ports = (int(local[-4:], 16), int(remote[-4:], 16))
        sending, reading = (int(part, 16) for part in queues.split(":"))
        if ports == (line, device):
            total += sending
        elif ports == (device, line):
            total += reading
    return total


@contextmanager
def line_to(url: str, pace: int = 0) -> Iterator[Line]:
    """Give a line to the broker at `url`."""
    line = Line(url, pace)
    try:
        yield line
    finally:
        line.close()
