"""Runs the real process of the pipelines against a real engine, as the daemon does."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from agent.pipeline_config import Places, read_pipelines
from tests.agent.engine.harness import eventually, one_hot

ROOT = Path(__file__).parents[3]
ROWS = one_hot(0, 1, 2)
FRAMES = f"frames = [struct.pack('<{len(ROWS[0])}f', *row) for row in {ROWS!r}]\n"
SIZE = str(4 * len(ROWS[0]))


def frame(klass: int) -> bytes:
    """A raw frame that the good classifier answers with this class."""
    return np.array(one_hot(klass), np.float32).tobytes()


def answered(record: dict[str, Any]) -> int:
    """The class that an answer names."""
    [output] = record["outputs"]
    return int(np.argmax(output["data"]))


def script(tmp_path: Path, name: str, body: str, before: str = "") -> str:
    """Write a Python program and return a TOML list that runs it."""
    path = tmp_path / f"{name}.py"
    head = f"import struct, sys, time\nout = sys.stdout.buffer\n{before}"
    path.write_text(head + textwrap.dedent(body))
    return json.dumps([sys.executable, "-u", str(path)])


def ear(command: str, frames: str, more: str = "", sink: str = '{ file = "out.jsonl" }') -> str:
    return f"""
[[pipeline]]
name = "ear"
model = "digits"
{more}
source = {{ command = {command}, frames = {frames} }}
sink = {sink}
"""


class Running:
    """One process; its counts and its words are kept as they come."""

    def __init__(self, api: str, state: Path, toml: str) -> None:
        plans = read_pipelines(tomllib.loads(toml)["pipeline"], Places(state, state, state))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent.pipelines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        self.counts: dict[str, Any] = {}
        self.said: list[str] = []
        self._threads = [
            threading.Thread(target=self._count, daemon=True),
            threading.Thread(target=self._hear, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        plan = {"api": api, "state_dir": str(state / "state"), "pipelines": plans}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(plan).encode() + b"\n")
        self.process.stdin.flush()

    def wait_for(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until these counters of a pipeline have these values."""

        def there() -> Any:
            counts = self.counts.get(name, {})
            return counts if all(counts.get(k) == v for k, v in wanted.items()) else None

        try:
            found: dict[str, Any] = eventually(there, 20)
        except AssertionError:
            raise AssertionError(f"{wanted} not reached: {self.counts} {self.said}") from None
        return found

    def wait_until_said(self, text: str) -> None:
        eventually(lambda: any(text in line for line in self.said), 20)

    def stop(self) -> int:
        """End its standard input, as the daemon does; return the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(8)
        for thread in self._threads:
            thread.join(5)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def commands(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _count(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.counts = json.loads(line)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.decode().rstrip())


@contextlib.contextmanager
def running(api: str, state: Path, toml: str) -> Iterator[Running]:
    """Run pipelines; when they end, nothing of theirs may be left, and no traceback was shown."""
    it = Running(api, state, toml)
    try:
        yield it
    finally:
        if it.process.poll() is None:
            it.stop()
        left = [pid for pid in psutil.pids() if in_session(pid, it.process.pid)]
        for pid in left:
            os.kill(pid, 9)
        assert not left, f"left behind: {left}"
    assert not [line for line in it.said if "Traceback" in line], it.said


def in_session(pid: int, session: int) -> bool:
    with contextlib.suppress(OSError):
        zombie = "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        return pid != session and os.getsid(pid) == session and not zombie
    return False


def records(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; all of them are whole."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
