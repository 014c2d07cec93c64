"""What the local API promises beyond plain answers, in both dialects."""

import gzip
import json
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.lane import MAX_WAITING
from tests.agent.engine.harness import (
    Answer,
    Client,
    Engine,
    Listeners,
    Release,
    engine,
    infer_body,
    one_hot,
)
from tests.agent.engine.models import (
    onnx_classifier,
    onnx_classifier_with,
    onnx_half_plus_three,
    onnx_quantized_classifier,
    onnx_slow_classifier,
    onnx_text_picker,
    tflite_classifier,
)
from wire.manifest import Task, TensorSpec
from wire.task import Column, TableInput

INFER = "/v2/models/digits/infer"
PREDICT = "/v1/models/digits:predict"
NAN = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, float("nan"), 4.0]]


def as_bytes(rows: Any, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with its tensor behind the JSON."""
    array = np.asarray(rows, np.float32)
    given = {"name": "image", "datatype": "FP32", "shape": list(array.shape)}
    given["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [given], "parameters": parameters}).encode()
    return head + array.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    "made", [("onnx", onnx_quantized_classifier), ("tflite", tflite_classifier)]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_would_become_a_plausible_answer_is_refused_with_its_place(
    tmp_path: Path,
    listeners: Listeners,
    client: Client,
    made: tuple[str, Any],
    bad: float,
) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, bad, 4.0]]

    format, build = made

    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", build(), format=format))
        refused = [
            client.infer(rows),
            client.ask("POST", INFER, *as_bytes(rows)),
            client.ask("POST", INFER, np.array(rows, "<f4").tobytes(),
                       {"Inference-Header-Content-Length": "0"}),
            client.ask("POST", PREDICT, {"instances": rows}),
            client.ask("POST", PREDICT, {"inputs": {"image": rows}}),
        ]  # fmt: skip
        counts = started.report().windows

    for answer in refused:
        assert answer.status == 400
        assert answer.json["error"] == f"input image: expected finite numbers, got {bad} at [1, 2]"
    assert counts == [], "an app's mistake is no failure of the model"


def test_a_row_that_becomes_infinite_is_refused_too(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    columns = tuple(Column(name=name) for name in "abcd")
    scores: dict[str, Any] = {
        "kind": "classification",
        "scores": "scores",
        "scores_are": "logits",
    }
    task = Task(**scores, input=TableInput(columns=columns))

    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_quantized_classifier(), task=task))
        row = b'{"a": 1, "b": 1e300, "c": 3, "d": 4}'
        answer = client.ask("POST", PREDICT, b'{"instances": [%s]}' % row)

    assert (answer.status, answer.json["error"]) == (
        400,
        "input image: expected finite numbers, got inf at [0, 1]",
    )


def test_a_model_that_computes_in_reals_takes_nan_and_may_answer_it(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    release = Release(tmp_path / "r", onnx_classifier(), task=Task())

    with engine(listeners) as started:
        started.serve(release)
        tokens = client.ask("POST", PREDICT, b'{"instances": [[1, 2, NaN, -Infinity]]}')
        raw = client.ask("POST", INFER, *as_bytes(NAN, binary_data_output=True))
        text = client.infer(NAN)

    assert tokens.status == 200
    assert np.isnan(tokens.json["predictions"][0][2])
    length = int(raw.headers["Inference-Header-Content-Length"])
    scores = np.frombuffer(raw.body[length:], "<f4").reshape(2, 3)
    assert scores[0].tolist() == [4.0, 8.0, 12.0]
    assert np.isnan(scores[1]).all()
    assert (text.status, text.json["error"]) == (
        400,
        "input image: expected finite numbers, got nan at [1, 2]",
    )


def test_a_classifier_without_a_finite_score_blames_the_input(asker: Client) -> None:
    answer = asker.infer(NAN)

    assert (answer.status, "got nan at [1, 2]" in answer.json["error"]) == (400, True)


def statistics(client: Client) -> dict[str, Any]:
    entry: dict[str, Any] = client.ask("GET", "/v2/models/digits/stats").json["model_stats"][0]
    return entry


def hurried(timeout_us: int) -> dict[str, Any]:
    return {**infer_body(one_hot(1)), "parameters": {"timeout": timeout_us}}


def test_who_waits_longer_than_the_timeout_is_told_so_and_never_run(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_slow_classifier(100)))
        other = Client(listeners.port)
        first = threading.Thread(target=other.infer, args=(one_hot(2),))
        first.start()
        time.sleep(0.05)

        began = time.monotonic()
        late = client.ask("POST", INFER, hurried(20_000))
        waited = time.monotonic() - began
        first.join()
        other.close()
        counted = statistics(client)["inference_stats"]

    assert (late.status, late.headers["Retry-After"]) == (503, "1")
    assert "timeout of 20000 microseconds" in late.json["error"]
    assert waited < counted["compute_infer"]["ns"] / 1e9
    assert (counted["success"]["count"], counted["fail"]["count"]) == (1, 1)


def test_a_run_that_outlasts_its_timeout_is_not_disturbed_and_disturbs_nobody(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_slow_classifier(40)))
        given_up = [client.ask("POST", INFER, hurried(1_000)) for _ in range(3)]
        answer = client.infer(one_hot(2))

    assert [late.status for late in given_up] == [503] * 3
    assert answer.json["outputs"][0]["data"] == [0.0, 0.0, 8.0]


def test_a_queue_that_is_full_says_when_to_come_again(tmp_path: Path, listeners: Listeners) -> None:
    answers: list[Answer] = []

    def ask() -> None:
        client = Client(listeners.port)
        # Nobody waits for longer than it takes all to come.
        answers.append(client.ask("POST", INFER, hurried(3_000_000)))
        client.close()

    with engine(listeners) as started:
        started.serve(Release(tmp_path / "r", onnx_slow_classifier(100)))
        threads = [threading.Thread(target=ask) for _ in range(MAX_WAITING + 32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        window = started.report().windows[0]

    right = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 503]
    full = [answer for answer in refused if "wait already" in answer.json["error"]]
    assert len(right) + len(refused) == len(answers)
    assert 0 < len(full) <= 32
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert all(answer.json["outputs"][0]["data"] == [0.0, 8.0, 0.0] for answer in right)
    assert (window.counts["drops"], window.counts["errors"]) == (len(refused), 0)
    assert window.counts["requests"] == len(right)


def test_answers_are_compressed_for_who_asks_for_one_coding_alone(asker: Client) -> None:
    body = infer_body(one_hot(*[1] * 200))

    plain = asker.ask("POST", INFER, body, {"Accept-Encoding": "gzip, deflate"})
    zipped = asker.ask("POST", INFER, body, {"Accept-Encoding": "gzip"})
    deflated = asker.ask("POST", INFER, body, {"Accept-Encoding": "deflate"})
    small = asker.ask("POST", INFER, infer_body(one_hot(1)), {"Accept-Encoding": "gzip"})

    assert "Content-Encoding" not in {*plain.headers, *small.headers}
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(zipped.body))["outputs"] == plain.json["outputs"]
    assert json.loads(zlib.decompress(deflated.body))["outputs"] == plain.json["outputs"]


def test_what_serves_is_labelled_stable(asker: Client) -> None:
    rows = {"instances": one_hot(1)}

    labelled = asker.ask("POST", "/v1/models/digits/labels/stable:predict", rows)
    shouted = asker.ask("POST", "/v1/Models/digits/Labels/Stable:Predict", rows)
    status = asker.ask("GET", "/v1/models/digits/labels/stable")
    metadata = asker.ask("GET", "/v1/models/digits/labels/stable/metadata")
    other = asker.ask("POST", "/v1/models/digits/labels/canary:predict", rows)

    assert labelled.json == shouted.json == {"predictions": [[0.0, 8.0, 0.0]]}
    assert status.json["model_version_status"][0]["version"] == "7"
    assert metadata.json["model_spec"]["version"] == "7"
    assert (other.status, "version 7, labelled stable" in other.json["error"]) == (404, True)


def test_the_index_is_had_with_any_form_of_question(asker: Client) -> None:
    path = "/v2/repository/index"

    answers = [
        asker.ask("POST", path, b""),
        asker.ask("POST", path, {"ready": True}),
        asker.ask("GET", path),
    ]

    assert [answer.json[0]["name"] for answer in answers] == ["digits"] * 3
    assert asker.ask("POST", path, {"ready": 1}).status == 400


def test_a_web_page_may_not_register_memory(asker: Client) -> None:
    answer = asker.ask(
        "POST",
        "/v2/systemsharedmemory/region/x/register",
        {"key": "/x", "byte_size": 1},
        {"Origin": "https://example.org"},
    )

    assert answer.status == 403


@pytest.mark.parametrize(("keep", "shape"), [(1, (-1, 1)), (0, ())])
def test_several_outputs_are_rows_of_names_where_they_have_rows(
    tmp_path: Path, listeners: Listeners, client: Client, keep: int, shape: tuple[int, ...]
) -> None:
    total = TensorSpec(name="total", datatype="FP32", shape=shape)
    release = Release(tmp_path / "r", onnx_classifier_with("total", keep), more_outputs=(total,))

    with engine(listeners) as started:
        started.serve(release)
        by_row = client.ask("POST", PREDICT, {"instances": one_hot(1, 2)})
        by_column = client.ask("POST", PREDICT, {"inputs": one_hot(1, 2)})

    scores = [[0.0, 8.0, 0.0], [0.0, 0.0, 8.0]]
    sums: Any = [[8.0], [8.0]] if keep else 16.0
    assert by_column.json == {"outputs": {"scores": scores, "total": sums}}
    if keep:
        rows = zip(scores, sums, strict=True)
        assert by_row.json == {"predictions": [{"scores": a, "total": b} for a, b in rows]}
    else:
        assert (by_row.status, "ask for columns" in by_row.json["error"]) == (400, True)


def test_texts_that_are_no_utf_8_are_refused(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    release = Release(tmp_path / "r", onnx_text_picker(), datatype="BYTES", task=Task())
    tensor = {"name": "image", "shape": [1, 4], "datatype": "BYTES", "data": ["\ud800"] * 4}

    with engine(listeners) as started:
        started.serve(release)
        answers = [
            client.ask("POST", INFER, {"inputs": [tensor]}),
            client.ask("POST", INFER, {"id": "\ud800", "inputs": [{**tensor, "data": ["a"] * 4}]}),
            client.ask("POST", PREDICT, {"instances": [["\ud800"] * 4]}),
            client.ask("POST", PREDICT, {"instances": [[{"b64": "/w=="}] * 4]}),
        ]

    assert [answer.status for answer in answers] == [400] * 4, answers


class Vector(Release):
    """A release of a model over plain vectors."""

    def _tensor(self, name: str, size: int, batch: int, quantization: Any = None) -> TensorSpec:
        return TensorSpec(name=name, datatype=self.datatype, shape=(-1,))


def test_curl_as_in_the_documentation_of_tensorflow_serving(
    tmp_path: Path, listeners: Listeners
) -> None:
    release = Vector(
        tmp_path / "r",
        onnx_half_plus_three(),
        model="half-plus-three",
        version=123,
        input="x",
        task=Task(),
    )
    models = f"http://127.0.0.1:{listeners.port}/v1/models"

    def curl(*arguments: str) -> str:
        return subprocess.run(
            ["curl", "-sS", *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout

    with engine(listeners) as started:
        started.serve(release)
        status = curl(f"{models}/half-plus-three")
        predicted = curl(
            "-d", '{"instances": [1.0,2.0,5.0]}', "-X", "POST", f"{models}/half-plus-three:predict"
        )
        missing = curl("-i", "-d", '{"instances": [1.0,5.0]}', f"{models}/half:predict")

    assert json.loads(status)["model_version_status"][0] == {
        "version": "123",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert json.loads(predicted) == {"predictions": [3.5, 4.0, 5.5]}
    assert missing.startswith("HTTP/1.1 404 Not Found")
    assert "error" in json.loads(missing.splitlines()[-1])


def test_regions_do_not_leave_descriptors_behind(serving: Engine, client: Client) -> None:
    memory = Path("/dev/shm", f"farflung-test-{serving.process.pid}")
    memory.write_bytes(b"x" * 64)
    region = "/v2/systemsharedmemory/region/r%2F1"

    def opened() -> int:
        links = Path(f"/proc/{serving.process.pid}/fd").iterdir()
        return sum(str(link.readlink()).startswith(str(memory)) for link in links)

    statuses = []
    for _ in range(50):
        statuses += [
            client.ask("POST", f"{region}/register", {"key": memory.name, "byte_size": size}).status
            for size in (65, 64, 64)
        ]
        held = opened()
        statuses.append(client.ask("POST", f"{region}/unregister", b"").status)
    memory.unlink()

    assert statuses == [400, 200, 400, 200] * 50
    assert (held, opened()) == (1, 0)
