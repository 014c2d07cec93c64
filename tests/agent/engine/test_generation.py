import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from agent.control import Drain, Load, Ready, Serve
from tests.agent.engine.harness import (
    Client,
    Engine,
    Listeners,
    Release,
    engine,
    eventually,
    one_hot,
)
from tests.agent.engine.models import ROTATED, onnx_classifier, onnx_slow_classifier


def test_no_request_is_lost_while_generations_follow_each_other_under_load(
    tmp_path: Path, listeners: Listeners
) -> None:
    releases = [
        Release(tmp_path / "1", onnx_classifier(), version=1),
        Release(tmp_path / "2", onnx_classifier(ROTATED), version=2),
    ]
    over = threading.Event()
    answers: list[tuple[str, tuple[float, ...]]] = []
    failures: list[str] = []

    def ask(kept: bool) -> None:
        client = Client(listeners.port)
        while not over.is_set():
            try:
                answer = client.infer(one_hot(0))
                fields = answer.json
                answers.append((fields["model_version"], tuple(fields["outputs"][0]["data"])))
                if answer.status != 200:
                    failures.append(f"{answer.status} {answer.body!r}")
            except Exception as error:
                failures.append(repr(error))
            if not kept:
                client.close()
            # The engines need some of the processor too, the next one to start at all.
            time.sleep(0.005)
        client.close()

    running = Engine(listeners)
    try:
        running.serve(releases[0])
        threads = [threading.Thread(target=ask, args=(kept,)) for kept in (True, True, False)]
        for thread in threads:
            thread.start()
        counted = 0
        for turn in range(1, 5):
            follower = Engine(listeners)
            follower.serve(releases[turn % 2], nice=10)
            last = running.drain()
            counted += sum(window.counts["requests"] for window in last.windows)
            running.close()
            running = follower
        over.set()
        for thread in threads:
            thread.join()
        counted += sum(window.counts["requests"] for window in running.drain().windows)
    finally:
        over.set()
        running.close()

    assert failures == []
    assert counted == len(answers) > 100
    assert set(answers) == {("1", (8.0, 0.0, 0.0)), ("2", (0.0, 8.0, 0.0))}


def test_a_drained_engine_finishes_what_it_has_in_hand(
    tmp_path: Path, listeners: Listeners
) -> None:
    release = Release(tmp_path / "r", onnx_slow_classifier(120))
    answers = []

    def ask() -> None:
        client = Client(listeners.port)
        answers.append(client.infer(one_hot(1)))
        client.close()

    with engine(listeners) as started:
        started.serve(release)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: started.blamed() == "digits")
        eventually(lambda: _established(listeners.port) >= 4)
        scores = started.drain(deadline_s=20)
        for thread in threads:
            thread.join()

    assert [answer.status for answer in answers] == [200] * 4
    assert [answer.headers["Connection"] for answer in answers] == ["close"] * 4
    assert scores.windows[0].counts["requests"] == 4


def _established(port: int) -> int:
    """How many connections to a local port are open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_a_drain_ends_at_its_deadline(tmp_path: Path, listeners: Listeners) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_classifier()))
        with socket.create_connection(("127.0.0.1", listeners.port)) as half:
            head = b"POST /v2 HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            half.sendall(head)
            # The engine has taken it, and not only the kernel.
            assert half.recv(100).startswith(b"HTTP/1.1 100")
            half.sendall(b"half")
            began = time.monotonic()
            started.drain(deadline_s=1.5)

    # Its deadline, and not the 30 s that a request may take.
    assert 1.4 < time.monotonic() - began < 20


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_terminate_signal_drains_and_an_interrupt_is_the_daemons_business(
    tmp_path: Path, listeners: Listeners, client: Client, signal_: signal.Signals
) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_classifier()))
        client.infer(one_hot(0))

        started.process.send_signal(signal_)

        if signal_ is signal.SIGTERM:
            assert started.hear().final  # type: ignore[union-attr]
            assert started.process.wait(10) == 0
        else:
            assert client.infer(one_hot(0)).status == 200


def test_an_engine_never_outlives_its_daemon(tmp_path: Path, listeners: Listeners) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_classifier()))

        started.socket.shutdown(socket.SHUT_RDWR)

        assert started.process.wait(5) == 3


def test_a_daemon_that_closes_after_the_last_word_still_gets_a_clean_exit(
    tmp_path: Path, listeners: Listeners
) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_classifier()))
        started.tell(Drain(1.0))
        started.hear()

        started.socket.shutdown(socket.SHUT_RDWR)

        assert started.process.wait(5) == 0


def test_an_engine_inside_an_endless_model_does_not_outlive_its_daemon_either(
    tmp_path: Path,
) -> None:
    with engine() as started:
        started.tell(Load([Release(tmp_path / "r", onnx_slow_classifier(30_000)).spec]))
        eventually(lambda: started.blamed() == "digits")

        started.socket.shutdown(socket.SHUT_RDWR)

        assert started.process.wait(5) == 3


def test_a_crash_while_running_leaves_the_models_name(tmp_path: Path, listeners: Listeners) -> None:
    releases = [
        Release(tmp_path / "1", onnx_classifier(), model="bystander"),
        Release(tmp_path / "2", onnx_slow_classifier(1000), model="culprit"),
    ]

    def ask() -> None:
        client = Client(listeners.port)
        try:
            client.infer(one_hot(1), model="culprit")
        except OSError:
            client.close()

    with engine(listeners) as started:
        started.serve(*releases)
        assert started.blamed() == ""
        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: started.blamed() == "culprit")
        started.process.send_signal(signal.SIGSEGV)

        assert started.process.wait(10) == -signal.SIGSEGV
        assert started.blamed() == "culprit"
        # The listening socket is still open here: the client's retry gets no answer from anyone.
        listeners.tcp.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nothing_is_accepted_before_serve(tmp_path: Path, listeners: Listeners) -> None:
    with engine(listeners) as started:
        assert isinstance(started.load(Release(tmp_path / "r", onnx_classifier())), Ready)
        with socket.create_connection(("127.0.0.1", listeners.port), 10) as sock:
            sock.sendall(b"GET /v2/health/ready HTTP/1.1\r\n\r\n")
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                sock.recv(1)

            started.tell(Serve())

            sock.settimeout(10)
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_trial_runs_nice_and_serving_does_not_even_without_privilege(
    tmp_path: Path, listeners: Listeners, threads: int
) -> None:
    release = Release(tmp_path / "r", onnx_slow_classifier(80))

    with engine(listeners) as started:
        started.tell(Load([release.spec], nice=10, threads=threads))
        eventually(lambda: started.blamed() == "digits")
        pid = started.process.pid
        during = _priorities(pid)
        assert isinstance(started.hear(), Ready)
        started.tell(Serve())
        eventually(lambda: {policy for _, policy in _priorities(pid)} == {"0"})
        serving = _priorities(pid, only=pid)

    ours = os.nice(0)
    lowered = ("10", "0") if threads == 1 else (str(ours), str(os.SCHED_BATCH))
    assert lowered in during
    assert serving == {(str(ours), "0")}


def _priorities(pid: int, only: int | None = None) -> set[tuple[str, str]]:
    """Niceness and scheduling policy of every thread, or of one."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob(str(only or "*")):
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found.add((fields[16], fields[38]))
    return found


def test_a_line_that_is_none_is_noted_and_not_obeyed(tmp_path: Path, listeners: Listeners) -> None:
    with engine(listeners) as started:
        started.socket.sendall(b'{"kind":"dance"}\n')
        started.serve(Release(tmp_path / "r", onnx_classifier()))

    assert started.notes[0].startswith("not obeyed: ")


def test_a_drain_before_anything_was_loaded_ends_cleanly() -> None:
    with engine() as started:
        scores = started.drain(1)

    assert (scores.windows, scores.tallies) == ([], [])


def test_the_probe_tells_what_works_what_does_not_and_what_is_allowed(tmp_path: Path) -> None:
    import json

    for name, body in {
        "tflite_runtime": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "ai_edge_litert": "def Interpreter(**given): raise ImportError('numpy is too new')",
    }.items():
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "interpreter.py").write_text(body)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "agent.engine", "--probe"]

    def probe(**more: str) -> dict[str, dict[str, str]]:
        done = subprocess.run(
            command, env={**os.environ, **more}, capture_output=True, check=True, text=True
        )
        found: dict[str, dict[str, str]] = json.loads(done.stdout)
        return found

    whole = probe()
    broken = probe(PYTHONPATH=environment["PYTHONPATH"])
    restricted = probe(FARFLUNG_RUNTIMES="tflite-runtime")

    assert set(whole["runtimes"]) == {"onnxruntime", "ai-edge-litert", "tflite-runtime"}
    assert whole["unusable"] == {}
    assert set(broken["runtimes"]) == {"onnxruntime"}
    assert broken["unusable"] == {
        "ai-edge-litert": f"numpy is too new (with NumPy {np.__version__})",
        "tflite-runtime": "its process ended by SIGSEGV",
    }
    assert set(restricted["runtimes"]) == {"tflite-runtime"}


def test_the_engine_keeps_the_daemons_libraries_out() -> None:
    code = (
        "import sys, agent.engine.generation as g\n"
        "bad = [n for n in sys.modules if n.split('.')[0] in ('paho', 'psutil', 'onnxruntime',"
        " 'ai_edge_litert', 'tflite_runtime') or n.startswith(('agent.core', 'agent.shell'))]\n"
        "assert not bad, bad"
    )

    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
