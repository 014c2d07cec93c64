"""The program that decodes, as a process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "delta", "decode", *sys.argv[1:]])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_decoding_ends_with_the_agent_that_wanted_it(tmp_path: Path) -> None:
    base, delta, out = tmp_path / "base", tmp_path / "delta", tmp_path / "out"
    os.mkfifo(base)  # reading it takes for ever
    delta.write_bytes(b"")
    options = ["--base", base, "--delta", delta, "--out", out, "--max-bytes", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *options], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        _wait(lambda: "wait_for_partner" in _where(child))

        parent.kill()

        _wait(lambda: not child.exists() or _state(child) == "Z")


def _where(process: Path) -> str:
    """Return what the kernel waits for on behalf of a process."""
    return (process / "wchan").read_text()


def _state(process: Path) -> str:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def _wait(until: Callable[[], bool]) -> None:
    for _ in range(100):
        if until():
            return
        time.sleep(0.1)
    raise AssertionError("waited 10 s in vain")
