"""What becomes of a model's outputs and of an app's numbers, whatever road they take inside."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.blame import Blame
from agent.engine.errors import AnswerError
from agent.engine.model import Model
from agent.engine.statistics import MAX_BATCH_SIZES, Statistics
from agent.engine.tensors import TensorError, from_json
from tests.agent.engine.harness import Release
from tests.agent.engine.models import onnx_classifier
from wire.manifest import Quantization, TensorSpec
from wire.task import Task

KINDS = ("logits", "probabilities")


def _model(folder: Path, kind: str, quantization: Quantization | None = None) -> Model:
    task = Task(kind="classification", scores="scores", scores_are=kind)
    release = Release(folder, onnx_classifier(), task=task, quantization=quantization)
    return Model(release.spec, 1, Blame(None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantized", [False, True])
def test_a_row_alone_has_the_class_and_the_score_that_it_has_in_a_batch(
    tmp_path: Path, kind: str, quantized: bool
) -> None:
    step = Quantization(scale=(0.25,), zero_point=(-3,)) if quantized else None
    model = _model(tmp_path, kind, step)
    draw = np.random.default_rng(5)
    rows = draw.integers(-128, 127, (50, 1, 3)).astype(np.int8 if quantized else np.float32)
    rows[7] = rows[7, 0, 0]  # all alike: the first wins

    for row in rows:
        [winner], [top] = model.classify([row])
        winners, tops = model.classify([np.concatenate([row] * 22)])

        assert set(winners) == {winner}
        assert top == pytest.approx(tops[0], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strange", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [1, 30])
def test_scores_that_are_no_numbers_are_no_answer(
    tmp_path: Path, kind: str, strange: float, rows: int
) -> None:
    model = _model(tmp_path, kind)
    scores = np.array([[0.1, strange, 0.3]] * rows, np.float32)

    with pytest.raises(AnswerError, match="not finite"):
        model.classify([scores])


@pytest.mark.parametrize(
    ("datatype", "largest", "too_large"),
    [("FP16", 65504.0, 65520.0), ("FP32", 3.4028234e38, 3.5e38)],
)
@pytest.mark.parametrize("others", [0, 3, 500])
def test_a_number_that_its_type_cannot_hold_is_refused_and_the_largest_is_not(
    datatype: Any, largest: float, too_large: float, others: int
) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1,))
    shape = (others + 1,)
    fine, wrong = [largest] * others + [-largest], [largest] * others + [-too_large]

    assert from_json(spec, shape, fine).astype(np.float64)[-1] == pytest.approx(-largest, rel=1e-6)
    with pytest.raises(TensorError, match="can hold"):
        from_json(spec, shape, wrong)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [1, 2000])
def test_what_is_no_number_is_refused_where_it_would_be_taken_for_one(
    strange: float, others: int
) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1,))
    data = [0.5] * others + [strange]

    with pytest.raises(TensorError, match="finite"):
        from_json(spec, (len(data),), data, finite_only=True)
    assert not np.isfinite(from_json(spec, (len(data),), data)[-1])


def test_statistics_count_every_answer_whatever_its_size() -> None:
    statistics = Statistics()

    for rows in range(1, MAX_BATCH_SIZES + 11):
        stations = tuple(itertools.accumulate((100.0, 1e-3, 2e-3, 4e-3, 8e-3)))
        statistics.answered(rows, stations)  # type: ignore[arg-type]

    told = statistics.as_json("digits", 1)
    count = MAX_BATCH_SIZES + 10
    assert told["execution_count"] == count
    assert told["inference_count"] == count * (count + 1) // 2
    assert len(told["batch_stats"]) == MAX_BATCH_SIZES
    spent = told["inference_stats"]
    assert spent["success"]["ns"] == pytest.approx(count * 15e6, rel=1e-6)
    assert spent["compute_infer"]["ns"] == pytest.approx(count * 4e6, rel=1e-6)
    assert {entry["count"] for entry in (spent["queue"], spent["compute_output"])} == {count}
