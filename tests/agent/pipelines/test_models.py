"""Sounds and pictures: models that listen, and models whose task takes files as they are."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import found, tasks
from tests.agent.engine.harness import Client, Listeners, engine, eventually
from tests.agent.engine.speech import scores_of, spoken, vad, wav
from tests.agent.engine.task_release import TaskRelease
from tests.agent.pipelines.harness import records, running

FRAME = 1024


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    """Where one engine listens for voices and looks for faces."""
    folder = tmp_path_factory.mktemp("able")
    listeners = Listeners(folder)
    (folder / "face.toml").write_text(tasks.FACE)
    faces = TaskRelease(
        folder / "faces", "faces", [found.face_model("short_range")],
        {"--task": folder / "face.toml"},
    )  # fmt: skip
    with engine(listeners) as started:
        started.serve(vad(folder / "vad"), faces)  # type: ignore[arg-type]
        yield listeners
    listeners.close()


def microphone(tmp_path: Path, sound: bytes, *, after: str = "time.sleep(600)") -> str:
    """A command that writes sound as arecord does."""
    (tmp_path / "sound.raw").write_bytes(sound)
    program = (
        "import sys, time\n"
        f"sound = open({str(tmp_path / 'sound.raw')!r}, 'rb').read()\n"
        "sys.stdout.buffer.write(sound); sys.stdout.flush()\n"
        f"{after}\n"
    )
    return json.dumps([sys.executable, "-c", program])


def config(source: str, model: str = "vad", more: str = "") -> str:
    return f"""
[[pipeline]]
name = "ear"
model = "{model}"
{more}
source = {{ {source} }}
sink = {{ file = "out.jsonl" }}
"""


def scores(path: Path, source: str = "") -> list[float]:
    """What the model said of every frame, as it is, in all answers or those about `source`."""
    return [
        score
        for record in records(path)
        if source in record["source"]
        for score in record["outputs"][0]["data"]
    ]


def test_a_microphone_is_one_sound_from_frame_to_frame(tmp_path: Path, able: Listeners) -> None:
    sound = spoken("Front_Center")
    frames = len(sound) // 512
    command = microphone(tmp_path, sound.astype("<i2").tobytes())
    toml = config(f"command = {command}, frames = {FRAME}")

    with running(f"unix:{able.path}", tmp_path, toml) as it:
        it.wait_for("ear", taken=frames, answered=frames, failed={})

    told = scores(tmp_path / "out.jsonl")
    client = Client(able.port)
    alone = scores_of(client, sound, "alone")
    client.close()
    assert np.median(told) > 0.9
    assert np.allclose(told, alone, atol=1e-4)
    starts = {record["parameters"]["sequence_id"] for record in records(tmp_path / "out.jsonl")}
    assert len(starts) == 1


def test_arecord_is_a_microphone(tmp_path: Path, able: Listeners) -> None:
    # ALSA's own device that records silence, as fast as it is read: it waits for the model.
    command = '["arecord", "-q", "-D", "null", "-t", "raw", "-f", "S16_LE", "-r", "16000"]'

    with running(
        f"unix:{able.path}", tmp_path, config(f"command = {command}, frames = {FRAME}")
    ) as it:
        eventually(lambda: it.counts.get("ear", {}).get("answered", 0) >= 100)
        assert it.counts["ear"]["dropped"] == {} and it.counts["ear"]["restarts"] == 0

    # No speech: what the model says of silence differs from start to start.
    assert max(scores(tmp_path / "out.jsonl")[:100]) < 0.5


def test_a_microphone_that_begins_again_is_another_sound(tmp_path: Path, able: Listeners) -> None:
    sound = spoken("Front_Center")[: 512 * 20]
    command = microphone(tmp_path, sound.astype("<i2").tobytes(), after="")
    toml = config(f"command = {command}, frames = {FRAME}")

    with running(f"unix:{able.path}", tmp_path, toml) as it:
        it.wait_for("ear", taken=60, answered=60, failed={}, restarts=2)

    told = np.reshape(scores(tmp_path / "out.jsonl")[:60], (3, 20))
    assert np.array_equal(told[0], told[1]) and np.array_equal(told[0], told[2])


def test_sound_files_are_sounds_of_their_own(tmp_path: Path, able: Listeners) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("Front_Center", "Noise", "Side_Left"):
        (folder / f"{name}.wav").write_bytes(wav(spoken(name)))
    source = 'directory = "in", settle_s = 0, done = "delete"'

    with running(f"unix:{able.path}", tmp_path, config(source, more='input = "bytes"')) as it:
        it.wait_for("ear", answered=3, failed={})

    voices = [scores(tmp_path / "out.jsonl", name) for name in ("Front_Center", "Side_Left")]
    assert min(np.median(voice) for voice in voices) > 0.9
    assert max(scores(tmp_path / "out.jsonl", "Noise")) < 0.1


def test_pictures_are_sent_as_they_are(tmp_path: Path, able: Listeners) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.png").write_bytes(found.astronaut())
    (folder / "2.png").write_bytes(found.cat())
    (folder / "3.png").write_bytes(b"no picture")
    source = 'directory = "in", settle_s = 0, done = "delete"'

    with running(f"unix:{able.path}", tmp_path, config(source, "faces")) as it:
        it.wait_for("ear", answered=2, failed={"refused": 1})

    told = {record["source"]: record for record in records(tmp_path / "out.jsonl")}
    labels = {
        name: [each["data"] for each in told[name]["outputs"] if each["name"] == "labels"]
        for name in ("1.png", "2.png")
    }
    assert labels == {"1.png": [["0"]], "2.png": [[]]}
    assert told["3.png"]["error"].startswith("input image: expected a whole JPEG or PNG, got 10")
