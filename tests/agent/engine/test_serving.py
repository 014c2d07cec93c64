import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agent.engine.harness import (
    Client,
    Listeners,
    Release,
    engine,
    infer_body,
    one_hot,
)
from tests.agent.engine.models import GOOD, onnx_classifier, onnx_text_picker, tflite_classifier
from wire.manifest import Task

INFER = "/v2/models/digits/infer"
PREDICT = "/v1/models/digits:predict"


@pytest.mark.parametrize(
    "made",
    [
        ("onnx", "onnxruntime", onnx_classifier, -1),
        ("onnx", "onnxruntime", lambda: onnx_classifier(batch=1), 1),
        ("tflite", "ai-edge-litert", tflite_classifier, -1),
        ("tflite", "ai-edge-litert", lambda: tflite_classifier(dynamic=False), 1),
        ("tflite", "tflite-runtime", tflite_classifier, -1),
        ("tflite", "tflite-runtime", lambda: tflite_classifier(dynamic=False), -1),
    ],
)
def test_batches_of_changing_size_are_answered_by_every_runtime(
    tmp_path: Path, listeners: Listeners, client: Client, made: tuple[str, str, Any, int]
) -> None:
    format, runtime, build, variant_batch = made
    release = Release(tmp_path / "r", build(), format=format, variant_batch=variant_batch)

    with engine(listeners, runtime) as started:
        started.serve(release)
        answers = [client.infer(one_hot(*rows)).json for rows in ([1], [2, 0, 1], [0], [1, 2])]

    shapes = [answer["outputs"][0]["shape"] for answer in answers]
    assert shapes == [[1, 3], [3, 3], [1, 3], [2, 3]]
    assert answers[1]["outputs"][0] == {
        "name": "scores",
        "shape": [3, 3],
        "datatype": "FP32",
        "data": [0.0, 0.0, 8.0, 8.0, 0.0, 0.0, 0.0, 8.0, 0.0],
    }


def test_health_and_metadata_read_as_the_protocol_says(asker: Client) -> None:
    alive = {"live": True, "ready": True}

    assert asker.ask("GET", "/v2/health/live").json == alive
    assert asker.ask("GET", "/v2/health/ready").json == alive
    assert asker.ask("GET", "/v2").json["extensions"] == [
        "binary_tensor_data",
        "classification",
        "sequence",
        "statistics",
        "system_shared_memory",
    ]
    assert asker.ask("GET", "/v2/models/digits").json == {
        "name": "digits",
        "versions": ["7"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert asker.ask("GET", "/v2/models/digits/versions/7/ready").json["ready"] is True
    status = asker.ask("GET", "/v1/models/digits").json["model_version_status"]
    assert (status[0]["version"], status[0]["state"]) == ("7", "AVAILABLE")
    described = asker.ask("GET", "/v1/models/digits/metadata").json["metadata"]
    signature = described["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["image"]["dtype"] == "DT_FLOAT"


def test_binary_tensors_go_both_ways(asker: Client) -> None:
    rows = np.array(one_hot(2, 1), "<f4")
    head = json.dumps(
        {
            "id": "b-1",
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": "image",
                    "shape": [2, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ],
        }
    ).encode()

    answer = asker.ask(
        "POST", INFER, head + rows.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    )

    assert answer.status == 200, answer.body
    length = int(answer.headers["Inference-Header-Content-Length"])
    fields = json.loads(answer.body[:length])
    assert fields["id"] == "b-1"
    assert fields["outputs"][0]["parameters"] == {"binary_data_size": 24}
    scores = np.frombuffer(answer.body[length:], "<f4").reshape(2, 3)
    assert scores.tolist() == (rows @ GOOD).tolist()


def test_a_body_may_be_one_raw_tensor_or_gzipped(asker: Client) -> None:
    rows = np.array(one_hot(0, 1, 2), "<f4").tobytes()

    bare = asker.ask("POST", INFER, rows, {"Inference-Header-Content-Length": "0"})
    zipped = asker.ask(
        "POST",
        INFER,
        gzip.compress(json.dumps(infer_body(one_hot(1))).encode()),
        {"Content-Encoding": "gzip"},
    )

    length = int(bare.headers["Inference-Header-Content-Length"])
    assert json.loads(bare.body[:length])["outputs"][0]["shape"] == [3, 3]
    assert zipped.json["outputs"][0]["data"] == [0.0, 8.0, 0.0]


def test_tensorflow_serving_rows_and_columns(asker: Client) -> None:
    rows = one_hot(1, 2)
    expected = [[0.0, 8.0, 0.0], [0.0, 0.0, 8.0]]

    by_row = asker.ask("POST", PREDICT, {"instances": rows})
    by_named_row = asker.ask("POST", PREDICT, {"instances": [{"image": row} for row in rows]})
    by_column = asker.ask("POST", "/v1/models/digits/versions/7:predict", {"inputs": rows})
    by_name = asker.ask("POST", "/V1/Models/Digits%3APredict", {"inputs": {"image": rows}})
    both = asker.ask("POST", PREDICT, {"inputs": rows, "instances": rows})

    assert by_row.json == by_named_row.json == {"predictions": expected}
    assert by_column.json == by_name.json == {"outputs": expected}
    assert both.status == 400


def changed(**fields: Any) -> dict[str, Any]:
    body = infer_body(one_hot(1))
    body["inputs"][0].update(fields)
    return {"inputs": [{name: v for name, v in body["inputs"][0].items() if v is not None}]}


def wanting(**parameters: Any) -> dict[str, Any]:
    output = {"name": "scores", "parameters": parameters}
    return {**infer_body(one_hot(1)), "outputs": [output]}


BAD_BODIES: list[tuple[Any, str]] = [
    (b"{", "expected JSON"),
    (b"[" * 100_000, "expected JSON"),
    (b"\xff\xfe", "expected JSON"),
    (b"1" * 6000, "expected JSON"),
    (b"[]", "expected a JSON object"),
    ({}, "inputs: expected a list"),
    ({"inputs": [3]}, "inputs: expected a list"),
    ({"inputs": []}, "expected ['image'], got []"),
    (changed(name="pixels"), "expected ['image'], got 'pixels'"),
    ({"inputs": infer_body(one_hot(1))["inputs"] * 2}, "got one twice"),
    (changed(datatype="FP64"), "expected FP32, got FP64"),
    (changed(shape=[1, 5]), "expected [-1, 4]"),
    (changed(shape=[0, 4]), "expected positive integers"),
    (changed(shape=[True, 4]), "expected positive integers"),
    (changed(shape="1,4"), "expected positive integers"),
    (changed(shape=[10**18, 4]), "values"),
    (changed(data=None), "expected one of data, binary_data_size and"),
    (changed(data=[1, 2, 3]), "expected 4 values"),
    (changed(data=[[1, 2], [3, 4]]), "expected 4 values in shape [1, 4]"),
    (changed(data=[[1, 2, 3], [4]]), "ragged"),
    (changed(data=["1", "2", "3", "4"]), "expected numbers for FP32"),
    (changed(data=[{}, 1, 2, 3]), "expected numbers for FP32"),
    (changed(data=[1, float("nan"), 3, 4]), "expected finite numbers, got nan at [0, 1]"),
    (changed(data=[1, 2, 3, float("inf")]), "got inf at [0, 3]"),
    (changed(data=[1, 2, 3, 1e300]), "that FP32 can hold, got 1e+300"),
    (changed(parameters=3), "parameters: expected an object"),
    (changed(data=None, parameters={"binary_data_size": 16}), "binary_data_size"),
    (changed(parameters={"binary_data_size": 0}), "expected one of data"),
    (changed(data=None, parameters={"shared_memory_region": "x"}), "'x' is not registered"),
    (changed(parameters={"shared_memory_offset": 0}), "expected shared_memory_region"),
    ({**infer_body(one_hot(1)), "parameters": {"timeout": -1}}, "timeout: expected"),
    ({**infer_body(one_hot(1)), "parameters": {"timeout": "1"}}, "timeout: expected"),
    (wanting(classification="2"), "classification: expected how many"),
    (wanting(classification=-1), "classification: expected how many"),
    (wanting(shared_memory_region="x"), "'x' is not registered"),
    ({**infer_body(one_hot(1)), "id": 7}, "id: expected a string"),
    ({**infer_body(one_hot(1)), "outputs": [{"name": "boxes"}]}, "expected ['scores']"),
]


@pytest.mark.parametrize(("body", "says"), BAD_BODIES)
def test_a_wrong_inference_body_is_told_what_was_expected(
    asker: Client, body: Any, says: str
) -> None:
    answer = asker.ask("POST", INFER, body)

    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/json")
    assert says in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        (INFER, {"Inference-Header-Content-Length": "999"}, b"{}"),
        (INFER, {"Inference-Header-Content-Length": "-1"}, b"{}"),
        (INFER, {"Inference-Header-Content-Length": "x"}, b"{}"),
        (INFER, {"Inference-Header-Content-Length": "0"}, b"abc"),
        (INFER, {"Inference-Header-Content-Length": "0"}, b""),
        (INFER, {"Content-Encoding": "br"}, b"{}"),
        (INFER, {"Content-Encoding": "gzip"}, b"not gzip"),
        (PREDICT, {}, b'{"instances": []}'),
        (PREDICT, {}, b'{"instances": 3}'),
        (PREDICT, {}, b'{"instances": [[1, 2, 3]]}'),
        (PREDICT, {}, b'{"instances": [[1, 2, 3, NaN]]}'),
        (PREDICT, {}, b'{"instances": [{"pixels": [1, 2, 3, 4]}]}'),
        (PREDICT, {}, b'{"instances": [{"b64": "AAAA"}]}'),
        (PREDICT, {}, b'{"inputs": {"image": {"b64": 3}}}'),
        (PREDICT, {}, b'{"signature_name": "other", "instances": [[1, 2, 3, 4]]}'),
        ("/v2/feedback", {}, b'{"label": 1}'),
        ("/v2/feedback", {}, b'{"request_id": 3, "label": 1}'),
        ("/v2/feedback", {}, b'{"request_id": "x", "label": "nine"}'),
        ("/v2/feedback", {}, b'{"request_id": "x", "label": 3}'),
        ("/v2/feedback", {}, b'{"request_id": "x", "label": -1}'),
        ("/v2/feedback", {}, b'{"request_id": "x", "label": true}'),
        ("/v2/feedback", {}, b'{"request_id": "x"}'),
        ("/v2/feedback", {}, b'{"request_id": "x", "label": []}'),
    ],
)
def test_other_wrong_requests_are_the_senders_fault_too(
    asker: Client, path: str, headers: dict[str, str], body: bytes
) -> None:
    answer = asker.ask("POST", path, body, headers)

    assert answer.status == 400
    assert answer.json["error"]


def test_unknown_names_are_404_and_wrong_methods_405(asker: Client) -> None:
    answers = {
        path: asker.ask(method, path)
        for method, path in [
            ("POST", "/v2/models/detector/infer"),
            ("GET", "/v2/models/digits/versions/8"),
            ("GET", "/nothing"),
            ("GET", INFER),
            ("DELETE", "/v2/models/digits"),
        ]
    }

    assert [answer.status for answer in answers.values()] == [404, 404, 404, 405, 405]
    assert "['digits']" in answers["/v2/models/detector/infer"].json["error"]
    assert "version 7" in answers["/v2/models/digits/versions/8"].json["error"]
    assert "expected POST, got GET" in answers[INFER].json["error"]


def test_texts_go_in_and_out_as_json_as_bytes_and_as_base64(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    texts = ["a", "ü", "", "d"]
    packed = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    tensor = {"name": "image", "shape": [1, 4], "datatype": "BYTES"}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": len(packed)}}]}
    ).encode()
    release = Release(tmp_path / "r", onnx_text_picker(), datatype="BYTES", task=Task())

    with engine(listeners) as started:
        started.serve(release)
        as_json = client.ask("POST", INFER, {"inputs": [{**tensor, "data": texts}]})
        as_bytes = client.ask(
            "POST", INFER, head + packed, {"Inference-Header-Content-Length": str(len(head))}
        )
        encoded = [{"b64": base64.b64encode(text.encode()).decode()} for text in texts]
        as_base64 = client.ask("POST", PREDICT, {"instances": [encoded]})
        cut = client.ask(
            "POST", INFER, head + packed[:-2] + b"\xff\xff", {
                "Inference-Header-Content-Length": str(len(head))
            }
        )  # fmt: skip
        numbers = client.ask("POST", INFER, {"inputs": [{**tensor, "data": [1, 2, 3, 4]}]})

    assert as_json.json["outputs"][0]["data"] == ["a", "ü", ""]
    assert as_bytes.json["outputs"][0]["data"] == ["a", "ü", ""]
    assert as_base64.json == {"predictions": [["a", "ü", ""]]}
    assert (cut.status, numbers.status) == (400, 400)
    assert "expected 4 strings" in numbers.json["error"]
