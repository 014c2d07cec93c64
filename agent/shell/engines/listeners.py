"""The sockets that apps on this device connect to: opened once, handed to engine after engine."""

import contextlib
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.config import ApiConfig
from agent.errors import DeviceError

BACKLOG = 1024
"""Apps that may wait here while no engine accepts."""
FIRST_PASSED_FD = 3
"""Where systemd's sockets begin: sd_listen_fds(3)."""


@dataclass(slots=True)
class Listeners:
    """Listening sockets; either may be missing."""

    tcp: socket.socket | None = None
    unix: socket.socket | None = None
    _own_path: Path | None = None

    def addresses(self) -> tuple[str, ...]:
        """Return where apps reach them: http://HOST:PORT, unix:/PATH."""
        found = []
        if self.tcp is not None:
            host, port = self.tcp.getsockname()[:2]
            found.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        if self.unix is not None:
            found.append(f"unix:{self.unix.getsockname()}")
        return tuple(found)

    def close(self) -> None:
        """Close both and remove the socket file, if it is ours."""
        for sock in (self.tcp, self.unix):
            if sock is not None:
                sock.close()
        if self._own_path is not None:
            self._own_path.unlink(missing_ok=True)


def open_listeners(api: ApiConfig, environ: Mapping[str, str] = os.environ) -> Listeners:
    """Take the service manager's sockets, or else open those of the configuration.

    Raises:
        DeviceError: an address is taken or forbidden; the message names it.
    """
    passed = _passed(environ)
    if passed:
        return passed
    found = Listeners()
    try:
        if api.tcp_address is not None:
            found.tcp = _tcp(*api.tcp_address)
        if api.unix is not None:
            found.unix = _unix(api.unix)
            found._own_path = api.unix
    except DeviceError:
        found.close()
        raise
    return found


def _passed(environ: Mapping[str, str]) -> Listeners | None:
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    found = Listeners()
    for fd in range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(environ.get("LISTEN_FDS", "0"))):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        if sock.family == socket.AF_UNIX and found.unix is None:
            found.unix = sock
        elif sock.family in (socket.AF_INET, socket.AF_INET6) and found.tcp is None:
            found.tcp = sock
        else:
            raise DeviceError(
                "the service manager passed sockets: expected at most one TCP and one Unix "
                f"socket, got another ({sock.family.name}); correct the .socket unit"
            )
    return found if found.tcp is not None or found.unix is not None else None


def _tcp(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise DeviceError(
            f"[api] tcp {host}:{port}: cannot listen: {error.strerror}; "
            f"choose another port, or stop what uses this one"
        ) from None
    return sock


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        sock.bind(str(path))
        path.chmod(0o660)  # nobody can connect before listen
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise DeviceError(f"[api] unix {path}: cannot listen: {error.strerror or error}") from None
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on; anything else is somebody's."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DeviceError(f"[api] unix {path}: expected a free path, got a file; move it away")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise DeviceError(f"[api] unix {path}: another process listens there; stop it first")
