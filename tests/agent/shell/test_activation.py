"""Sockets of a service manager: handed over for real, and never closed while agents come and go."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.agent.engine.harness import Client, Release, infer_body, one_hot
from tests.agent.engine.models import onnx_classifier

# What the service manager does last: its sockets become 3 and 4, and the agent this process.
AGENT = """
import json, os, queue, signal, sys
from pathlib import Path
for place, fd in enumerate(json.loads(sys.argv[2])):
    os.dup2(fd, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
from agent.control import ModelSpec
from agent.core.actions import StartEngine
from agent.core.events import EngineReady
from agent.shell.engines import Engines
from tests.agent.shell.test_engines import configure
events = queue.Queue()
home = Path(sys.argv[1])
engines = Engines(configure(home), home / "run", events.put)
print(json.dumps(engines.addresses()), flush=True)
spec = ModelSpec(**json.loads(sys.argv[3]))
engines.start(StartEngine(1, (spec,), golden=True, background=False))
assert isinstance(events.get(timeout=30), EngineReady)
engines.serve(1)
environ = Path(f"/proc/{engines.pids()[1]}/environ").read_bytes()
print(b"LISTEN_" in environ, flush=True)
signal.pause()
"""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


@contextmanager
def agent(home: Path, spec: Any, *sockets: socket.socket) -> Iterator[subprocess.Popen[str]]:
    """Start an agent with these sockets, as a service manager does."""
    # Out of the way of 3 and 4, to which they go.
    fds = [os.dup2(each.fileno(), 50 + place) for place, each in enumerate(sockets)]
    started = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(home), json.dumps(fds), json.dumps(asdict(spec))],
        env={**os.environ, "LISTEN_FDS": str(len(fds)), "PYTHONPATH": str(Path.cwd())},
        pass_fds=fds,
        stdout=subprocess.PIPE,
        text=True,
    )
    for fd in fds:
        os.close(fd)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def test_apps_wait_at_the_service_managers_sockets_while_agents_come_and_go(
    tmp_path: Path,
) -> None:
    release = Release(tmp_path / "release", onnx_classifier())
    path = tmp_path / "api.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        port = tcp.getsockname()[1]
        answers: list[int] = []

        def ask_by_tcp() -> None:
            client = Client(port)
            answers.append(client.infer(one_hot(1)).status)
            client.close()

        def ask_by_unix() -> None:
            connection = UnixConnection(path)
            connection.request(
                "POST", "/v2/models/digits/infer", json.dumps(infer_body(one_hot(1)))
            )
            answers.append(connection.getresponse().status)
            connection.close()

        for _ in range(2):  # before the first agent is up, and between the first and the second
            early = [threading.Thread(target=ask) for ask in (ask_by_tcp, ask_by_unix)]
            for app in early:
                app.start()
            with agent(tmp_path, release.spec, tcp, unix) as started:
                assert started.stdout is not None
                addresses = json.loads(started.stdout.readline())
                for app in early:
                    app.join(30)
                leaked = started.stdout.readline()

    assert addresses == [f"http://127.0.0.1:{port}", f"unix:{path}"]
    assert answers == [200] * 4
    assert leaked == "False\n"
