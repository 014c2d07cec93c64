"""Open Inference Protocol v2 over REST: reading inference requests and writing answers.

Tensors come as JSON, as bytes after the JSON and told apart by
`Inference-Header-Content-Length`, in the order of the inputs, or in shared memory.
"""

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import orjson

from agent.engine import long_json
from agent.engine.errors import bad_request
from agent.engine.http import Response
from agent.engine.model import Model
from agent.engine.runtimes import Array
from agent.engine.shared_memory import Regions, Span
from agent.engine.tasks import items
from agent.engine.tasks.desk import Desk
from agent.engine.tensors import (
    DTYPES,
    TensorError,
    check_finite,
    check_shape,
    from_bytes,
    from_json,
    highest,
    same_batch,
    to_bytes,
    to_list,
)
from wire.manifest import TensorSpec

MAX_ID_CHARACTERS = 200
MAX_TIMEOUT_US = 3600 * 1_000_000
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "sequence",
    "statistics",
    "system_shared_memory",
)
"""What is offered beyond the protocol's core, by the names that `GET /v2` tells."""

_PLATFORMS = {"onnx": "onnx_onnxv1", "tflite": "tflite"}
_EMPTY = memoryview(b"")
_NULL = b"null"


@dataclass(slots=True)
class Wanted:
    """An output to answer with: its place in the manifest, and how."""

    place: int
    binary: bool
    classes: int = 0
    """How many of the highest values are wanted, as texts, in place of all; 0: all."""
    span: Span | None = None
    """Where in shared memory, in place of the answer."""


@dataclass(slots=True)
class Inference:
    """An inference request."""

    id: str
    """Empty when none was given."""
    inputs: list[Array]
    """In the manifest's order."""
    outputs: tuple[Wanted, ...]
    within_s: float | None = None
    """How long the app waits for the answer."""
    items: tuple[bytes, ...] = ()
    """What the model's desk is to read, in place of `inputs`; its outputs are meant then."""


def model_metadata(model: Model) -> dict[str, Any]:
    """Describe a model."""
    return {
        "name": model.spec.model,
        "versions": [str(model.spec.version)],
        "platform": _PLATFORMS[model.variant.format],
        "inputs": [_tensor_metadata(spec) for spec in model.manifest.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.manifest.outputs],
        **_task_metadata(model),
    }


def index_entry(model: Model) -> dict[str, Any]:
    """Return a model's line in the index of the repository."""
    return {
        "name": model.spec.model,
        "version": str(model.spec.version),
        "state": "READY",
        "reason": "",
    }


def read_inference(
    model: Model, regions: Regions, header_length: bytes | None, body: bytes | memoryview
) -> Inference:
    """Read a request body.

    Raises:
        HttpError: it is not one, or not one for this model.
        TensorError: an input is not what the model expects.
    """
    head, raw = body, _EMPTY
    if header_length is not None:
        head, raw = split_body(header_length, body)
        if not head:
            return _raw_inference(model, raw)
    fields = long_json.read(head) if len(head) >= long_json.LONG_BYTES else None
    if fields is None:
        fields = read_object(head)
    id = read_id(fields) if "id" in fields else ""
    binary, within_s = False, None
    if "parameters" in fields:
        parameters = read_parameters(fields, "request")
        binary = parameters.get("binary_data_output") is True
        within_s = time_allowed(parameters.get("timeout", 0))
    given: Any = fields.get("inputs")
    wanted = fields.get("outputs")
    if model.desk is not None and _is_for(model.desk, given):
        return Inference(
            id,
            [],
            _read_outputs(model.desk.teller.outputs, regions, wanted, binary),
            within_s,
            _read_items(model.desk, regions, given[0], raw),
        )
    return Inference(
        id,
        _read_inputs(model, regions, given, raw),
        _read_outputs(model.manifest.outputs, regions, wanted, binary),
        within_s,
    )


def write_answer(model: Model, asked: Inference, id: str, outputs: list[Array]) -> Response:
    """Return the answer to a request: outputs of the model, or of its desk.

    Raises:
        TensorError: JSON was asked for and an output is not finite.
        HttpError: an output does not fit into the shared memory that was named for it.
    """
    parts: list[bytes] = []
    described = []
    for wanted in asked.outputs:
        described.append(_describe_output(model, asked, wanted, outputs[wanted.place], parts))
    head = write_json(
        {
            "model_name": model.spec.model,
            "model_version": str(model.spec.version),
            "id": id,
            "outputs": described,
        }
    )
    if not parts:
        return Response(200, head)
    return Response(
        200,
        b"".join((head, *parts)),
        b"application/octet-stream",
        b"Inference-Header-Content-Length: %d\r\n" % len(head),
    )


def read_object(body: bytes | memoryview) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HttpError: it is none.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _read_python_json(bytes(body))
    if not isinstance(value, dict):
        raise bad_request(f"body: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(value: Any) -> bytes:
    """Write JSON.

    Raises:
        TensorError: there is a NaN or an infinity in it, which JSON has no words for.
    """
    written = orjson.dumps(value)
    if _NULL in written and _holds_no_number(value):
        raise TensorError("the answer holds NaN or infinity; ask for binary_data instead")
    return written


def _read_python_json(body: bytes) -> Any:
    """Read JSON as Python does: NaN and Infinity deserve a better word than "no JSON".

    Halves of characters, which JSON has words for, are in no text that could be answered.
    """
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise bad_request(f"body: expected JSON: {str(error)[:200]}") from None
    return value


def _holds_no_number(value: Any) -> bool:
    """Whether there is a NaN or an infinity in what was written as `null`."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return True
    return False


def _describe_output(
    model: Model, asked: Inference, wanted: Wanted, array: Array, parts: list[bytes]
) -> dict[str, Any]:
    """Return an output's entry; what follows the JSON as bytes is added to `parts`."""
    desk = model.desk if asked.items else None
    spec = (model.manifest if desk is None else desk.teller).outputs[wanted.place]
    datatype = spec.datatype
    if wanted.classes:
        labels = model.labels if desk is None and wanted.place == model.scores else []
        array, datatype = highest(array, wanted.classes, labels), "BYTES"
    fields: dict[str, Any] = {"name": spec.name, "shape": array.shape, "datatype": datatype}
    if wanted.span is not None:
        data = to_bytes(array)
        wanted.span.write(f"output {spec.name}", data)
        fields["parameters"] = {
            "shared_memory_region": wanted.span.region.name,
            "shared_memory_offset": wanted.span.offset,
            "shared_memory_byte_size": len(data),
        }
    elif wanted.binary:
        parts.append(to_bytes(array))
        fields["parameters"] = {"binary_data_size": len(parts[-1])}
    else:
        fields["data"] = to_list(array)
    return fields


def time_allowed(timeout: Any) -> float | None:
    """Return the seconds that `timeout` microseconds are, None for 0.

    Raises:
        HttpError: it is no whole number.
    """
    if type(timeout) is not int or timeout < 0:
        raise bad_request(
            f"timeout: expected a whole number of microseconds, 0 for none, "
            f"got {str(timeout)[:40]!r}"
        )
    return min(timeout, MAX_TIMEOUT_US) / 1e6 if timeout else None


def _task_metadata(model: Model) -> dict[str, Any]:
    """Describe what may be sent in place of the inputs, and what is answered then."""
    desk = model.desk
    if desk is None:
        return {}
    taken = {"name": desk.reader.name, "datatype": "BYTES", "shape": (-1,)}
    told = [_tensor_metadata(spec) for spec in desk.teller.outputs]
    return {"task": {"kind": model.manifest.task.kind, "inputs": [taken], "outputs": told}}


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def split_body(
    header_length: bytes | None, body: bytes | memoryview
) -> tuple[bytes | memoryview, memoryview]:
    """Return the JSON of a body and the bytes of tensors after it.

    Raises:
        HttpError: the body is not as long as `Inference-Header-Content-Length` says.
    """
    if header_length is None:
        return body, _EMPTY
    if header_length.isdigit() and len(header_length) <= 12:
        end = int(header_length)
        if end <= len(body):
            return body[:end], memoryview(body)[end:]
    raise bad_request(
        f"Inference-Header-Content-Length: expected a number from 0 to the body's "
        f"{len(body)} bytes, got {header_length[:40].decode('latin-1')!r}"
    )


def read_id(fields: dict[str, Any]) -> str:
    """Return the id of a request, empty when it has none.

    Raises:
        HttpError: it is none or too long.
    """
    id = fields.get("id", "")
    if not isinstance(id, str) or len(id) > MAX_ID_CHARACTERS:
        raise bad_request(f"id: expected a string of up to {MAX_ID_CHARACTERS} characters")
    return id


def read_parameters(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters of a request, an input or an output.

    Raises:
        HttpError: they are none.
    """
    parameters = fields.get("parameters", {})
    if not isinstance(parameters, dict):
        raise bad_request(f"{where}: parameters: expected an object")
    return parameters


def read_named(items: Any, kind: str, places: dict[str, int]) -> list[tuple[int, dict[str, Any]]]:
    """Return place and fields of each item of a list of inputs or outputs.

    Raises:
        HttpError: it is no such list, or names what there is none of, or one twice.
    """
    if type(items) is not list:
        raise bad_request(f"{kind}s: expected a list of objects")
    found = []
    for item in items:
        if type(item) is not dict:
            raise bad_request(f"{kind}s: expected a list of objects")
        name = item.get("name")
        place = places.get(name) if type(name) is str else None
        if place is None:
            raise bad_request(f"{kind}s: expected {list(places)}, got {str(name)[:80]!r}")
        found.append((place, item))
    if len(found) > 1 and len({place for place, _ in found}) != len(found):
        raise bad_request(f"{kind}s: expected each of {list(places)} once, got one twice")
    return found


def _read_inputs(model: Model, regions: Regions, items: Any, raw: memoryview) -> list[Array]:
    specs = model.manifest.inputs
    found = read_named(items, "input", model.input_places)
    if len(found) != len(specs):
        got = [specs[place].name for place, _ in found]
        raise bad_request(f"inputs: expected {list(model.input_places)}, got {got}")
    arrays: dict[int, Array] = {}
    at = 0
    for place, item in found:
        arrays[place], at = read_input(
            specs[place], regions, item, raw, at, finite_only=model.finite_only
        )
    if at != len(raw):
        raise bad_request(f"body: expected {at} bytes of tensors after the JSON, got {len(raw)}")
    inputs = list(map(arrays.__getitem__, range(len(specs))))
    if len(specs) > 1:
        same_batch(specs, inputs)
    return inputs


def read_input(
    spec: TensorSpec,
    regions: Regions,
    item: dict[str, Any],
    raw: memoryview,
    at: int,
    *,
    finite_only: bool = False,
) -> tuple[Array, int]:
    """Return one input and where the next one's bytes begin.

    Raises:
        HttpError: it is not one input, or says of itself what it is not.
        TensorError: it is not what `spec` expects.
    """
    if item.get("datatype") != spec.datatype:
        got = str(item.get("datatype"))[:40]
        raise bad_request(f"input {spec.name}: datatype: expected {spec.datatype}, got {got}")
    shape = check_shape(spec, item.get("shape"))
    if "parameters" not in item and "data" in item:
        return from_json(spec, shape, item["data"], finite_only=finite_only), at
    what = f"input {spec.name}"
    size, span = _whereabouts(what, regions, item, read_parameters(item, what))
    if span is not None:
        array = from_bytes(spec, shape, memoryview(span.read(what)))
        if finite_only:
            check_finite((spec,), (array,))
        return array, at
    if size is None:
        return from_json(spec, shape, item["data"], finite_only=finite_only), at
    if type(size) is not int or not 0 <= size <= len(raw) - at:
        raise bad_request(
            f"input {spec.name}: binary_data_size: expected up to the {len(raw) - at} bytes that "
            f"are left after the JSON (Inference-Header-Content-Length), got {str(size)[:40]}"
        )
    array = from_bytes(spec, shape, raw[at : at + size])
    if finite_only:
        check_finite((spec,), (array,))
    return array, at + size


def _is_for(desk: Desk, given: Any) -> bool:
    """Whether the one input is what the model's task takes, and no tensor of the same name."""
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        return False
    return given[0].get("name") == desk.reader.name and given[0].get("datatype") == "BYTES"


def _read_items(
    desk: Desk, regions: Regions, given: dict[str, Any], raw: memoryview
) -> tuple[bytes, ...]:
    name = desk.reader.name
    what = f"input {name}"
    count = items.check_count(name, given.get("shape"))
    parameters = read_parameters(given, what)
    size, span = _whereabouts(what, regions, given, parameters)
    if span is not None:
        return tuple(items.from_bytes(name, count, memoryview(span.read(what))))
    if (size or 0) != len(raw):
        raise bad_request(
            f"{what}: binary_data_size: expected the {len(raw)} bytes that are left after the "
            f"JSON (Inference-Header-Content-Length), got {str(size)[:40]}"
        )
    if size is not None:
        return tuple(items.from_bytes(name, count, raw))
    in_base64 = parameters.get("content_type") == "base64"
    return tuple(items.from_json(name, count, given["data"], in_base64=in_base64))


def _whereabouts(
    what: str, regions: Regions, given: dict[str, Any], parameters: dict[str, Any]
) -> tuple[Any, Span | None]:
    """Return how many bytes of an input follow the JSON, and in what memory it is; or neither."""
    size = parameters.get("binary_data_size")
    span = regions.span(what, parameters) if parameters else None
    if ("data" in given) + (size is not None) + (span is not None) != 1:
        raise bad_request(
            f"{what}: expected one of data, binary_data_size and shared_memory_region"
        )
    return size, span


def _read_outputs(
    specs: tuple[TensorSpec, ...], regions: Regions, items: Any, binary: bool
) -> tuple[Wanted, ...]:
    if items is None or items == []:
        return _all_outputs(len(specs), binary)
    places = {spec.name: place for place, spec in enumerate(specs)}
    wanted = []
    for place, item in read_named(items, "output", places):
        what = f"output {specs[place].name}"
        parameters = read_parameters(item, what)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise bad_request(
                f"{what}: classification: expected how many classes, got {str(classes)[:40]!r}"
            )
        if classes and specs[place].datatype in ("BYTES", "BOOL"):
            raise bad_request(f"{what}: classification: expected an output of numbers")
        span = regions.span(what, parameters)
        if span is not None and classes:
            raise bad_request(f"{what}: expected either classification or shared memory")
        as_bytes = parameters.get("binary_data", binary) is True
        wanted.append(Wanted(place, as_bytes, classes, span))
    return tuple(wanted)


@functools.cache
def _all_outputs(count: int, binary: bool) -> tuple[Wanted, ...]:
    return tuple(Wanted(place, binary) for place in range(count))


def _raw_inference(model: Model, raw: memoryview) -> Inference:
    """Read a body that is one input's bytes alone; its size tells a variable dimension."""
    specs = model.manifest.inputs
    spec = specs[0]
    if len(specs) != 1 or spec.shape.count(-1) > 1 or spec.datatype == "BYTES":
        raise bad_request(
            "Inference-Header-Content-Length 0: expected a model with one input of numbers and "
            "at most one variable dimension; send the JSON part too"
        )
    row = math.prod(size for size in spec.shape if size != -1) * DTYPES[spec.datatype].itemsize
    shape = [len(raw) // max(row, 1) if size == -1 else size for size in spec.shape]
    inputs = [from_bytes(spec, check_shape(spec, shape), raw)]
    if model.finite_only:
        check_finite(specs, inputs)
    # Who sends raw bytes reads raw bytes, in the form every client of this protocol knows.
    outputs = _all_outputs(len(model.manifest.outputs), True)
    return Inference("", inputs, outputs)
