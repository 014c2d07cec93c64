"""Golden samples run again in a real engine: counted, at idle times, beside what apps do."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from agent.control import Loaded
from tests.agent.engine.harness import (
    Client,
    Engine,
    Listeners,
    Release,
    engine,
    eventually,
    good_golden,
    one_hot,
)
from tests.agent.engine.models import ROTATED, onnx_classifier
from tests.agent.engine.speech import VAD, VAD_STREAM, ListeningRelease, hear, scores_of, spoken

Array = np.ndarray[Any, Any]


def golden_counts(started: Engine) -> dict[str, int]:
    """Return what all windows since the last call say of golden samples."""
    total: dict[str, int] = {}
    for window in started.report().windows:
        for name, count in window.counts.get("golden", {}).items():
            total[name] = total.get(name, 0) + count
    return total


def rounds(started: Engine, wanted: int) -> dict[str, int]:
    """Wait for so many rounds; return their counts."""
    total: dict[str, int] = {}

    def done() -> bool:
        for name, count in golden_counts(started).items():
            total[name] = total.get(name, 0) + count
        return total.get("runs", 0) >= wanted

    eventually(done)
    return total


def test_golden_samples_run_again_while_nobody_asks(tmp_path: Path, listeners: Listeners) -> None:
    inputs, outputs = good_golden()
    labels = np.array([0, 1, 2, 0, 1, 1], np.int64)
    release = Release(
        tmp_path / "r", onnx_classifier(), golden=(inputs, outputs), golden_labels=labels
    )

    with engine(listeners) as started:
        started.serve(release, golden_s=0.4)
        counts = rounds(started, 2)
        twice = counts["runs"]

    assert counts["samples"] == counts["labelled"] >= 6 * twice
    assert counts["correct"] * 6 >= counts["samples"] * 5 - 6
    assert not counts.get("flips") and not counts.get("deviating")


def test_a_model_that_came_out_otherwise_is_seen(tmp_path: Path, listeners: Listeners) -> None:
    # As after a restart that skips the samples, on a processor that computes otherwise.
    release = Release(tmp_path / "r", onnx_classifier(ROTATED), golden=good_golden())

    with engine(listeners) as started:
        ready = started.serve(release, golden=False, golden_s=0.4)
        counts = rounds(started, 1)

    assert isinstance(ready.models[0], Loaded)
    assert counts["flips"] == counts["deviating"] == counts["samples"] >= 6
    assert "labelled" not in counts


def test_no_golden_sample_is_run_while_apps_ask_nor_where_it_is_turned_off(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    busy = Release(tmp_path / "r", onnx_classifier(), golden=good_golden())

    with engine(listeners) as started:
        started.serve(busy, golden_s=1.2)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert client.infer(one_hot(1)).status == 200
            time.sleep(0.02)
        meanwhile = golden_counts(started)
        afterwards = rounds(started, 1)
    with engine(listeners) as started:
        started.serve(busy)
        time.sleep(0.6)
        never = golden_counts(started)

    assert meanwhile == never == {}
    assert afterwards["samples"] == 6


def test_a_model_that_hides_its_state_rehearses_beside_open_streams(
    tmp_path: Path, listeners: Listeners
) -> None:
    frames = spoken("Front_Center")[: 512 * 12].reshape(12, 512)
    plain = ListeningRelease(tmp_path / "plain", VAD, VAD_STREAM, labels=("quiet", "speech"))
    client = Client(listeners.port)
    with engine(listeners) as started:
        started.serve(plain)
        alone = scores_of(client, spoken("Front_Left"), "alone")
    release = ListeningRelease(
        tmp_path / "golden",
        VAD,
        VAD_STREAM,
        labels=("quiet", "speech"),
        golden=vad_golden(plain, frames),
    )

    with engine(listeners) as started:
        started.serve(release, golden_s=0.3)
        sound, heard = spoken("Front_Left"), []
        counts: dict[str, int] = {}
        for at in range(0, len(sound), 1600):
            last = at + 1600 >= len(sound)
            answer = hear(client, sound[at : at + 1600], "s", start=at == 0, end=last)
            heard += answer.json["outputs"][0]["data"]
            deadline = time.monotonic() + 30
            # The stream stays open for a run of the samples at least.
            while at >= 1600 or not counts.get("samples"):
                for name, count in golden_counts(started).items():
                    counts[name] = counts.get(name, 0) + count
                time.sleep(0.05)
                if at >= 1600 or time.monotonic() > deadline:
                    break
        client.close()

    assert heard == alone
    assert counts["samples"] > 0 and not counts.get("deviating")


def vad_golden(release: ListeningRelease, frames: Array) -> dict[str, Array]:
    """Return golden samples of the release, each from the initial state."""
    from agent.engine.blame import Blame
    from agent.engine.model import Model

    model = Model(release.spec, 1, Blame(None))
    assert model.framing is not None
    arrays: dict[str, list[Array]] = {}
    for frame in frames:
        window = np.zeros(model.framing.stream.window, np.float32)
        window[-len(frame) :] = frame / np.float32(32768)
        inputs = model.framing.inputs(model.framing.tensor(window), model.framing.initial_state())
        for kind, tensors in (("input", inputs), ("output", model.run(inputs))):
            for place, tensor in enumerate(tensors):
                whole = tensor[0] if tensor.shape[:1] == (1,) else tensor
                arrays.setdefault(f"{kind}_{place}", []).append(whole)
    return {name: np.stack(samples) for name, samples in arrays.items()}


def test_apps_that_ask_in_the_middle_of_a_round_are_answered_at_once(
    tmp_path: Path, listeners: Listeners
) -> None:
    inputs, outputs = good_golden()
    release = Release(
        tmp_path / "r",
        onnx_classifier(),
        golden=(np.tile(inputs, (20, 1)), np.tile(outputs, (20, 1))),
    )
    statuses: list[int] = []

    def ask() -> None:
        client = Client(listeners.port)
        for _ in range(50):
            statuses.append(client.infer(one_hot(2)).status)
        client.close()

    with engine(listeners) as started:
        started.serve(release, golden_s=0.4)
        eventually(lambda: golden_counts(started).get("samples"))
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        last = started.drain()

    assert statuses == [200] * 50
    assert last.final
