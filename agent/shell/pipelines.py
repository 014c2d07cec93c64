"""Keeps the process that runs the pipelines: started once, again when it ends, never outlived.

It has a session of its own, and its commands are in it: whatever ends the process, what it left
behind is found by that and ended too.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from agent.config import AgentConfig, ConfigError
from wire.telemetry import PipelineCounts

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "agent.pipelines")
FIRST_DELAY_S = 1.0
LAST_DELAY_S = 60.0
SETTLED_S = 60.0
"""A process that lived this long was a good one: the next start waits little again."""
EXIT_GRACE_S = 5.0
"""From the end of its standard output to its own."""
STOP_S = 6.0
LINES_PER_MINUTE = 60
MAX_LINE_BYTES = 64 * 1024


class Pipelines:
    """The pipelines of the configuration; without any, nothing."""

    def __init__(
        self, config: AgentConfig, addresses: Sequence[str], *, command: Sequence[str] = COMMAND
    ) -> None:
        """`addresses` are the engine's.

        Raises:
            ConfigError: there is a pipeline and no address.
        """
        self._command = command
        self._plan = b""
        if config.pipeline:
            # The Unix socket, which takes large bodies quicker, comes after TCP.
            if not addresses:
                raise ConfigError("[[pipeline]]: expected tcp or unix under [api], got neither")
            plan = {
                "api": addresses[-1],
                "state_dir": str((config.data_dir / "pipelines").absolute()),
                "pipelines": config.pipeline,
            }
            self._plan = json.dumps(plan).encode() + b"\n"
        self._counts: dict[str, PipelineCounts] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lines = _Lines()
        self._thread = threading.Thread(target=self._run, name="pipelines", daemon=True)

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Run the pipelines until `stop`."""
        if self._plan:
            self._thread.start()

    def counts(self) -> dict[str, PipelineCounts]:
        """Return what each pipeline has counted since its process began."""
        return self._counts

    def ask_stop(self) -> None:
        """Let the process end, without waiting for it."""
        self._stopping.set()
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def stop(self, deadline_s: float = STOP_S) -> None:
        """End the process and all of its commands."""
        self.ask_stop()
        if self._thread.ident is None:
            return
        self._thread.join(deadline_s)
        if self._thread.is_alive() and (process := self._process) is not None:
            process.kill()
            self._thread.join(EXIT_GRACE_S)

    # ---- the thread

    def _run(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                how = self._run_once()
            except OSError as error:
                how = f"cannot be started: {error.strerror}"
            if self._stopping.is_set():
                return
            if time.monotonic() - began > SETTLED_S:
                delay_s = FIRST_DELAY_S
            log.error("pipelines: %s; starting them again in %.0f s", how, delay_s)
            self._stopping.wait(delay_s)
            delay_s = min(LAST_DELAY_S, 2 * delay_s)

    def _run_once(self) -> str:
        """Run the process until it ends; return how.

        Raises:
            OSError: it cannot be started.
        """
        process = subprocess.Popen(
            list(self._command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environ(),
            bufsize=0,
            start_new_session=True,
        )
        self._process = process
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(self._plan)
        if self._stopping.is_set():
            self.ask_stop()  # it came before there was a process to ask
        try:
            self._listen(process)
        finally:
            code = _end(process)
            self._process = None
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Read what it says until it says no more."""
        heard: dict[str, Callable[[bytes], None]] = {"out": self._count, "err": self._lines.log}
        rests = dict.fromkeys(heard, b"")
        assert process.stdout is not None and process.stderr is not None
        pipes: dict[str, IO[bytes]] = {"out": process.stdout, "err": process.stderr}
        with selectors.DefaultSelector() as selector:
            for name, pipe in pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    *lines, rest = (rests[key.data] + data).split(b"\n")
                    rests[key.data] = rest[-MAX_LINE_BYTES:]
                    for line in lines:
                        heard[key.data](line)

    def _count(self, line: bytes) -> None:
        try:
            counts = json.loads(line)
            self._counts = {name: PipelineCounts.model_validate(counts[name]) for name in counts}
        except (ValueError, TypeError):
            log.warning("pipelines: expected counts, got %r", line[:80])


class _Lines:
    """Its words in our log, at their level, so many a minute."""

    def __init__(self) -> None:
        self._left = LINES_PER_MINUTE
        self._minute = time.monotonic()

    def log(self, line: bytes) -> None:
        """Log one line."""
        if time.monotonic() - self._minute > 60:
            if self._left < 0:
                log.warning("pipelines: %d more lines, not shown", -self._left)
            self._left, self._minute = LINES_PER_MINUTE, time.monotonic()
        self._left -= 1
        if self._left >= 0:
            word, _, text = line.decode("utf-8", "replace").partition(" ")
            level = logging.getLevelNamesMapping().get(word)
            if level is None:
                level, text = logging.WARNING, f"{word} {text}"
            log.log(level, "%s", text[:600])


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process, end what it left behind, and return its exit code."""
    deadline = time.monotonic() + EXIT_GRACE_S
    # Left unreaped meanwhile, so that its number is nobody else's: it names the session too.
    how = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while os.waitid(os.P_PID, process.pid, how) is None:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.02)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != process.pid:
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == process.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
    return process.wait()


def _environ() -> dict[str, str]:
    private = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"}
    return {name: value for name, value in os.environ.items() if name not in private}
