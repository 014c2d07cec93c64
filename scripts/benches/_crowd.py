"""Lean devices in processes of their own (see `_crowd_side`), and what is known of all of them."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from scripts.benches._common import CannotMeasureError
from tests.e2e.harness import Fleet

SPARE_FILES = 200
"""That a broker has open beside its connections."""


def allow_files(connections: int) -> None:
    """Let this process, and so the broker that it starts, hold so many connections.

    Raises:
        CannotMeasureError: the machine refuses.
    """
    needed = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise CannotMeasureError(
                f"expected room for {needed} open files in one process, the machine allows {hard}; "
                "raise it: ulimit -Hn, or LimitNOFILE of the service that starts this"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Crowd:
    """Devices `cam-00000` and so on, shared out over processes."""

    def __init__(  # noqa: PLR0917
        self, fleet: Fleet, devices: int, processes: int, every_s: float, labels_s: float,
        variant: str,
    ) -> None:  # fmt: skip
        self.devices = devices
        self._said: list[dict[str, Any]] = [{} for _ in range(processes)]
        self._processes: list[subprocess.Popen[str]] = []
        config = tomllib.loads(fleet.client.device_config("cam-00000"))
        login = config["broker"]
        environ = os.environ | {"BENCH_PASSWORD": login.get("password", "")}
        for place in range(processes):
            first = devices * place // processes
            options = {
                "url": fleet.client.health().broker_url, "user": login.get("username", ""),
                "key": config["controller"]["public_keys"][0], "first": first,
                "devices": devices * (place + 1) // processes - first, "every_s": every_s,
                "labels_s": labels_s, "variant": variant, "seed": place + 1,
            }  # fmt: skip
            command = [sys.executable, "-m", "scripts.benches._crowd_side", json.dumps(options)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
            self._processes.append(process)
            reader = threading.Thread(target=self._read, args=(place, process), daemon=True)
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _read(self, place: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._said[place] = json.loads(line)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [process.pid for process in self._processes]

    def total(self, what: str) -> int:
        """Return a sum: online, sent, received, lost, behind."""
        return sum(said.get(what, 0) for said in self._said)

    def told(self, rollout: str) -> tuple[int, float]:
        """Return how many heard of a rollout, and when the last one did."""
        known = [said.get("told", {}).get(rollout, (0, 0.0)) for said in self._said]
        return sum(count for count, _ in known), max(at for _, at in known)

    def ended(self, rollout: str) -> int:
        """Return how many are through with a rollout."""
        counts: Counter[str] = Counter()
        for said in self._said:
            counts.update(said.get("ended", {}))
        return counts[rollout]

    def wait(self, what: str, done: Callable[[], bool], limit_s: float) -> None:
        """Wait for something.

        Raises:
            CannotMeasureError: it does not come, or a process of devices ended.
        """
        deadline = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline:
                raise CannotMeasureError(f"expected {what} within {limit_s:.0f} s")
            if any(process.poll() is not None for process in self._processes):
                raise CannotMeasureError("a process of devices ended; its last words are above")
            time.sleep(0.2)
