"""Tells systemd how the controller fares. Without systemd it does nothing."""

import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as `READY=1` or `STOPPING=1`, to the service manager if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), address)
        except OSError:
            # A manager that is not there must not keep the controller from its work.
            return
