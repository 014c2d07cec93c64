"""A task goes the whole way: pushed with a model, rolled out, answered on the device."""

import http.client
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from tests import found, tasks
from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for


def test_pictures_and_files_get_their_answers_on_the_device(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = default_fleet
    camera = fleet.agent("cam-1", runtime="ai-edge-litert")
    fleet.wait_until_online(camera)
    face = found.face_model("short_range")
    faces = fleet.push(face, "--name", "faces", *options(tasks.write_face(tmp_path / "faces")))
    digits = fleet.push(
        SAMPLES / "digits-1/digits-int8.onnx",
        str(SAMPLES / "digits-1/digits-int8.tflite"),
        "--name",
        "drawings",
        *options(tasks.write_digits(tmp_path / "digits")),
    )

    for release in (faces, digits):
        fleet.rollout(release)
        fleet.wait_until_serving(camera, release)

    [found_face] = ask(camera, "faces", found.astronaut(), "image/png")["detections"]
    assert found_face["label"] == "face"
    assert 170 < found_face["box"][0] < 190
    seven = ask(camera, "drawings", drawing(), "image/png")
    assert seven["labels"][0]["label"] == "1"
    assert feedback(camera, seven["id"], "drawings", "1") == 1
    fleet.wait_for_requests(camera, 2)
    wait_for("the label", lambda: fleet.score(camera, digits).labelled == 1, 20)
    assert fleet.score(camera, digits).correct == 1
    assert "apps send image as image" in fleet.cli("model", "show", faces)


def test_bytes_are_told_apart_on_the_device(default_fleet: Fleet, tmp_path: Path) -> None:
    fleet = default_fleet
    [gate] = fleet.join("gate-1")
    types = fleet.push(
        found.magika() / "model.onnx",
        "--name",
        "types",
        *options(tasks.write_magika(tmp_path / "types")),
    )

    fleet.rollout(types)
    fleet.wait_until_serving(gate, types)

    octets = "application/octet-stream"
    best = ask(gate, "types", Path(__file__).read_bytes(), octets)["labels"][0]
    assert best["label"] == "python"
    assert ask(gate, "types", found.astronaut(), octets)["labels"][0]["label"] == "png"


def options(files: dict[str, Path]) -> list[str]:
    return [str(word) for pair in files.items() for word in pair]


def drawing() -> bytes:
    """Return a one, drawn with a broad pen, PNG."""
    ink = np.zeros((8, 8))
    ink[:, 3:5] = 16
    ink[1, 2] = 12
    pixels = (255 - ink * 255 / 16).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(10, axis=0).repeat(10, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(agent: Agent, model: str, body: bytes, media: str) -> Any:
    return post(agent, f"/v2/models/{model}/infer", body, {"Content-Type": media})


def feedback(agent: Agent, id: str, model: str, label: str) -> int:
    told = {"request_id": id, "model": model, "label": label}
    labelled: int = post(agent, "/v2/feedback", json.dumps(told).encode(), {})["labelled"]
    return labelled


def post(agent: Agent, path: str, body: bytes, headers: dict[str, str]) -> Any:
    connection = http.client.HTTPConnection(urlsplit(agent.url).netloc, timeout=20)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 200, answer
    return answer
