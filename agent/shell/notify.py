"""Words to systemd: ready, alive, stopping. Silent where nobody listens.

The protocol of sd_notify(3): lines in a datagram to the socket named by $NOTIFY_SOCKET.
"""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager that started this process, if one did."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_us = _watchdog_us(environ)

    @property
    def watchdog_s(self) -> float | None:
        """How often to call `alive` (half of what is allowed), or None when nobody watches."""
        return self._watchdog_us / 2e6 if self._address and self._watchdog_us else None

    def ready(self, status: str = "") -> None:
        """Say that the agent is up."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """Say in one line what the agent does."""
        self._send(f"STATUS={text.splitlines()[0] if text else ''}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the end was asked for."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                # A manager that is gone or busy must not take the agent along.
                return


def _watchdog_us(environ: Mapping[str, str]) -> int:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) if text.isdigit() else 0
