"""Models that listen, from the command line to a microphone's frames on a device."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tests.agent.engine.speech import VAD, WAKE_WORD, said, silence, spoken
from tests.e2e.harness import Agent, Fleet, wait_for

VAD_TASK = """
kind = "classification"

[stream]
rate_hz = 16000
frame = 512
context = 64
state = [{ output = "stateN", input = "state" }]
constants = { sr = 16000 }
"""
WAKE_WORD_TASK = """
kind = "classification"

[stream]
rate_hz = 16000
frame = 3
state = "internal"
threshold = 0.85
features = { extractor = "pymicro-features", version = "2" }
"""


class Microphone:
    """An app that streams on one connection."""

    def __init__(self, agent: Agent, model: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(agent.url).netloc, timeout=20)
        self._model = model

    def send(self, sound: Any, *, id: str = "mic", **flags: bool) -> dict[str, Any]:
        """Send a piece of sound and return the answer."""
        shape, data = [len(sound)], sound.tolist()
        body = {
            "parameters": {"sequence_id": id, **flags},
            "inputs": [{"name": "audio", "datatype": "INT16", "shape": shape, "data": data}],
        }
        path = f"/v2/models/{self._model}/infer"
        self._connection.request("POST", path, json.dumps(body))
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, answer
        return answer

    def close(self) -> None:
        self._connection.close()


def outputs(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def push(fleet: Fleet, folder: Path, model: Path, name: str, task: str, *labels: str) -> str:
    (folder / f"{name}.toml").write_text(task)
    (folder / f"{name}.txt").write_text("\n".join(labels) + "\n")
    return fleet.push(
        model, "--name", name, "--task", str(folder / f"{name}.toml"),
        "--labels", str(folder / f"{name}.txt"),
    )  # fmt: skip


def test_frames_on_a_device_are_heard_by_models_that_were_pushed(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = default_fleet
    agent = fleet.agent("cam-1", engine={"runtimes": ["onnxruntime", "ai-edge-litert"]})
    fleet.wait_until_online(agent)
    vad = push(fleet, tmp_path, VAD, "vad", VAD_TASK, "quiet", "speech")
    nabu = push(fleet, tmp_path, WAKE_WORD, "nabu", WAKE_WORD_TASK, "nothing", "okay nabu")
    shown = fleet.cli("model", "show", vad)
    fleet.rollout(vad)
    fleet.rollout(nabu)
    fleet.wait_until_serving(agent, vad)
    fleet.wait_until_serving(agent, nabu)

    listening, waiting = Microphone(agent, "vad"), Microphone(agent, "nabu")
    sound = np.concatenate([silence(0.5), spoken("Front_Center"), said("okay nabu"), silence(0.5)])
    speech: list[str] = []
    calls: list[str] = []
    for at in range(0, len(sound), 1600):
        flags = {"sequence_start": at == 0, "sequence_end": at + 1600 >= len(sound)}
        speech += outputs(listening.send(sound[at : at + 1600], **flags))["label"]
        calls += outputs(waiting.send(sound[at : at + 1600], **flags))["label"]
    listening.close()
    waiting.close()

    assert "apps send sound at 16000 Hz as audio" in shown
    assert speech[0] == speech[-1] == "quiet" and speech.count("speech") > len(speech) / 3
    # The call comes last, and the words before it are none.
    assert "okay nabu" in calls[len(calls) // 2 :] and set(calls[: len(calls) // 2]) == {"nothing"}


def test_a_rollout_lets_a_stream_end_with_the_release_it_began_with(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = default_fleet
    [agent] = fleet.join("cam-1")
    old = push(fleet, tmp_path, VAD, "vad", VAD_TASK, "quiet", "speech")
    fleet.rollout(old)
    fleet.wait_until_serving(agent, old)
    new = push(fleet, tmp_path, VAD, "vad", f"{VAD_TASK}threshold = 0.6\n", "quiet", "speech")
    microphone = Microphone(agent, "vad")
    sound = spoken("Front_Center")

    whole = outputs(microphone.send(sound, id="whole", sequence_start=True, sequence_end=True))[
        "output"
    ]
    first = microphone.send(sound[:8000], sequence_start=True)
    rollout = fleet.start_rollout(new)
    engine = agent.engine()
    wait_for("two engines", lambda: len(agent.engines()) == 2, 20)
    wait_for("the new one", lambda: _versions(agent) == ["2"], 20)
    last = microphone.send(sound[8000:], sequence_end=True)
    after = microphone.send(sound, id="another", sequence_start=True)
    microphone.close()
    fleet.wait_until_over(rollout)
    agent.wait_until_replaced(engine)

    assert [answer["model_version"] for answer in (first, last, after)] == ["1", "1", "2"]
    assert outputs(first)["output"] + outputs(last)["output"] == whole
    assert "stream_restarted" not in after["parameters"]


def _versions(agent: Agent) -> list[str]:
    """Return what an app is told that comes now."""
    connection = http.client.HTTPConnection(urlsplit(agent.url).netloc, timeout=20)
    connection.request("GET", "/v2/models/vad")
    versions: list[str] = json.loads(connection.getresponse().read())["versions"]
    connection.close()
    return versions
