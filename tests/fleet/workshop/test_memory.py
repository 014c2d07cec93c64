"""The memory that a model is said to take, beside what it does take."""

from pathlib import Path

import pytest

from agent.control import Failed
from fleet.workshop.files import hold, read_model
from fleet.workshop.inspect import compose_release
from fleet.workshop.memory import Step, most_alive
from tests.agent.engine.harness import Release, engine
from tests.agent.engine.models import tflite_classifier
from tests.agent.engine.test_budget import onnx_wide_classifier
from wire.manifest import Budget

MEBIBYTE = 1024 * 1024
SAMPLES = Path(__file__).parents[3] / "samples"


def test_tensors_count_from_their_making_to_their_last_use() -> None:
    sizes = {"x": 10, "a": 100, "b": 1000, "y": 1}
    steps = [Step(["x"], ["a"]), Step(["a", "w"], ["b"]), Step(["b"], ["y"])]

    assert most_alive(steps, sizes, ["x"], ["y"]) == 1100
    assert most_alive(steps, sizes, ["x"], ["y", "a"]) == 1101
    assert most_alive([], sizes, ["x"], ["x"]) == 10


def test_a_skip_connection_is_kept_until_it_is_added() -> None:
    sizes = dict.fromkeys("xabcy", 10)
    steps = [Step("x", "a"), Step("a", "b"), Step("b", "c"), Step("ac", "y")]

    assert most_alive(steps, sizes, "x", "y") == 30


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_the_estimate_is_of_the_size_that_an_engine_measures(tmp_path: Path, format: str) -> None:
    import numpy as np

    data = onnx_wide_classifier(MEBIBYTE)
    if format == "tflite":
        data = tflite_classifier(np.zeros((4, 3), np.float32))
    file = tmp_path / f"wide.{format}"
    file.write_bytes(data)
    estimate = read_model(hold(file)).requires.memory_bytes
    assert estimate is not None

    release = Release(tmp_path / "r", data, format=format, budget=Budget(memory_bytes=1))
    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    taken = float(answer.detail.split()[2]) * MEBIBYTE
    # Beside the model there is what the runtime makes of it: a session, threads, code.
    assert taken / 2 - 6 * MEBIBYTE < estimate < 2.5 * taken


def test_a_pushed_model_file_says_what_it_takes() -> None:
    release = compose_release(
        [SAMPLES / "digits-1/digits-int8.onnx", SAMPLES / "digits-1/digits-int8.tflite"],
        name="digits", version=None, labels=None, golden=None, task=None,
    )  # fmt: skip

    needs = [variant.requires.memory_bytes for variant in release.manifest.variants]
    assert all(need is not None and 17_000 < need < MEBIBYTE for need in needs)
