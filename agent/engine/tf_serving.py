"""TensorFlow Serving's REST dialect: predict in row and column form, status, metadata."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.engine.errors import bad_request
from agent.engine.http import Response
from agent.engine.model import Model
from agent.engine.open_inference import read_object
from agent.engine.runtimes import Array
from agent.engine.tensors import check_finite, nested_from_json, same_batch
from wire.manifest import TensorSpec

_DTYPES = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
_SIGNATURE = "serving_default"
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predict request."""

    inputs: list[Array]
    """In the manifest's order."""
    by_row: bool


def status(model: Model) -> dict[str, Any]:
    """Say that the model is there."""
    return {
        "model_version_status": [
            {
                "version": str(model.spec.version),
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


def metadata(model: Model) -> dict[str, Any]:
    """Describe the model's one signature."""
    signature = {
        "inputs": {spec.name: _describe(spec) for spec in model.manifest.inputs},
        "outputs": {spec.name: _describe(spec) for spec in model.manifest.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {
            "name": model.spec.model,
            "signature_name": "",
            "version": str(model.spec.version),
        },
        "metadata": {"signature_def": {"signature_def": {_SIGNATURE: signature}}},
    }


def read_prediction(model: Model, body: bytes | memoryview) -> Prediction:
    """Read a predict request.

    Raises:
        HttpError: it is not one, or not one for this model.
        TensorError: an input is not what the model expects.
    """
    fields = read_object(body)
    if fields.get("signature_name", _SIGNATURE) != _SIGNATURE:
        raise bad_request(
            f"signature_name: expected {_SIGNATURE}, got {str(fields['signature_name'])[:40]!r}"
        )
    if ("instances" in fields) == ("inputs" in fields):
        raise bad_request("expected either instances (rows) or inputs (columns)")
    by_row = "instances" in fields
    columns = _columns(model, fields["instances"]) if by_row else _by_name(model, fields["inputs"])
    specs = model.manifest.inputs
    inputs = [nested_from_json(spec, _plain(spec, columns[spec.name])) for spec in specs]
    same_batch(specs, inputs)
    if model.finite_only:
        check_finite(specs, inputs)
    return Prediction(inputs, by_row)


def write_answer(model: Model, asked: Prediction, id: str, outputs: list[Array]) -> Response:
    """Return the answer in the form of the question; the request id is a header.

    This dialect has the words NaN, Infinity and -Infinity beside JSON's own.
    """
    names = [spec.name for spec in model.manifest.outputs]
    values = [_nested(array) for array in outputs]
    answer: dict[str, Any]
    if not asked.by_row:
        columns = values[0] if len(values) == 1 else dict(zip(names, values, strict=True))
        answer = {"outputs": columns}
    elif len(values) == 1:
        answer = {"predictions": values[0]}
    else:
        rows = zip(*values, strict=True)
        answer = {"predictions": [dict(zip(names, row, strict=True)) for row in rows]}
    return Response(200, _ENCODER.encode(answer).encode(), headers=b"X-Request-Id: %s\r\n" % id.encode())


def _describe(spec: TensorSpec) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in spec.shape]
    return {
        "dtype": _DTYPES[spec.datatype],
        "tensor_shape": {"dim": sizes, "unknown_rank": False},
        "name": spec.name,
    }


def _columns(model: Model, instances: Any) -> dict[str, Any]:
    """Turn rows into one list per input."""
    names = [spec.name for spec in model.manifest.inputs]
    if not isinstance(instances, list) or not instances:
        raise bad_request("instances: expected a list of at least one row")
    if not _is_object(instances[0]):
        if len(names) != 1:
            raise bad_request(f"instances: expected rows of objects with {names}")
        return {names[0]: instances}
    for place, row in enumerate(instances):
        if not isinstance(row, dict) or set(row) != set(names):
            got = list(row)[:8] if isinstance(row, dict) else type(row).__name__
            raise bad_request(f"instances: row {place}: expected an object with {names}, got {got}")
    return {name: [row[name] for row in instances] for name in names}


def _by_name(model: Model, inputs: Any) -> dict[str, Any]:
    names = [spec.name for spec in model.manifest.inputs]
    if not _is_object(inputs):
        if len(names) != 1:
            raise bad_request(f"inputs: expected an object with {names}")
        return {names[0]: inputs}
    if set(inputs) != set(names):
        raise bad_request(f"inputs: expected an object with {names}, got {list(inputs)[:8]}")
    return dict(inputs)


def _is_object(value: Any) -> bool:
    """Whether this names inputs; {"b64": ...} is a value."""
    return isinstance(value, dict) and set(value) != {"b64"}


def _plain(spec: TensorSpec, value: Any) -> Any:
    """Replace {"b64": ...} by the text it stands for, in tensors of BYTES."""
    if spec.datatype != "BYTES":
        return value
    if isinstance(value, list):
        return [_plain(spec, item) for item in value]
    if isinstance(value, dict):
        try:
            return base64.b64decode(value["b64"], validate=True).decode()
        except (KeyError, TypeError, binascii.Error, UnicodeDecodeError) as error:
            raise bad_request(f"input {spec.name}: b64: expected UTF-8 text: {error}") from None
    return value


def _nested(array: Array) -> Any:
    if array.dtype.kind == "O":
        return (
            np.array(
                [item if isinstance(item, str) else str(item) for item in array.ravel()],
                dtype=object,
            )
            .reshape(array.shape)
            .tolist()
        )
    return array.tolist()
