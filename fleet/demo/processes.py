"""The processes of the demo: started apart from the terminal, watched, and all of them ended."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from fleet.core.errors import FleetError

STOP_S = 20.0
_TAIL_BYTES = 4096
KEEP_LOGS = "fleet demo --keep, which keeps the logs of a run that failed"


class Child:
    """One process of ours, writing to a log."""

    def __init__(self, name: str, module: str, *arguments: str, log: Path) -> None:
        """Start `python -m module arguments...`; what it says goes to the end of `log`."""
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", module, *arguments]
        self._down = False
        self._process = self._spawn()

    @property
    def pid(self) -> int:
        """Its process id; another one after each restart."""
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would, with `kill -9`."""
        self._down = True
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start it again as it was started first."""
        self._process = self._spawn()
        self._down = False

    def check(self) -> None:
        """Let pass a process that runs, or that we killed ourselves.

        Raises:
            FleetError: it ended; the message has its last words.
        """
        code = self._process.poll()
        if code is not None and not self._down:
            error, next_step = last_words(self.said(max(0, self.log.stat().st_size - _TAIL_BYTES)))
            raise FleetError(
                f"{self.name}: expected it to run, it ended with {code}: {error}", next_step
            )

    def said(self, since: int = 0) -> str:
        """Return its log from byte `since` on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Return the process and all that descend from it, as far as they live."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        return []

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Take note of its end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the demo, which ends all of them in order.
                start_new_session=True,
            )


def last_words(log: str) -> tuple[str, str]:
    """Return why a program ended, by its log, and what it said to do next."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    steps = [line.removeprefix("next: ") for line in lines if line.startswith("next: ")]
    error = errors[-1] if errors else lines[-1] if lines else "it said nothing"
    return error, steps[-1] if errors and steps else KEEP_LOGS


def stop(children: Iterable[Child]) -> None:
    """End processes together: asked first, killed with all their descendants when deaf."""
    children = list(children)
    family = [process for child in children for process in child.processes()]
    for child in children:
        child.terminate()
    psutil.wait_procs(family, timeout=STOP_S)
    end(family)
    for child in children:
        child.wait()


def end(processes: Sequence[psutil.Process]) -> None:
    """Kill those that still live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_S)
