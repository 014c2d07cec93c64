"""`fleet events`: what happened, chosen by kind, subject and time, and followed."""

import json
import os
import subprocess
import sys
import threading

from fleet.core.views import EventView
from fleet.shell.api import RunningApi
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import NOW, MemoryController

HAPPENED = [
    EventView(id=3, at=NOW, kind="rollout", subject="r-2", text="completed"),
    EventView(id=2, at=NOW - 60, kind="device", subject="cam-1", text="came online"),
    EventView(id=1, at=NOW - 7200, kind="rollout", subject="r-1", text="aborted"),
]
LIMIT_S = 20.0


def shown(run: Fleet, *options: str) -> list[int]:
    return [each["id"] for each in json.loads(run("events", "--json", *options).stdout)]


def test_events_are_chosen_by_kind_subject_and_age(
    run: Fleet, controller: MemoryController
) -> None:
    controller.happened = list(HAPPENED)

    assert shown(run) == [3, 2, 1]
    assert shown(run, "--kind", "rollout") == [3, 1]
    assert shown(run, "--about", "cam-1") == [2]
    assert shown(run, "--since", "1h") == [3, 2]
    assert shown(run, "--kind", "rollout", "--since", "1h", "--limit", "1") == [3]


def test_whoever_follows_hears_what_was_and_then_what_comes_once(
    api: RunningApi, controller: MemoryController
) -> None:
    controller.happened = HAPPENED[1:]
    process = subprocess.Popen(
        [sys.executable, "-m", "fleet", "--controller", api.url, "events", "--follow", "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    killer = threading.Timer(LIMIT_S, process.kill)
    killer.start()
    assert process.stdout is not None

    first = [json.loads(process.stdout.readline())["id"] for _ in range(2)]
    controller.happened = list(HAPPENED)
    then = json.loads(process.stdout.readline())
    process.terminate()
    process.wait(LIMIT_S)
    killer.cancel()

    assert first == [1, 2]
    assert (then["id"], then["text"]) == (3, "completed")
