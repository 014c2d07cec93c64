"""Runs that never end: stopped where the runtime can, else the end of their engine."""

import queue
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np

from agent.control import Failed, Hung, Load
from agent.core.actions import StartEngine
from agent.core.events import EngineExited, EngineFailed, EngineReady, Event
from agent.shell.engines import Engines
from tests.agent.engine.harness import Client, Listeners, Release, engine, one_hot
from tests.agent.engine.slow_models import onnx_looper, tflite_plodder
from tests.agent.shell.test_engines import configure
from wire.twin import Reason

LIMIT_S = 0.5
ENDLESS = [[1e15, 0.0, 0.0, 0.0]]


def test_an_endless_loop_is_stopped_and_the_engine_answers_on(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_looper()), invoke_s=LIMIT_S)
        before = client.infer(one_hot(1))

        endless = client.infer(ENDLESS)

        told = started.hear()
        after = client.infer(one_hot(1))
    assert endless.status == 500
    assert "no answer in time" in endless.json["error"]
    assert told == Hung("digits", "a run was stopped after 0.5 s without an answer")
    assert (before.status, after.status) == (200, 200)
    assert after.json["outputs"][0]["data"] == before.json["outputs"][0]["data"]


def test_an_endless_loop_in_a_trial_fails_it(tmp_path: Path) -> None:
    golden = (np.array(ENDLESS, np.float32), np.zeros((1, 3), np.float32))

    with engine() as started:
        release = Release(tmp_path / "r", onnx_looper(), golden=golden)
        started.tell(Load([release.spec], invoke_s=LIMIT_S))
        stopped, failed = started.hear(), started.hear()

    assert isinstance(stopped, Hung) and isinstance(failed, Failed)
    assert (failed.model, failed.reason) == ("digits", "hung")


def test_a_run_that_nothing_stops_ends_its_engine_and_its_model_is_blamed(tmp_path: Path) -> None:
    events: queue.Queue[Event] = queue.Queue()
    config = configure(tmp_path, engine={"invoke_timeout_s": 1})
    engines = Engines(config, tmp_path / "run", events.put)
    quiet = Release(tmp_path / "quiet", onnx_looper(), model="quiet")
    plodder = Release(tmp_path / "r", tflite_plodder(), format="tflite", variant_batch=-1)
    try:
        specs = (quiet.spec, plodder.spec)
        engines.start(StartEngine(1, specs, golden=False, background=False))
        ready = events.get(timeout=30)
        engines.serve(1)
        thread = threading.Thread(target=ask_for_many, args=(engines.addresses()[0],))
        thread.start()

        failed = events.get(timeout=20)
        exited = events.get(timeout=5)

        thread.join()
    finally:
        engines.stop_all(1)
    assert isinstance(ready, EngineReady)
    detail = "a run took more than 1 s and could not be stopped"
    assert failed == EngineFailed(1, "digits", Reason.HUNG, detail)
    assert isinstance(exited, EngineExited)
    assert replace(exited, detail="") == EngineExited(1, -signal.SIGKILL, "digits", "")


def ask_for_many(address: str) -> None:
    """Send more rows than can be answered in time."""
    client = Client(int(address.rpartition(":")[2]))
    try:
        answer = client.infer(np.ones((200_000, 4)))
    except OSError:
        client.close()
    else:
        raise AssertionError(f"expected no answer, got {answer.status} {str(answer.json)[:300]}")
