"""TensorFlow Serving's REST dialect: predict in row and column form, status, metadata."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.engine.errors import bad_request
from agent.engine.http import Response
from agent.engine.model import Model
from agent.engine.open_inference import read_object
from agent.engine.runtimes import Array
from agent.engine.tasks import Item, Told
from agent.engine.tasks.items import from_base64
from agent.engine.tasks.tabular import TableReader
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
    items: tuple[Item, ...] = ()
    """What the model's desk is to read, in place of `inputs`."""


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
    if model.desk is not None:
        given = fields["instances"] if by_row else fields["inputs"]
        items = _items_by_row(model, given) if by_row else _items_by_column(model, given)
        if items:
            return Prediction([], by_row, items)
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

    Raises:
        HttpError: rows were asked for, and the outputs have none or not as many.
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
        lengths = {array.shape[:1] for array in outputs}
        if len(lengths) != 1 or () in lengths:
            shapes = {name: list(array.shape) for name, array in zip(names, outputs, strict=True)}
            raise bad_request(
                f"instances: expected outputs with one row for each, got {shapes}; "
                "ask for columns (inputs)"
            )
        rows = zip(*values, strict=True)
        answer = {"predictions": [dict(zip(names, row, strict=True)) for row in rows]}
    return Response(
        200, _ENCODER.encode(answer).encode(), headers=b"X-Request-Id: %s\r\n" % id.encode()
    )


def write_told(model: Model, asked: Prediction, id: str, told: Told) -> Response:
    """Return the answer of a model's desk: one object a row, or its tensors by name."""
    answer: dict[str, Any] = {"predictions": told.rows}
    if not asked.by_row:
        assert model.desk is not None
        names = [spec.name for spec in model.desk.teller.outputs]
        values = [_nested(array) for array in told.tensors]
        answer = {"outputs": dict(zip(names, values, strict=True))}
    return Response(
        200, _ENCODER.encode(answer).encode(), headers=b"X-Request-Id: %s\r\n" % id.encode()
    )


def _items_by_row(model: Model, instances: Any) -> tuple[Item, ...]:
    """Return what the desk is to read, () when the rows are tensors."""
    if not isinstance(instances, list) or not instances:
        return ()
    found = [_item(model, row) for row in instances]
    if found[0] is None:
        return ()
    if None in found:
        raise bad_request(
            f"instances: expected rows of one kind, got {found.index(None)} of another"
        )
    return tuple(item for item in found if item is not None)


def _items_by_column(model: Model, inputs: Any) -> tuple[Item, ...]:
    """Return what the desk is to read, () when the columns are tensors."""
    desk = model.desk
    assert desk is not None
    if isinstance(inputs, dict) and set(inputs) == {desk.reader.name}:
        inputs = inputs[desk.reader.name]
    if isinstance(inputs, list):
        return _items_by_row(model, inputs)
    if not isinstance(desk.reader, TableReader) or not isinstance(inputs, dict):
        return () if _item(model, inputs) is None else _items_by_row(model, [inputs])
    if not inputs or not set(inputs) <= desk.reader.column_names:
        return ()
    columns = [column if isinstance(column, list) else [column] for column in inputs.values()]
    if len({len(column) for column in columns}) != 1:
        raise bad_request("inputs: expected columns of one length")
    return tuple(dict(zip(inputs, row, strict=True)) for row in zip(*columns, strict=True))


def _item(model: Model, value: Any) -> Item | None:
    """Return a text, {"b64": ...}, a row of a table, or either by the input's name; else None."""
    desk = model.desk
    assert desk is not None
    name = desk.reader.name
    if isinstance(value, dict) and set(value) == {name}:
        value = value[name]
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if not isinstance(value, dict):
        return None
    if set(value) == {"b64"}:
        return from_base64(name, value["b64"])
    row = isinstance(desk.reader, TableReader) and set(value) <= desk.reader.column_names
    return value if row else None


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
        except (KeyError, TypeError, ValueError) as error:
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
