"""A process that trusts reads what others have checked, without pydantic, as pydantic would."""

import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.sides import become
from wire.codec import decode, encode
from wire.manifest import Manifest

ROOT = Path(__file__).parents[2]
SAMPLES = sorted(ROOT.glob("samples/*/manifest.json"))
DIGEST = "sha256:" + "0" * 64


def tensor(name: str, *shape: int, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def file(name: str) -> dict[str, Any]:
    return {"name": name, "digest": DIGEST, "size_bytes": 5}


def manifest(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    variant = {
        "name": "only", "format": "onnx", "artifact": file("m.onnx"),
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip
    return {"model": "m", "version": 1, "inputs": inputs, "outputs": outputs} | {
        "variants": [variant]
    } | more  # fmt: skip


SCORES = [tensor("scores", -1, 10)]
PLAIN = manifest([tensor("x", -1, 4)], SCORES)
EVERYTHING = manifest(
    [tensor("x", 1, 4, datatype="INT8", quantization={"scale": [1, 0.5], "zero_point": [0, -3]})],
    [tensor("y", 1, 2)],
    description="d", parent="m@1", labels=file("labels.txt"), golden=file("golden.npz"),
    calibration=[[0, 0.25], [1, 1]], files=[file("anchors.npy")], metrics={"accuracy": 1},
    budget={"invoke_ms": 5, "memory_bytes": 1000}, sources=["https://cache.example/{digest}"],
    baseline={
        "samples": 10, "predicted": [1, 2],
        "features": [{"name": "f", "edges": [0, 1.5, 2], "counts": [3, 4], "nan": 1}],
    },
    schema_version=9, from_the_future={"a": 1},
)  # fmt: skip
EVERYTHING["variants"][0] |= {
    "golden_tolerance": 1, "golden_flips": 2,
    "requires": {
        "onnx_ir": 8, "onnx_opsets": {"": 13, "ai.onnx.ml": 3}, "tflite_operators": {"ADD": 1},
        "custom_operators": ["C"], "architectures": ["armv7l"], "runtimes": {"onnxruntime": "1.24"},
        "memory_bytes": 7,
    },
}  # fmt: skip
IMAGE = manifest(
    [tensor("x", 1, 32, 32, 3)], SCORES,
    task={
        "kind": "classification", "scores": "scores", "scores_are": "logits", "top": 3,
        "threshold": 1, "label_map": {"7": "seven"},
        "input": {"kind": "image", "mean": [1, 2.5, 3], "std": [2], "scale": 1, "resize": "crop"},
    },
)  # fmt: skip
BYTES = manifest(
    [tensor("x", -1, 12, datatype="INT32")], SCORES,
    task={"input": {"kind": "text", "head": 8, "tail": 4, "strip": True, "block": 4096}},
)  # fmt: skip
TOKENS = manifest(
    [tensor("x", 1, 8, datatype="INT64"), tensor("m", 1, 8, datatype="INT64")], SCORES,
    files=[file("vocabulary.txt")],
    task={
        "input": {
            "kind": "text", "tensor": "x", "encoding": "wordpiece", "mask": "m", "first": "[CLS]",
            "vocabulary": "vocabulary.txt", "unknown": "[UNK]",
        }
    },
)  # fmt: skip
TABLE = manifest(
    [tensor("x", -1, 4)], SCORES,
    task={
        "input": {
            "kind": "table",
            "columns": [
                {"name": "a", "missing": 3, "mean": 1, "std": 2},
                {"name": "b", "missing": 2.5},
                {"name": "c", "kind": "category", "categories": ["u", "v"], "missing": "u"},
            ],
        }
    },
)  # fmt: skip
STRIDES = manifest(
    [tensor("x", 1, 32, 32, 3)], [tensor("boxes", 1, 8, 8), tensor("scores", 1, 8, 2)],
    task={
        "kind": "detection", "scores": "scores", "input": {"kind": "image"},
        "detection": {
            "boxes": "boxes", "points": 2, "clip": 100,
            "anchors": {
                "strides": [16], "aspect_ratios": [1], "interpolated_aspect_ratio": 1,
                "fixed_size": True,
            },
        },
    },
)  # fmt: skip
ANCHORS = manifest(
    [tensor("x", 1, 32, 32, 3)], [tensor("boxes", 1, 8, 4), tensor("scores", 1, 8, 2)],
    files=[file("anchors.npy")],
    task={
        "kind": "detection", "scores": "scores", "threshold": 0.5,
        "detection": {"boxes": "boxes", "anchors": {"file": "anchors.npy"}, "merge": "best"},
    },
)  # fmt: skip
CARRIED = manifest(
    [tensor("x", 1, 96), tensor("state", 2, 8), tensor("rate", datatype="INT64")],
    [tensor("y", 1, 1), tensor("next", 2, 8)],
    stream={
        "rate_hz": 16000, "frame": 64, "context": 32, "threshold": 1, "idle_s": 5,
        "state": [{"output": "next", "input": "state"}], "constants": {"rate": 16000},
    },
)  # fmt: skip
HIDDEN = manifest(
    [tensor("x", 1, 3, 40)], [tensor("y", 1, 1)],
    stream={
        "name": "sound", "tensor": "x", "rate_hz": 16000, "frame": 3, "hop": 2,
        "state": "internal", "features": {"extractor": "pymicro-features", "version": "2.0"},
    },
)  # fmt: skip
KINDS = [
    PLAIN, EVERYTHING, IMAGE, BYTES, TOKENS, TABLE, STRIDES, ANCHORS, CARRIED, HIDDEN,
]  # fmt: skip


class Trusting:
    """A process of the trusting side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.wire.sides"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def become(self, data: bytes) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(data.replace(b"\n", b" ") + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def trusting() -> Iterator[Trusting]:
    process = Trusting()
    yield process
    process.close()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.parent.name)
def test_a_sample_is_the_same_on_both_sides(trusting: Trusting, path: Path) -> None:
    data = path.read_bytes()

    assert trusting.become(data) == become(data)


@pytest.mark.parametrize("fields", KINDS)
def test_a_manifest_of_every_kind_is_the_same_on_both_sides(
    trusting: Trusting, fields: dict[str, Any]
) -> None:
    data = json.dumps(fields).encode()
    checked = become(data)

    assert "refused" not in checked
    assert trusting.become(data) == checked


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no JSON", "expected JSON"),
        (b"[]", "document: expected an object, got '[]'"),
        (b"{}", "model: expected a value"),
        (json.dumps(PLAIN | {"version": "1"}).encode(), "version: expected int, got '1'"),
        (json.dumps(PLAIN | {"version": True}).encode(), "version: expected int, got 'True'"),
        (json.dumps(PLAIN | {"calibration": [[1]]}).encode(), "calibration.0: expected 2 items"),
        (json.dumps(PLAIN | {"task": {"kind": "other"}}).encode(), "task.kind: expected 'class"),
        (
            json.dumps(PLAIN | {"task": {"input": {"kind": "table", "columns": [{}]}}}).encode(),
            "task.input.columns.0.name: expected a value",
        ),
    ],
)
def test_what_is_no_manifest_at_all_is_refused_in_words(
    trusting: Trusting, data: bytes, words: str
) -> None:
    answer = trusting.become(data)

    assert words in answer["refused"]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each key or index in it."""
    if isinstance(value, dict | list | tuple):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_pydantic_takes_is_the_same_on_both_sides(
    trusting: Trusting, data: st.DataObject
) -> None:
    fields = deepcopy(json.loads(json.dumps(data.draw(st.sampled_from(KINDS)))))
    for _ in range(data.draw(st.integers(1, 3))):
        within, key = data.draw(st.sampled_from(list(places(fields))))
        within[key] = data.draw(
            st.sampled_from([None, True, 0, 1, 2, 1.0, 0.5, "", "x", "1", [], [1], {}, {"x": 1}])
        )
        if isinstance(within, dict) and data.draw(st.booleans()):
            del within[key]
    raw = json.dumps(fields).encode()

    # It answers whatever comes.
    trusting.become(raw)
    if "refused" not in (checked := become(raw)):
        assert trusting.become(encode(decode(Manifest, raw))) == checked
