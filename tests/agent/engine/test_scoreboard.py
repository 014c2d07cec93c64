import threading
import time
from pathlib import Path

import pytest

from agent.control import ModelSpec
from agent.engine.scoreboard import Scoreboard, UnknownRequestError
from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine, one_hot
from tests.agent.engine.models import onnx_classifier, onnx_slow_classifier, tflite_classifier
from wire.manifest import Task
from wire.telemetry import Histogram, ScoreWindow

INFER = "/v2/models/digits/infer"
PREDICT = "/v1/models/digits:predict"


def test_a_slow_model_queues_few_and_keeps_answering_its_daemon(
    tmp_path: Path, listeners: Listeners
) -> None:
    release = Release(tmp_path / "slow", onnx_slow_classifier(20))
    statuses: list[int] = []

    def ask() -> None:
        client = Client(listeners.port)
        statuses.append(client.infer(one_hot(1)).status)
        client.close()

    with engine(listeners) as started:
        ready = started.serve(release)
        assert ready.models[0].invoke_ms > 2
        threads = [threading.Thread(target=ask) for _ in range(90)]
        for thread in threads:
            thread.start()
        asked = time.perf_counter()
        started.report(windows=False)
        answered_s = time.perf_counter() - asked
        for thread in threads:
            thread.join()
        (window,) = started.report().windows

    assert answered_s < 1
    assert set(statuses) == {200, 503}
    assert window.counts["requests"] == statuses.count(200) >= 64
    assert window.counts["drops"] == statuses.count(503)
    assert window.counts["errors"] == 0


def test_windows_count_requests_classes_confidence_and_joined_labels(
    serving: Engine, client: Client
) -> None:
    client.infer(one_hot(0), id="a")
    client.infer(one_hot(1), id="b")
    client.infer(one_hot(2, 2), id="c")
    generated = client.infer(one_hot(1)).json["id"]
    client.infer([[float("nan")] * 4], id="refused")
    by_header = client.ask("POST", PREDICT, {"instances": one_hot(0)}).headers["X-Request-Id"]
    labels = [
        ("a", 0, 200),
        ("b", "zero", 200),
        ("c", [2, 1], 200),
        ("c", [2, 1], 400),
        (generated, 1, 200),
        (by_header, "two", 200),
        ("unknown", 1, 404),
        ("refused", 1, 404),
    ]

    statuses = [
        client.ask("POST", "/v2/feedback", {"request_id": id, "label": label}).status
        for id, label, _ in labels
    ]
    scores = serving.report()
    again = serving.report()

    assert statuses == [expected for _, _, expected in labels]
    (window,) = scores.windows
    counts = dict(window.counts)
    latency = counts.pop("latency")
    sure = counts["confidence_sum"]
    assert 0.99 < sure / 6e6 < 1
    assert counts == {
        "requests": 5,
        "errors": 0,
        "drops": 0,
        "predicted": {"0": 2, "1": 2, "2": 2},
        "confidence": {"19": 6},
        "labelled": 6,
        "correct": 3,
        "confusion": {"0,0": 1, "0,1": 1, "2,2": 1, "1,2": 1, "1,1": 1, "2,0": 1},
        "orphan_labels": 2,
        "confidence_sum": sure,
        "calibration": {"19": [6, sure, 3]},
    }
    full = ScoreWindow(
        device="d", boot="b", seq=1, model=window.model, version=window.version,
        manifest=window.manifest, variant=window.variant, start=window.start, end=window.end,
        latency=Histogram(bins=latency), **counts,
    )  # fmt: skip
    assert full.latency.count == 5
    p50_us = full.latency.quantile_us(0.5)
    assert p50_us is not None and 10 < p50_us < 1_000_000
    assert again.windows == []


def test_a_model_without_classes_counts_requests_and_takes_no_labels(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_classifier(), task=Task()))
        client.infer(one_hot(0), id="a")
        label = client.ask("POST", "/v2/feedback", {"request_id": "a", "label": 0})
        (window,) = started.report().windows

    assert label.status == 400
    assert (window.counts["requests"], window.counts["predicted"]) == (1, {})


def test_an_answer_that_is_not_finite_is_a_500_and_counts_as_an_error(
    serving: Engine, client: Client
) -> None:
    broken = client.infer([[3e38, 0.0, 0.0, 0.0]])
    (window,) = serving.report().windows

    assert broken.status == 500
    assert "scores are not finite" in broken.json["error"]
    assert (window.counts["requests"], window.counts["errors"]) == (1, 1)


def test_labels_find_their_model_by_request_id(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    with engine(listeners) as started:
        started.serve(
            Release(tmp_path / "a", onnx_classifier(), model="first"),
            Release(tmp_path / "b", tflite_classifier(), format="tflite", model="second"),
        )
        client.infer(one_hot(1), id="x", model="second")
        found = client.ask("POST", "/v2/feedback", {"request_id": "x", "label": 1})
        named = client.ask("POST", "/v2/feedback", {"id": "x", "model": "first", "label": 1})
        nowhere = client.ask("POST", "/v2/feedback", {"id": "y", "label": 1})

    assert found.json == {"request_id": "x", "model": "second", "labelled": 1}
    assert (named.status, nowhere.status) == (404, 404)


def test_a_label_after_8192_other_requests_is_an_orphan() -> None:
    board = Scoreboard(ModelSpec("digits", 1, "sha256:0", "only", "", {}), now=0)
    for number in range(8193):
        board.answered(f"r{number}", 100.0, (1,), [0.9])

    board.label("r1", (1,))
    with pytest.raises(UnknownRequestError):
        board.label("r0", (1,))

    window = board.take(60, None)
    assert window is not None
    assert (window.counts["labelled"], window.counts["orphan_labels"]) == (1, 1)


def test_large_batches_are_remembered_up_to_65536_rows_in_all() -> None:
    board = Scoreboard(ModelSpec("digits", 1, "sha256:0", "only", "", {}), now=0)
    for number in range(9):
        board.answered(f"r{number}", 100.0, (1,) * 8192, [])

    assert [board.remembers(f"r{number}") for number in range(9)] == [False] + [True] * 8
