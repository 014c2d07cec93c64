"""Requests of streams: what an app says of its sound, and what it is told of every frame."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.engine.errors import bad_request
from agent.engine.http import Response
from agent.engine.model import Model
from agent.engine.open_inference import (
    read_id,
    read_input,
    read_named,
    read_object,
    read_parameters,
    split_body,
    time_allowed,
    write_json,
)
from agent.engine.runtimes import Array
from agent.engine.shared_memory import Regions
from agent.engine.streams import Sequence, StreamId
from agent.engine.tasks import items, texts
from agent.engine.tasks.classes import name_classes
from agent.engine.tasks.edges import to_reals
from agent.engine.tensors import TensorError, check_finite, to_bytes, to_list
from wire.manifest import TensorSpec
from wire.stream import Stream

MAX_SOUND_S = 60
"""In one request."""

MAX_ID_CHARACTERS = 128
LOUDEST = 2.0
"""FP32 sound is between -1 and 1, peaks of lossy codecs a little beyond."""

Told = dict[str, tuple[str, Array]]
"""Name -> datatype and value; the first dimension is the frame."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """A request of a stream."""

    id: str
    """Of the request; empty when none was given."""
    sequence: Sequence
    sound: Array
    """INT16 or FP32 samples, (n); or UINT8, the bytes of PCM or a WAV file."""
    wanted: tuple[tuple[str, bool], ...]
    """Output -> whether as bytes after the JSON."""
    within_s: float | None


class Ear:
    """Reads the requests of one model's streams, and tells what came of them."""

    def __init__(self, model: Model) -> None:
        assert model.framing is not None
        self._model = model
        self._framing = model.framing
        nothing = self.tell(self._framing.gather([], self._framing.initial_state()))
        self._names = list(nothing)
        self.inputs = [{"name": self._framing.stream.name, "datatype": "INT16", "shape": [-1]}]
        """As metadata tells of them."""
        self.outputs = [
            {"name": name, "datatype": datatype, "shape": [-1, *array.shape[1:]]}
            for name, (datatype, array) in nothing.items()
        ]

    def read(
        self, regions: Regions, header_length: bytes | None, body: bytes | memoryview
    ) -> Hearing:
        """Read a request body.

        Raises:
            HttpError: it is not one, or not one of a stream.
            TensorError: the sound is none.
        """
        head, raw = split_body(header_length, body)
        if not head:
            raise bad_request("a stream's request: expected its JSON part, with a sequence_id")
        fields = read_object(head)
        parameters = read_parameters(fields, "request")
        return Hearing(
            read_id(fields),
            _read_sequence(self._model, parameters),
            _read_sound(self._framing.stream, regions, fields.get("inputs", []), raw),
            _read_wanted(self._names, fields, parameters.get("binary_data_output") is True),
            time_allowed(parameters.get("timeout", 0)),
        )

    def tell(self, outputs: list[Array]) -> Told:
        """Return what an app is told: outputs as real numbers, and where there are classes those.

        Raises:
            AnswerError: a score is not finite.
        """
        told: Told = {}
        for place in self._framing.visible:
            spec, array = self._framing.outputs[place], outputs[place]
            real = spec.quantization is not None and array.dtype.kind in "iu"
            told[spec.name] = ("FP32", to_reals(array, spec)) if real else (spec.datatype, array)
        if self._model.classes is not None:
            classes, scores = self._model.classify(outputs)
            labels = name_classes(list(classes), self._model.class_names, self._model.manifest.task)
            told.setdefault("label", ("BYTES", texts(labels)))
            told.setdefault("class", ("INT64", np.array(classes, np.int64)))
            told.setdefault("score", ("FP32", np.array(scores, np.float32)))
        return told

    def write(self, asked: Hearing, id: str, told: Told, *, restarted: bool) -> Response:
        """Return the answer to a request.

        Raises:
            TensorError: JSON was asked for and an output is not finite.
        """
        parts: list[bytes] = []
        described = [_describe(name, told[name], parts, binary) for name, binary in asked.wanted]
        parameters: dict[str, Any] = {"sequence_id": asked.sequence.id}
        if restarted:
            parameters["stream_restarted"] = True
        head = write_json(
            {
                "model_name": self._model.spec.model,
                "model_version": str(self._model.spec.version),
                "id": id,
                "parameters": parameters,
                "outputs": described,
            }
        )
        if not parts:
            return Response(200, head)
        length = b"Inference-Header-Content-Length: %d\r\n" % len(head)
        return Response(200, b"".join((head, *parts)), b"application/octet-stream", length)


def _describe(
    name: str, told: tuple[str, Array], parts: list[bytes], binary: bool
) -> dict[str, Any]:
    datatype, array = told
    fields: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    if binary:
        parts.append(to_bytes(array))
        return {**fields, "parameters": {"binary_data_size": len(parts[-1])}}
    return {**fields, "data": to_list(array)}


def _read_sequence(model: Model, parameters: dict[str, Any]) -> Sequence:
    id = parameters.get("sequence_id", 0)
    if (
        type(id) not in (int, str)
        or not id
        or (isinstance(id, str) and len(id) > MAX_ID_CHARACTERS)
    ):
        raise bad_request(
            f"model {model.spec.model} listens: expected parameters.sequence_id, a number other "
            f"than 0 or a text of up to {MAX_ID_CHARACTERS} characters, got {str(id)[:80]!r}"
        )
    flags = {}
    for name in ("sequence_start", "sequence_end"):
        flags[name] = parameters.get(name, False)
        if not isinstance(flags[name], bool):
            raise bad_request(f"{name}: expected true or false, got {str(flags[name])[:40]!r}")
    given: StreamId = id
    return Sequence(given, flags["sequence_start"], flags["sequence_end"])


def _read_sound(stream: Stream, regions: Regions, given: Any, raw: memoryview) -> Array:
    """Return the sound of a request; one that only begins or ends a stream may have none."""
    found = read_named(given, "input", {stream.name: 0})
    if not found:
        return np.empty(0, np.int16)
    [(_, item)] = found
    datatype, what = item.get("datatype"), f"input {stream.name}"
    if datatype == "BYTES":
        sound = _read_bytes(stream.name, item, raw)
        samples = len(sound) // 2
    elif datatype in ("INT16", "FP32"):
        shape = item.get("shape")
        if shape in ([0], [1, 0]):
            return np.empty(0, np.int16)
        rows = (1, -1) if isinstance(shape, list) and len(shape) == 2 else (-1,)
        spec = TensorSpec(name=stream.name, datatype=datatype, shape=rows)
        sound, at = read_input(spec, regions, item, raw, 0)
        if at != len(raw):
            raise bad_request(f"body: expected {at} bytes after the JSON, got {len(raw)}")
        _check_loudness(spec, sound)
        sound = sound.reshape(-1)
        samples = len(sound)
    else:
        raise bad_request(
            f"{what}: datatype: expected INT16, FP32 or BYTES, got {str(datatype)[:40]!r}"
        )
    if samples > MAX_SOUND_S * stream.rate_hz:
        raise TensorError(
            f"{what}: expected up to {MAX_SOUND_S} s at {stream.rate_hz} Hz in one request, "
            f"got {samples} samples"
        )
    return sound


def _read_bytes(name: str, item: dict[str, Any], raw: memoryview) -> Array:
    count = items.check_count(name, item.get("shape"))
    size = read_parameters(item, f"input {name}").get("binary_data_size")
    if ("data" in item) == (size is not None):
        raise bad_request(f"input {name}: expected either data, in base64, or binary_data_size")
    if size is None:
        pieces = items.from_json(name, count, item["data"], in_base64=True)
    elif size != len(raw):
        raise bad_request(
            f"input {name}: binary_data_size: expected the {len(raw)} bytes after the JSON, "
            f"got {str(size)[:40]}"
        )
    else:
        pieces = items.from_bytes(name, count, raw)
    return np.frombuffer(b"".join(pieces), np.uint8)


def _check_loudness(spec: TensorSpec, sound: Array) -> None:
    check_finite([spec], [sound])
    loudest = float(np.abs(sound).max(initial=0)) if sound.dtype == np.float32 else 0.0
    if loudest > LOUDEST:
        raise TensorError(
            f"input {spec.name}: expected FP32 samples from -1 to 1, got {loudest:g}; send "
            "16-bit numbers as INT16"
        )


def _read_wanted(
    names: list[str], fields: dict[str, Any], binary: bool
) -> tuple[tuple[str, bool], ...]:
    given = fields.get("outputs")
    if given is None or given == []:
        return tuple((name, binary) for name in names)
    wanted = []
    places = {name: place for place, name in enumerate(names)}
    for place, item in read_named(given, "output", places):
        parameters = read_parameters(item, f"output {names[place]}")
        for name in ("classification", "shared_memory_region"):
            if name in parameters:
                raise bad_request(
                    f"output {names[place]}: {name} is not offered for streams; take the output "
                    "itself"
                )
        wanted.append((names[place], parameters.get("binary_data", binary) is True))
    return tuple(wanted)
