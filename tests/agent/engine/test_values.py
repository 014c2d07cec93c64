"""True numbers for models that answer numbers: joined later, in any order, within bounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.comparison import Outcome
from agent.engine.errors import HttpError
from agent.engine.values import MAX_REMEMBERED, MAX_REMEMBERED_VALUES, MAX_VALUES, Values
from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine, one_hot
from tests.agent.engine.models import onnx_classifier
from wire.codec import decode, encode
from wire.manifest import Task
from wire.telemetry import Histogram, ScoreWindow

FEEDBACK = "/v2/feedback"


@pytest.fixture
def measuring(tmp_path: Path, listeners: Listeners) -> Iterator[Engine]:
    """An engine whose model answers three numbers."""
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_classifier(), task=Task()))
        yield started


def histogram(engine: Engine) -> Histogram:
    """Return the errors as the window carries them to the fleet."""
    window = engine.report().windows[0]
    counts = {**window.counts, "latency": {"bins": window.counts["latency"]}}
    full = ScoreWindow(
        device="d", boot="b", seq=1, model=window.model, version=window.version,
        manifest=window.manifest, variant=window.variant, start=window.start, end=window.end,
        **counts,
    )  # fmt: skip
    carried = decode(ScoreWindow, encode(full)).value_errors
    assert carried is not None
    return carried


def test_true_values_come_later_and_in_any_order(measuring: Engine, client: Client) -> None:
    for n in range(3):
        client.infer(one_hot(n), id=f"r{n}")

    answers = [
        client.ask("POST", FEEDBACK, {"request_id": "r2", "value": [[0, 0, 7.5]]}),
        client.ask("POST", FEEDBACK, {"request_id": "r0", "value": [8.0, 0.25, 0]}),
    ]
    errors = histogram(measuring)

    assert answers[0].json == {"request_id": "r2", "model": "digits", "compared": 3}
    assert answers[1].status == 200
    assert errors.count == 6
    assert errors.bins[Histogram.bin_of(0.5e6)] == 1
    assert errors.bins[Histogram.bin_of(0.25e6)] == 1
    assert errors.bins[0] == 4
    assert measuring.report().windows == []


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"value": [1, 2]}, 400, "expected 3 numbers"),
        ({"value": [1, 2, "x"]}, 400, "finite number"),
        ({"value": [1, 2, float("nan")]}, 400, "finite number"),
        ({"value": [1, [2], 3]}, 400, "ragged"),
        ({"value": 10**400}, 400, "finite number"),
        ({"value": None}, 400, "finite number"),
        ({"value": []}, 400, "finite number"),
        ({"label": 1}, 400, "post its true value"),
        ({"value": [1, 2, 3], "request_id": "other"}, 404, "not, or no longer, remembered"),
    ],
)
def test_what_is_no_true_value_is_refused(
    measuring: Engine, client: Client, fields: dict[str, Any], status: int, says: str
) -> None:
    client.infer(one_hot(1), id="r")

    answer = client.ask("POST", FEEDBACK, {"request_id": "r", **fields})

    assert (answer.status, says in answer.json["error"]) == (status, True)


def test_a_second_value_for_one_request_is_refused() -> None:
    values = Values()
    values.answered(Outcome("r", ()), np.zeros(2, np.float32))
    values.compare("r", [1, 1])

    with pytest.raises(HttpError, match="another after the first"):
        values.compare("r", [1, 1])
    assert sum(values.take().values()) == 2
    assert values.take() == {}


def test_an_answer_that_is_no_number_counts_as_far_off() -> None:
    values = Values()
    values.answered(Outcome("r", ()), np.array([np.nan, np.inf, 1e30]))

    values.compare("r", [0, 0, 0])

    assert values.take() == {Histogram.bin_of(1e17): 3}


@pytest.mark.parametrize("size", [1, MAX_VALUES])
def test_what_is_remembered_is_bounded(size: int) -> None:
    values = Values()
    for n in range(2 * MAX_REMEMBERED):
        values.answered(Outcome(f"r{n}", ()), np.zeros(size))
        values.answered(Outcome(f"r{n}", ()), np.zeros(size))

    kept = [n for n in range(2 * MAX_REMEMBERED) if values.remembers(f"r{n}")]

    assert len(kept) == min(MAX_REMEMBERED, MAX_REMEMBERED_VALUES // size)
    assert kept[-1] == 2 * MAX_REMEMBERED - 1


def test_large_answers_and_texts_are_not_remembered() -> None:
    values = Values()
    values.answered(Outcome("large", ()), np.zeros(MAX_VALUES + 1))
    values.answered(Outcome("text", ()), np.array(["a"], object))

    assert not values.remembers("large") and not values.remembers("text")


def test_numbers_within_the_tolerance_of_the_task_are_right(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    release = Release(tmp_path / "r", onnx_classifier(), task=Task(tolerance=0.5))

    with engine(listeners) as started:
        started.serve(release)
        for n, error in enumerate((0.0, 0.4, 0.6)):
            answer = client.infer(one_hot(n), id=f"r{n}").json["outputs"][0]["data"]
            true = [answer[0] + error, *answer[1:]]
            assert (
                client.ask("POST", FEEDBACK, {"request_id": f"r{n}", "value": true}).status == 200
            )
        (window,) = started.report().windows

    assert window.counts["outcomes"] == {"within": 8, "beyond": 1}, "each number counts"
