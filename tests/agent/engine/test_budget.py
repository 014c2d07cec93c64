"""What a trial refuses beside wrong answers: models that cost too much, scores that are none."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.control import Failed, Ready, Serve
from tests.agent.engine.harness import Engine, Listeners, Release, engine, eventually, good_golden
from tests.agent.engine.models import (
    CLASSES,
    FEATURES,
    GOOD,
    onnx_bytes,
    onnx_classifier,
    onnx_slow_classifier,
    tflite_classifier,
)
from wire.manifest import Budget, Task

MEBIBYTE = 1024 * 1024
PROBABILITIES = Task(kind="classification", scores="scores", scores_are="probabilities")


def onnx_wide_classifier(width: int) -> bytes:
    """Return a classifier whose two matrices take 28 bytes for every unit of width."""
    first = np.zeros((FEATURES, width), np.float32)
    first[:, :FEATURES] = np.eye(FEATURES)
    second = np.zeros((width, CLASSES), np.float32)
    second[:FEATURES] = GOOD
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["h"]),
         helper.make_node("MatMul", ["h", "b"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(first, "a"), numpy_helper.from_array(second, "b")],
    )  # fmt: skip
    return onnx_bytes(graph)


def address_space(started: Engine) -> str:
    """Return the soft limit of an engine's address space."""
    limits = Path(f"/proc/{started.process.pid}/limits").read_text()
    return next(line.split()[3] for line in limits.splitlines() if "address space" in line)


@pytest.mark.parametrize("golden", [None, good_golden()], ids=["without", "with samples"])
def test_a_model_slower_than_its_budget_is_refused_with_both_figures(
    tmp_path: Path, golden: tuple[np.ndarray, np.ndarray] | None
) -> None:
    data = onnx_slow_classifier(3)
    tight = Release(tmp_path / "a", data, golden=golden, budget=Budget(invoke_ms=0.5))
    wide = Release(tmp_path / "b", data, golden=golden, budget=Budget(invoke_ms=5000))

    with engine() as started:
        refused = started.load(tight)
    with engine() as started:
        passed = started.load(wide)
    with engine() as started:
        proven = started.load(tight, golden=False)

    assert isinstance(refused, Failed)
    assert refused.reason == "too_slow"
    assert refused.detail.startswith("a run takes ")
    assert refused.detail.endswith(" ms here, its budget is 0.5 ms")
    assert isinstance(passed, Ready) and isinstance(proven, Ready)


def test_a_model_bigger_than_its_budget_is_refused_with_both_figures(tmp_path: Path) -> None:
    data = onnx_wide_classifier(MEBIBYTE)
    tight = Release(tmp_path / "a", data, budget=Budget(memory_bytes=8 * MEBIBYTE))
    wide = Release(tmp_path / "b", data, budget=Budget(memory_bytes=200 * MEBIBYTE))

    with engine() as started:
        refused = started.load(tight)
    with engine() as started:
        passed = started.load(wide)

    assert isinstance(refused, Failed)
    assert refused.reason == "out_of_memory"
    assert refused.detail.endswith(" MiB of memory here, its budget is 8.0 MiB")
    assert float(refused.detail.split()[2]) > 25
    assert isinstance(passed, Ready)


@pytest.mark.parametrize("golden", [None, good_golden()], ids=["without", "with samples"])
def test_probabilities_that_do_not_sum_to_1_are_refused(
    tmp_path: Path, golden: tuple[np.ndarray, np.ndarray] | None
) -> None:
    release = Release(tmp_path, onnx_classifier(), task=PROBABILITIES, golden=golden)

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    assert answer.reason == "golden_mismatch"
    assert "expected probabilities that sum to 1 within 0.026, got " in answer.detail


def test_probabilities_that_sum_to_1_pass(tmp_path: Path) -> None:
    release = Release(
        tmp_path, tflite_classifier(softmax=True), format="tflite", task=PROBABILITIES
    )

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Ready)


def test_a_trial_is_held_to_the_memory_that_is_left_and_a_champion_is_not(
    tmp_path: Path, listeners: Listeners
) -> None:
    big = Release(tmp_path / "a", onnx_wide_classifier(4 * MEBIBYTE))
    small = Release(tmp_path / "b", onnx_classifier())

    with engine() as started:
        refused = started.load(big, trial_bytes=64 * MEBIBYTE)
    with engine(listeners) as started:
        passed = started.load(small, trial_bytes=64 * MEBIBYTE)
        during = address_space(started)
        started.tell(Serve())
        eventually(lambda: address_space(started) == "unlimited")

    assert isinstance(refused, Failed)
    assert refused.reason == "out_of_memory"
    assert isinstance(passed, Ready)
    assert during.isdigit()


def test_a_proven_model_serves_although_its_golden_samples_are_gone(tmp_path: Path) -> None:
    release = Release(tmp_path, onnx_classifier(), golden=good_golden())
    golden = release.manifest.golden
    assert golden is not None
    Path(release.spec.files[golden.digest]).write_bytes(b"gone")

    with engine() as started:
        answer = started.load(release, golden=False)

    assert isinstance(answer, Ready)


def test_a_challenger_is_the_first_to_go_when_memory_runs_out_and_a_champion_is_not(
    tmp_path: Path, listeners: Listeners
) -> None:
    release = Release(tmp_path, onnx_classifier())
    before = int(Path("/proc/self/oom_score_adj").read_text())

    with engine(listeners) as started:
        badness = Path(f"/proc/{started.process.pid}/oom_score_adj")
        started.load(release, nice=10)
        during = int(badness.read_text())
        started.tell(Serve())
        eventually(lambda: int(badness.read_text()) == before)

    assert during == max(before, 500)


def test_an_engine_that_starts_to_serve_is_no_sooner_to_go_than_others(tmp_path: Path) -> None:
    release = Release(tmp_path, onnx_classifier())
    before = Path("/proc/self/oom_score_adj").read_text()

    with engine() as started:
        started.load(release)

        assert Path(f"/proc/{started.process.pid}/oom_score_adj").read_text() == before
