import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.config import AgentConfig
from agent.control import Loaded, ModelSpec, Tally
from agent.core.actions import StartEngine, StartShadow
from agent.core.events import (
    EngineExited,
    EngineFailed,
    EngineHung,
    EngineReady,
    Event,
    ScoresCame,
)
from agent.errors import DeviceError
from agent.shell.engines import Engines
from wire.ids import digest_of
from wire.twin import Reason

STAND_IN = Path(__file__).parent / "stand_in_engine.py"
ROOT = Path(__file__).parents[3]
SPEC = ModelSpec("digits", 1, digest_of(b"r"), "onnx-int8", "/nowhere", {})


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def configure(tmp_path: Path, **tables: Any) -> AgentConfig:
    return AgentConfig.model_validate(
        {
            "device": "pi-1",
            "data_dir": tmp_path,
            "broker": {"url": "mqtt://127.0.0.1"},
            "controller": {"public_keys": ["A" * 43 + "="]},
            "api": {"tcp": "127.0.0.1:0"},
            **tables,
        }
    )


class Room:
    """Engines with the events that came of them."""

    def __init__(self, engines: Engines, events: "queue.Queue[Event]") -> None:
        self.engines = engines
        self.events = events

    def next(self, timeout_s: float = 10) -> Event:
        return self.events.get(timeout=timeout_s)

    def start(self, generation: int = 1, *, background: bool = False) -> None:
        self.engines.start(StartEngine(generation, (SPEC,), golden=True, background=background))

    def start_ready(self, generation: int = 1) -> None:
        self.start(generation)
        ready = EngineReady(generation, (Loaded("digits", "x 1", 1.0, 1.0),))
        assert self.next() == ready


@contextmanager
def room(
    tmp_path: Path, mood: str, drain_s: tuple[float, float] = (5.0, 1.0), **tables: Any
) -> Iterator[Room]:
    events: queue.Queue[Event] = queue.Queue()
    engines = Engines(
        configure(tmp_path, **tables),
        tmp_path / "run",
        events.put,
        command=(sys.executable, str(STAND_IN), mood),
        drain_s=drain_s,
    )
    try:
        yield Room(engines, events)
    finally:
        engines.stop_all(1.0)


def test_an_engine_becomes_ready_serves_reports_and_drains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    limits = {"threads": 2, "memory_mb": 3, "runtimes": ["onnxruntime"]}
    with room(tmp_path, "good", engine=limits) as it:
        it.start(background=True)

        assert it.next() == EngineReady(1, (Loaded("digits", "x 1", 1.0, 1.0),))
        (pid,) = it.engines.pids().values()
        assert psutil.pid_exists(pid)

        it.engines.serve(1)
        (address,) = it.engines.addresses()
        port = int(address.removeprefix("http://127.0.0.1:"))
        with socket.create_connection(("127.0.0.1", port), timeout=5) as app:
            assert app.recv(100) == b"served"

        it.engines.ask_scores(1, windows=True)
        assert it.next() == ScoresCame(1, (), (Tally("digits", "sha256:x", pairs=5),))

        it.engines.drain(1)
        assert it.next() == ScoresCame(1, (), ())
        assert it.next() == EngineExited(1, 0)
        time.sleep(0.1)
        assert it.engines.pids() == {}
    lines = [record.getMessage() for record in caplog.records]
    assert "engine 1: 2 10 3145728 ['2', 'onnxruntime']" in lines
    assert "engine 1: hello from the engine" in lines


def test_a_crash_names_its_signal_and_the_model_that_ran(tmp_path: Path) -> None:
    with room(tmp_path, "crash") as it:
        it.start()

        exited = it.next()

    assert isinstance(exited, EngineExited)
    assert (exited.code, exited.model) == (-signal.SIGSEGV, "digits")
    assert exited.detail == "ended by SIGSEGV: hello from the engine"


def test_a_failed_trial_is_told_with_its_reason(tmp_path: Path) -> None:
    with room(tmp_path, "fails") as it:
        it.start()

        assert it.next() == EngineFailed(1, "digits", Reason.GOLDEN_MISMATCH, "3 of 40 differ")
        assert it.next() == EngineExited(1, 1, "", "ended with code 1: hello from the engine")


def test_an_engine_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    with room(tmp_path, "silent", engine={"start_timeout_s": 1}) as it:
        it.start()

        assert it.next() == EngineFailed(1, "", Reason.HUNG, "not ready within 1 s")
        exited = it.next()

    assert isinstance(exited, EngineExited)
    assert exited.code == -signal.SIGKILL


@pytest.mark.parametrize("mood", ["garbage", "wrong-types", "endless"])
def test_an_engine_that_babbles_is_killed(tmp_path: Path, mood: str) -> None:
    with room(tmp_path, mood) as it:
        it.start()

        detail = "it does not keep to the control protocol"
        assert it.next() == EngineFailed(1, "", Reason.CRASHED, detail)
        assert isinstance(it.next(), EngineExited)


def test_an_engine_that_stops_reading_does_not_stop_the_agent(tmp_path: Path) -> None:
    with room(tmp_path, "deaf") as it:
        it.start()
        assert it.next() == EngineReady(1, ())
        began = time.monotonic()

        for _ in range(3000):
            it.engines.ask_scores(1, windows=False)

        assert time.monotonic() - began < 20, "each might have waited for 2 s"
        detail = "it does not read its control socket"
        assert it.next() == EngineFailed(1, "", Reason.HUNG, detail)
        assert isinstance(it.next(), EngineExited)


def test_an_engine_with_an_endless_run_is_killed_and_the_model_that_runs_longest_blamed(
    tmp_path: Path,
) -> None:
    with room(tmp_path, "hangs", engine={"invoke_timeout_s": 1}) as it:
        it.start_ready()

        detail = "a run took more than 1 s and could not be stopped"
        assert it.next(20) == EngineFailed(1, "digits", Reason.HUNG, detail)
        exited = it.next()

    assert isinstance(exited, EngineExited)
    assert exited.code == -signal.SIGKILL


def test_a_run_that_the_engine_stopped_itself_is_told_and_not_more_often_than_can_be(
    tmp_path: Path,
) -> None:
    with room(tmp_path, "stopped") as it:
        it.start()

        assert it.next() == EngineHung(1, "digits", "stopped after 1 s")
        assert isinstance(it.next(), EngineReady)


def test_a_run_at_low_priority_may_take_four_times_as_long_until_its_engine_serves(
    tmp_path: Path,
) -> None:
    with room(tmp_path, "half-hangs", engine={"invoke_timeout_s": 1}) as it:
        it.start(background=True)
        assert isinstance(it.next(), EngineReady)

        began = time.monotonic()
        with pytest.raises(queue.Empty):
            it.next(1.0)
        it.engines.serve(1)
        failed = it.next(3)

    assert isinstance(failed, EngineFailed)
    assert failed.detail == "a run took more than 1 s and could not be stopped"
    assert time.monotonic() - began < 4


def test_an_engine_is_as_nice_as_the_configuration_says(tmp_path: Path) -> None:
    with room(tmp_path, "good", engine={"nice": 7}) as it:
        it.start_ready()
        (pid,) = it.engines.pids().values()

        assert os.getpriority(os.PRIO_PROCESS, pid) == 7


def test_accelerators_reach_the_engine_unless_they_were_seen_to_fail(tmp_path: Path) -> None:
    named = {"providers": ["QNN", {"name": "OpenVINO", "device_type": "GPU"}]}
    engines = Engines(configure(tmp_path, engine=named), tmp_path / "run", lambda _: None)

    engines.leave_out(["QNN"])
    told = json.loads(engines._environ()["FARFLUNG_ACCELERATORS"])
    engines.stop_all(0)

    assert told == {"providers": [["OpenVINO", {"device_type": "GPU"}]], "delegates": []}


def test_an_engine_that_does_not_drain_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with room(tmp_path, "never-drains", drain_s=(0.2, 0.3)) as it:
        it.start_ready()

        it.engines.drain(1)

        exited = it.next(3)
        assert isinstance(exited, EngineExited)
        assert exited.code == -signal.SIGKILL


def test_an_engine_that_exits_at_once_leaves_its_last_words(tmp_path: Path) -> None:
    with room(tmp_path, "exits") as it:
        it.start()

        detail = "ended with code 3: Traceback: no such thing"
        assert it.next() == EngineExited(1, 3, "", detail)


def test_an_engine_that_hangs_up_and_stays_is_killed(tmp_path: Path) -> None:
    with room(tmp_path, "lingers") as it:
        it.start()

        exited = it.next(8)

    assert isinstance(exited, EngineExited)
    assert exited.code == -signal.SIGKILL


def test_a_command_that_cannot_run_is_an_exit_like_any_other(tmp_path: Path) -> None:
    events: queue.Queue[Event] = queue.Queue()
    engines = Engines(
        configure(tmp_path), tmp_path / "run", events.put, command=("/nowhere/engine",)
    )

    engines.start(StartEngine(4, (SPEC,), golden=True, background=False))

    detail = "cannot start /nowhere/engine: No such file or directory"
    assert events.get(timeout=1) == EngineExited(4, 127, "", detail)
    engines.stop_all(1)


def test_a_challenger_hosts_before_the_champion_is_sent_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    release = digest_of(b"challenger")
    with room(tmp_path, "good") as it:
        it.start_ready(1)
        it.start_ready(2)

        it.engines.shadow(StartShadow("digits", 1, 2, release))
        it.engines.shadow(StartShadow("digits", 1, 2, release))
        it.engines.stop_shadow("digits", 1)
        it.engines.drain(1)
        it.engines.drain(2)
        for _ in range(4):
            it.next()

    path = str(tmp_path / "run" / "shadow-2.sock")
    told = [r.getMessage() for r in caplog.records if "[" not in r.getMessage()]
    shadow = f"engine 1: ShadowTo(model='digits', path='{path}', challenger='{release}')"
    assert sorted(told) == sorted(
        [
            f"engine 2: Host(path='{path}', cpu_percent=25)",
            shadow,
            shadow,
            "engine 1: ShadowStop(model='digits')",
        ]
    )


def test_two_generations_live_side_by_side_and_kill_takes_one(tmp_path: Path) -> None:
    with room(tmp_path, "good") as it:
        it.start_ready(1)
        it.start_ready(2)

        it.engines.kill(1)

        exited = it.next()
        assert isinstance(exited, EngineExited)
        assert (exited.generation, exited.code) == (1, -signal.SIGKILL)
        time.sleep(0.1)
        assert list(it.engines.pids()) == [2]
        it.engines.kill(1)  # an old order for one that is gone
        it.engines.ask_scores(1, windows=True)


def test_the_real_engine_keeps_to_the_same_words(tmp_path: Path) -> None:
    events: queue.Queue[Event] = queue.Queue()
    engines = Engines(configure(tmp_path), tmp_path / "run", events.put)
    it = Room(engines, events)

    it.start(1)
    failed = it.next(30)
    assert isinstance(failed, EngineFailed)
    assert (failed.generation, failed.model) == (1, "digits")
    assert isinstance(it.next(), EngineExited)

    engines.start(StartEngine(2, (), golden=True, background=False))
    assert it.next(30) == EngineReady(2, ())
    engines.serve(2)
    engines.ask_scores(2, windows=True)
    assert it.next() == ScoresCame(2, (), ())
    (address,) = engines.addresses()
    with urllib.request.urlopen(f"{address}/v2", timeout=5) as answer:
        assert json.load(answer)["name"] == "farflung"

    engines.stop_all(5)
    assert it.next() == ScoresCame(2, (), ())
    assert it.next() == EngineExited(2, 0)


def test_no_engine_outlives_a_killed_agent(tmp_path: Path) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path), str(STAND_IN)], stdout=subprocess.PIPE
    )
    with agent:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        assert psutil.pid_exists(pid)

        agent.kill()

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


AGENT = """
import queue, sys, time
from pathlib import Path
from agent.core.actions import StartEngine
from agent.shell.engines import Engines
from tests.agent.shell.test_engines import SPEC, configure
events = queue.Queue()
directory = Path(sys.argv[1])
engines = Engines(configure(directory), directory / "run", events.put,
                  command=(sys.executable, sys.argv[2], "good"))
engines.start(StartEngine(1, (SPEC,), golden=True, background=False))
events.get(timeout=10)
print(engines.pids()[1], flush=True)
time.sleep(30)
"""


# ---- listening sockets


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = configure(tmp_path, api={"tcp": f"127.0.0.1:{port}"})

        with pytest.raises(DeviceError, match=f"127.0.0.1:{port}: cannot listen: Address already"):
            Engines(config, tmp_path / "run", lambda _: None)


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "api.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    config = configure(tmp_path, api={"tcp": "", "unix": path})

    engines = Engines(config, tmp_path / "run", lambda _: None)

    assert engines.addresses() == (f"unix:{path}",)
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(DeviceError, match="another process listens there"):
        Engines(config, tmp_path / "run", lambda _: None)
    engines.stop_all(0)
    assert not path.exists()


def test_a_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    config = configure(tmp_path, api={"tcp": "", "unix": path})

    with pytest.raises(DeviceError, match="expected a free path, got a file"):
        Engines(config, tmp_path / "run", lambda _: None)

    assert path.read_text() == "precious"


def test_sockets_of_the_service_manager_are_used_instead(tmp_path: Path) -> None:
    script = """
import os, sys
os.dup2(int(sys.argv[2]), 3)
from pathlib import Path
os.environ["LISTEN_PID"] = str(os.getpid())
from agent.shell.engines import Engines
from tests.agent.shell.test_engines import configure
engines = Engines(configure(Path(sys.argv[1])), Path(sys.argv[1]) / "run", print)
print(*engines.addresses())
"""
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        port = tcp.getsockname()[1]
        fd = tcp.fileno()
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path, str(fd)],
            env={**os.environ, "LISTEN_FDS": "1"},
            pass_fds=(fd,),
            capture_output=True,
            text=True,
            check=True,
        )

    assert done.stdout == f"http://127.0.0.1:{port}\n"


def test_a_run_directory_too_long_for_sockets_is_replaced_and_never_piles_up(
    tmp_path: Path,
) -> None:
    deep = tmp_path / ("x" * 100)
    killed = Engines(configure(tmp_path), deep, lambda _: None)
    left = (deep / "elsewhere").readlink()
    killed._listeners.close()

    engines = Engines(configure(tmp_path), deep, lambda _: None)
    used = (deep / "elsewhere").readlink()

    assert used.is_dir()
    assert not left.exists()
    engines.stop_all(0)
    assert not used.exists()
