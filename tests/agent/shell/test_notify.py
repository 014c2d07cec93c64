import os
import socket
from pathlib import Path

import pytest

from agent.shell.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_of_it(tmp_path: Path, abstract: bool) -> None:
    address = f"@farflung-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(2)
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"})

        notifier.ready("serving digits@2")
        notifier.status("fetching\nsecond line")
        notifier.alive()
        notifier.stopping()

        assert [manager.recv(100) for _ in range(4)] == [
            b"READY=1\nSTATUS=serving digits@2",
            b"STATUS=fetching",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]
        assert notifier.watchdog_s == 10.0


def test_without_a_service_manager_nothing_is_said() -> None:
    notifier = Notifier({})

    notifier.ready()
    notifier.alive()

    assert notifier.watchdog_s is None


def test_a_manager_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_a_watchdog_meant_for_another_process_is_not_ours(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}

    assert Notifier(environ).watchdog_s is None
