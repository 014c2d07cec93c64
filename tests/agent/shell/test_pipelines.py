"""The daemon's side: the process is kept running, and nothing of it outlives the daemon's wish."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.config import AgentConfig, ConfigError
from agent.pipeline_config import Places, read_pipelines
from agent.shell import pipelines as module
from agent.shell.pipelines import Pipelines
from tests.agent.engine.harness import eventually
from tests.agent.pipelines.harness import in_session
from wire.telemetry import PipelineCounts

ROOT = Path(__file__).parents[3]
NOWHERE = "unix:/nowhere/api.sock"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def configure(tmp_path: Path, *pipelines: dict[str, Any]) -> AgentConfig:
    places = Places(tmp_path, tmp_path, tmp_path)
    return AgentConfig.model_validate(
        {
            "device": "pi-1",
            "data_dir": tmp_path,
            "broker": {"url": "mqtt://127.0.0.1"},
            "controller": {"public_keys": ["A" * 43 + "="]},
            "pipeline": read_pipelines(list(pipelines), places),
        }
    )


def command_pipeline(*command: str) -> dict[str, Any]:
    return {
        "name": "ear",
        "model": "digits",
        "source": {"command": list(command), "frames": "lines"},
        "sink": {"command": ["cat"]},
    }


@contextmanager
def kept(config: AgentConfig, **options: Any) -> Iterator[Pipelines]:
    pipelines = Pipelines(config, ["http://127.0.0.1:1", NOWHERE], **options)
    pipelines.start()
    try:
        yield pipelines
    finally:
        pipelines.stop()


def session(pid: int) -> list[int]:
    """Return the commands of the process `pid`, whoever their parent is by now."""
    return [each for each in psutil.pids() if in_session(each, pid)]


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def taken(pipelines: Pipelines) -> int:
    counts = pipelines.counts().get("ear")
    return 0 if counts is None else counts.taken


SLEEPERS = ("sh", "-c", "trap '' TERM HUP; sleep 600 & echo one; echo two; wait")


def test_without_a_pipeline_there_is_no_process(tmp_path: Path) -> None:
    with kept(configure(tmp_path)) as pipelines:
        time.sleep(0.1)

        assert pipelines.pid is None
        assert pipelines.counts() == {}


def test_a_pipeline_without_an_api_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected tcp or unix under"):
        Pipelines(configure(tmp_path, command_pipeline("true")), [])


def test_a_killed_process_leaves_no_command_behind_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.1)
    with kept(configure(tmp_path, command_pipeline(*SLEEPERS))) as pipelines:
        eventually(lambda: taken(pipelines) == 2)
        first = pipelines.pid
        assert first is not None
        commands = eventually(lambda: len(session(first)) >= 3 and session(first))

        os.kill(first, 9)

        eventually(lambda: pipelines.pid not in (None, first))
        assert not [pid for pid in commands if running(pid)]
        eventually(lambda: taken(pipelines) == 2)
        second = pipelines.pid
        assert second is not None

        began = time.monotonic()
        pipelines.stop()
        assert time.monotonic() - began < 5
        assert not session(second) and not running(second)
    assert "pipelines: ended by SIGKILL; starting them again in 0 s" in caplog.messages


def test_a_daemon_that_dies_takes_the_process_and_its_commands_along(tmp_path: Path) -> None:
    pipelines = Pipelines(configure(tmp_path, command_pipeline(*SLEEPERS)), [NOWHERE])
    pipelines.start()
    eventually(lambda: taken(pipelines) == 2)
    process = pipelines._process
    assert process is not None and process.stdin is not None
    before = session(process.pid)
    assert len(before) >= 3

    # As the kernel does with a dead daemon's end.
    process.stdin.close()
    pipelines._stopping.set()

    eventually(lambda: not running(process.pid) and not [p for p in before if running(p)], 8)
    pipelines._thread.join(5)


def test_what_it_says_is_logged_at_its_level_and_not_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    talk = (
        "import sys\n"
        "sys.stdin.readline()\n"
        "print('not counts', flush=True)\n"
        'print(\'{"ear": {"taken": 3}}\', flush=True)\n'
        "for n in range(500): print(f'INFO line {n}', file=sys.stderr)\n"
        "print('strange', file=sys.stderr, flush=True)\n"
        "sys.stdin.read()\n"
    )
    config = configure(tmp_path, command_pipeline("true"))
    with kept(config, command=(sys.executable, "-c", talk)) as pipelines:
        eventually(lambda: pipelines.counts() == {"ear": PipelineCounts(taken=3)})
        time.sleep(0.2)

    lines = [message for message in caplog.messages if message.startswith("line ")]
    assert lines == [f"line {n}" for n in range(module.LINES_PER_MINUTE)]
    assert "pipelines: expected counts, got b'not counts'" in caplog.messages


def test_a_process_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "import signal, sys, time; print('{}', flush=True); time.sleep(600)"
    config = configure(tmp_path, command_pipeline("true"))
    pipelines = Pipelines(config, [NOWHERE], command=(sys.executable, "-c", deaf))
    pipelines.start()
    pid = eventually(lambda: pipelines.pid)

    began = time.monotonic()
    pipelines.stop(0.5)

    assert time.monotonic() - began < 30, "it sleeps for ten minutes"
    assert not running(pid)
