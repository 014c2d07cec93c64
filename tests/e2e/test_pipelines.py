"""Pipelines of a real agent: through swaps, crashes, kills and its own end."""

import contextlib
import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.brokers import Broker, start_mosquitto
from tests.e2e.app import held_out
from tests.e2e.harness import SAMPLES, Agent, Fleet, alive, wait_for, wait_until_gone

FILES = 240
LATE = 60
"""Of these, how many come when the second release is there."""


def add_pipelines(agent: Agent, toml: str) -> None:
    """Put tables at the end of its configuration and start it again with them."""
    agent.stop()
    with (agent.home / "agent.toml").open("a") as file:
        file.write(toml)
    agent.start()


def pipelines(agent: Agent) -> psutil.Process | None:
    """Return the process of its pipelines, while there is one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(agent.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "agent.pipelines" in child.cmdline():
                    return child
    return None


def running(agent: Agent) -> psutil.Process:
    return wait_for("the pipelines", lambda: pipelines(agent))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def answered(record: dict[str, Any]) -> int:
    return int(np.argmax(record["outputs"][0]["data"]))


def test_every_file_is_answered_whatever_is_replaced_or_killed(mosquitto_fleet: Fleet) -> None:
    fleet = mosquitto_fleet
    [agent] = fleet.join("cam-1")
    folder = agent.home / "in"
    folder.mkdir()
    images, labels = held_out()

    def bring(places: range) -> None:
        for place in places:
            made = folder / f"{place:03}.part"
            made.write_bytes(images[place].tobytes())
            made.rename(folder / f"{place:03}.raw")

    bring(range(FILES - LATE))
    add_pipelines(
        agent,
        """
        [[pipeline]]
        name = "door"
        model = "digits"
        max_per_s = 40
        source = { directory = "in", settle_s = 0, done = "delete" }
        sink = { file = "out.jsonl" }
        """,
    )
    out = agent.home / "out.jsonl"
    running(agent)
    for version in (1, 2):
        fleet.push(SAMPLES / f"digits-{version}")

    fleet.rollout("digits@1")
    wait_for("answers", lambda: len(records(out)) >= 30)
    agent.engine().kill()
    wait_for("answers after the engine's end", lambda: len(records(out)) >= 60)
    killed = running(agent)
    killed.kill()
    wait_for("another process", lambda: running(agent).pid != killed.pid)
    before = len(records(out))
    wait_for("answers after the process's end", lambda: len(records(out)) >= before + 30)
    fleet.rollout("digits@2")
    bring(range(FILES - LATE, FILES))
    wait_for("no files", lambda: not list(folder.iterdir()))

    found = {record["id"]: record for record in records(out)}
    assert len(records(out)) <= len(found) + 2  # a repeat where something was killed, at most
    assert sorted(r["source"] for r in found.values()) == [f"{n:03}.raw" for n in range(FILES)]
    assert {record["model_version"] for record in found.values()} == {"1", "2"}
    right = [answered(record) == labels[int(record["source"][:3])] for record in found.values()]
    assert np.mean(right) > 0.85
    wait_for(
        "counts in the health report",
        lambda: fleet.health(agent).get("pipelines", {}).get("door", {}).get("answered"),
    )


@pytest.fixture
def local(tmp_path: Path) -> Any:
    (tmp_path / "local").mkdir()
    with start_mosquitto(tmp_path / "local") as broker:
        yield broker


def test_a_camera_feeds_a_local_topic_and_nothing_outlives_the_agent(
    mosquitto_fleet: Fleet, local: Broker
) -> None:
    fleet = mosquitto_fleet
    [agent] = fleet.join("cam-1")
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    images, _ = held_out()
    camera = agent.home / "camera.py"
    frames = [struct.pack(">I", len(i.tobytes())) + i.tobytes() for i in images[:50]]
    (agent.home / "frames").write_bytes(b"".join(frames))
    camera.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"frames = open({str(agent.home / 'frames')!r}, 'rb').read()\n"
        "while True: sys.stdout.buffer.write(frames); sys.stdout.flush(); time.sleep(0.2)\n"
    )
    heard = agent.home / "heard"
    listener = agent.home / "listener.py"
    listener.write_text(
        "import paho.mqtt.subscribe as s\n"
        f"file = open({str(heard)!r}, 'a', 1)\n"
        "s.callback(lambda _c, _d, m: file.write(m.payload.decode() + chr(10)), 'cam/answers', "
        f"hostname='127.0.0.1', port={local.port})\n"
    )
    broker = f"mqtt://127.0.0.1:{local.port}"
    add_pipelines(
        agent,
        f"""
        [[pipeline]]
        name = "camera"
        model = "digits"
        queue = 1
        when_full = "drop-oldest"
        source = {{ command = {json.dumps([sys.executable, str(camera)])}, frames = "length" }}
        sink = {{ mqtt = "cam/answers", broker = "{broker}" }}

        [[pipeline]]
        name = "listener"
        model = "digits"
        input = "json"
        source = {{ command = {json.dumps([sys.executable, str(listener)])}, frames = "lines" }}
        sink = {{ command = ["sh", "-c", "trap '' TERM; sleep 601 & wait"] }}
        """,
    )

    wait_for("20 answers", lambda: len(records(heard)) >= 20)
    killed = [running(agent), *running(agent).children(recursive=True)]
    assert len(killed) == 5  # itself, camera, listener, and a shell with its child
    wait_for(
        "dropped frames in the health report",
        lambda: fleet.health(agent).get("pipelines", {}).get("camera", {}).get("dropped"),
    )
    counts = fleet.health(agent)["pipelines"]["camera"]
    os.kill(agent.pid, signal.SIGKILL)
    wait_until_gone(killed)
    agent.kill()

    agent.start()
    before = len(records(heard))
    wait_for("more answers", lambda: len(records(heard)) > before)
    stopped = [running(agent), *running(agent).children(recursive=True)]
    assert agent.stop() == 0

    assert not [each for each in stopped if alive(each)]
    assert counts["taken"] - counts["answered"] - counts["dropped"]["queue full"] in (0, 1, 2)
    assert {record["pipeline"] for record in records(heard)} == {"camera"}
    [last] = [line for line in agent.said().splitlines() if "pipeline camera: " in line][-1:]
    assert "dropped (queue full" in last
