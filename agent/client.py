"""A client for apps on a device: one file of the standard library, which may simply be copied.

    with Client("unix:/run/farflung/api.sock") as api:
        answer = api.infer("iris", [[5.1, 3.5, 1.4, 0.2]])
        answer["scores"].tolist()
        api.feedback(answer.id, "setosa")

Inputs are numbers, texts, bytes, lists of them, or whatever has a buffer, such as NumPy's arrays.
A model whose release declares it takes pictures (the bytes of a JPEG or PNG), texts or rows too:

    api.infer("faces", Path("street.jpg").read_bytes())["boxes"].tolist()
    api.classify("cars", {"row": {"age": 31, "fuel": "diesel"}}).best.label

A model that listens hears sound piece by piece, and remembers what it heard:

    with api.stream("vad") as stream:
        for piece in microphone:
            answer = stream.send(piece)
"""

import http.client
import json
import socket
import struct
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

DEFAULT_ADDRESS = "http://127.0.0.1:8731"

_FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b",
    "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Datatype -> letter of `struct`."""
_DATATYPES = {letter: datatype for datatype, letter in _FORMATS.items()}
_LENGTH = struct.Struct("<I")
_HEADER_LENGTH = "Inference-Header-Content-Length"


class ApiError(Exception):
    """The device refused or failed; the message is its own.

    `status` is that of HTTP, 0 when there was no answer at all. `retry_after_s` is how long to
    wait before it is worth another try, None when the same request would fail again.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output; `raw` is row-major and little-endian, of BYTES u32 length + bytes each."""

    datatype: str
    shape: tuple[int, ...]
    raw: memoryview

    def tolist(self) -> Any:
        """Return the values as nested lists: numbers, truth values or texts."""
        values: Sequence[Any]
        if self.datatype == "BYTES":
            values = _texts(self.raw)
        else:
            letter = _FORMATS[self.datatype]
            values = struct.unpack(f"<{len(self.raw) // struct.calcsize(letter)}{letter}", self.raw)
        return _nested(values, self.shape)

    def numpy(self) -> Any:
        """Return the values as an array, without a copy where they are numbers."""
        import numpy as np

        if self.datatype == "BYTES":
            return np.array(_texts(self.raw), object).reshape(self.shape)
        return np.frombuffer(self.raw, f"<{_FORMATS[self.datatype]}").reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered; `id` is what feedback refers to."""

    id: str
    model: str
    version: str
    outputs: dict[str, Tensor]
    parameters: dict[str, Any]
    """What is to be known beside, such as `stream_restarted`."""

    def __getitem__(self, output: str) -> Tensor:
        return self.outputs[output]

    @property
    def restarted(self) -> bool:
        """Whether a stream lost its memory before this answer, as at a swap or a crash."""
        return bool(self.parameters.get("stream_restarted", False))


@dataclass(frozen=True, slots=True)
class Guess:
    """One class that a model thinks of."""

    value: float
    index: int
    label: str
    """Empty when the release has no labels."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """What a model takes each row for, the likeliest class first; `id` is for feedback."""

    id: str
    rows: list[list[Guess]]

    @property
    def best(self) -> Guess:
        """The likeliest class of the first row."""
        return self.rows[0][0]


class Client:
    """One connection to the local API, made when needed and made again when it breaks.

    Threads may share it and take turns. Every method raises `ApiError`.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, timeout_s: float = 30.0) -> None:
        """Remember where: `http://HOST:PORT` or `unix:PATH`. Nothing is sent yet."""
        self.address = address
        self._connection = _connection(address, timeout_s)
        self._lock = threading.Lock()
        self._metadata: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next request connects again."""
        with self._lock:
            self._connection.close()

    def ready(self) -> bool:
        """Whether the device answers requests."""
        try:
            self._json("GET", "/v2/health/ready")
        except ApiError:
            return False
        return True

    def models(self) -> list[str]:
        """Return the names of the models that serve."""
        entries = self._json("POST", "/v2/repository/index")
        return [str(entry["name"]) for entry in entries]

    def metadata(self, model: str) -> dict[str, Any]:
        """Return a model's inputs and outputs: names, datatypes and shapes (-1: any size)."""
        if model not in self._metadata:
            self._metadata[model] = self._json("GET", f"/v2/models/{quote(model)}")
        return self._metadata[model]

    def infer(
        self,
        model: str,
        inputs: Any,
        *,
        id: str = "",
        within_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Return all outputs for `inputs`: values by input name, or the value of the only one.

        A single row may come without its batch dimension. With `within_s` the device gives up
        after that time. `parameters` are the request's, such as `sequence_id` of a stream.
        """
        fields, parts = self._question(model, inputs, id, within_s)
        fields["parameters"] |= {**(parameters or {}), "binary_data_output": True}
        return self._ask(model, fields, parts)

    def classify(
        self,
        model: str,
        inputs: Any,
        *,
        top: int = 1,
        output: str | None = None,
        id: str = "",
        within_s: float | None = None,
    ) -> Guesses:
        """Return the `top` classes of each row, by the first output or the one that is named.

        Of pictures, texts and rows there are no more than the release says.
        """
        if self._item(model, inputs) is not None:
            answer = self.infer(model, inputs, id=id, within_s=within_s)
            if "label" not in answer.outputs:
                got = list(answer.outputs)
                raise ApiError(f"model {model}: expected a classification, got {got}: use infer")
            columns = [answer[column].tolist() for column in ("score", "class", "label")]
            guesses = [list(map(Guess, *row))[:top] for row in zip(*columns, strict=True)]
            return Guesses(answer.id, guesses)
        name = output or str(self.metadata(model)["outputs"][0]["name"])
        fields, parts = self._question(model, inputs, id, within_s)
        wanted = {"classification": top, "binary_data": True}
        fields["outputs"] = [{"name": name, "parameters": wanted}]
        answer = self._ask(model, fields, parts)
        rows = answer[name].tolist()
        if rows and isinstance(rows[0], str):
            rows = [rows]
        return Guesses(answer.id, [[_guess(text) for text in row] for row in rows])

    def stream(self, model: str, id: str = "") -> "Stream":
        """Return a stream of a model that listens; it begins with its first piece."""
        return Stream(self, model, id or uuid.uuid4().hex)

    def feedback(
        self, id: str, label: Any = None, *, value: Any = None, model: str | None = None
    ) -> None:
        """Say what was true: the class, by label or index, or a list with one for each row.

        Where a model answers numbers, it is the `value` of its first output, in the same form.
        """
        fields = {"request_id": id, **({"label": label} if value is None else {"value": value})}
        self._json("POST", "/v2/feedback", fields if model is None else {**fields, "model": model})

    def _question(
        self, model: str, inputs: Any, id: str, within_s: float | None
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Return the JSON part of a request and the tensors that follow it."""
        specs = {spec["name"]: spec for spec in self.metadata(model)["inputs"]}
        item = self._item(model, inputs)
        if item is not None:
            specs = {item["name"]: item}
        if not isinstance(inputs, Mapping):
            if len(specs) != 1:
                raise ApiError(f"model {model}: expected inputs by name: {list(specs)}")
            inputs = {next(iter(specs)): inputs}
        parts: list[bytes] = []
        # The device knows best what is wrong with an input that it does not have.
        described = [
            _described(
                specs.get(name, {"name": name, "datatype": "FP32", "shape": []}), value, parts
            )
            for name, value in inputs.items()
        ]
        parameters = {} if within_s is None else {"timeout": max(1, round(within_s * 1e6))}
        return {"id": id, "inputs": described, "parameters": parameters}, parts

    def _item(self, model: str, inputs: Any) -> dict[str, Any] | None:
        """Return the input that a picture, text or row becomes, None for tensors."""
        for spec in self.metadata(model).get("task", {}).get("inputs", []):
            by_name = isinstance(inputs, Mapping) and list(inputs) == [spec["name"]]
            value = inputs[spec["name"]] if by_name else inputs
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, bytes | str) or (by_name and isinstance(value, dict)):
                return dict(spec)
        return None

    def _ask(self, model: str, fields: dict[str, Any], parts: list[bytes]) -> Answer:
        head = json.dumps(fields).encode()
        headers = {_HEADER_LENGTH: str(len(head))}
        path = f"/v2/models/{quote(model)}/infer"
        try:
            body, length = self._exchange("POST", path, b"".join((head, *parts)), headers)
        except ApiError:
            # Another release may serve by now, with other inputs.
            self._metadata.pop(model, None)
            raise
        return _read_answer(body, length)

    def _json(self, method: str, path: str, fields: Any = None) -> Any:
        data = None if fields is None else json.dumps(fields).encode()
        return json.loads(self._exchange(method, path, data, {})[0])

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[bytes, int | None]:
        """Return the body of an answer, and how much of it is JSON where that is not all."""
        try:
            with self._lock:
                response, body = self._send(method, path, data, headers)
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise ApiError(f"{self.address}: no answer: {why}") from error
        if response.status != http.client.OK:
            again = response.getheader("Retry-After")
            raise ApiError(_reason(body), response.status, float(again) if again else None)
        length = response.getheader(_HEADER_LENGTH)
        return body, None if length is None else int(length)

    def _send(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        kept = self._connection.sock is not None
        try:
            return self._send_once(method, path, data, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A connection that was kept may have been ended while it was idle, as at a swap.
            if not kept:
                raise
            return self._send_once(method, path, data, headers)

    def _send_once(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
            return response, response.read()
        except BaseException:
            # Half an answer must not be taken for the beginning of the next one.
            self._connection.close()
            raise


class Stream:
    """Sound for a model that remembers what it heard; as a context manager it ends by itself.

    Several may share a client. One thread at a time sends.
    """

    def __init__(self, client: Client, model: str, id: str) -> None:
        """See `Client.stream`."""
        self.id = id
        """Its `sequence_id`."""
        self._client = client
        self._model = model
        self._begun = False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        try:
            self.end()
        except ApiError:
            # What was wrong before is the better news, and an idle stream ends anyway.
            if kind is None:
                raise

    def send(self, sound: Any, *, end: bool = False, within_s: float | None = None) -> Answer:
        """Return the outputs, one row for each frame that is complete with this piece.

        Sound is 16-bit integers or floats from -1 to 1, or the bytes of PCM or a WAV file. With
        `end` it is the last piece. `Answer.restarted` says whether the memory was lost before it.

        Raises:
            ApiError: the status is 404 or 410 when the stream is over; the next piece begins anew.
        """
        return self._send(sound, end, within_s)

    def end(self) -> None:
        """Say that no more comes, if it has begun."""
        if self._begun:
            self._send({}, True, None)

    def _send(self, sound: Any, end: bool, within_s: float | None) -> Answer:
        parameters = {"sequence_id": self.id, "sequence_start": not self._begun}
        if end:
            parameters["sequence_end"] = True
        try:
            answer = self._client.infer(
                self._model, sound, within_s=within_s, parameters=parameters
            )
        except ApiError as error:
            if error.status in (http.client.NOT_FOUND, http.client.GONE):
                self._begun = False
            raise
        self._begun = not end
        return answer


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(address: str, timeout_s: float) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"), timeout_s)
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        raise ApiError(f"address: expected http://HOST:PORT or unix:PATH, got {address!r}")
    return http.client.HTTPConnection(parts.hostname, parts.port or 8731, timeout=timeout_s)


def _described(spec: dict[str, Any], value: Any, parts: list[bytes]) -> dict[str, Any]:
    """Return an input's entry; what goes as bytes is added to `parts`."""
    datatype = str(spec["datatype"])
    if isinstance(value, bytes) and datatype != "UINT8":
        datatype = "BYTES"  # such as sound, which says itself how it is to be read
    if datatype == "BYTES":
        shape, values = _flat(value)
        raw = b"".join(_LENGTH.pack(len(text)) + text for text in map(_encoded, values))
    else:
        buffer = _buffer(value)
        if buffer is None:
            shape, values = _flat(value)
            fields = {"name": spec["name"], "datatype": datatype, "data": values}
            return {**fields, "shape": _batched(shape, spec["shape"])}
        datatype = _DATATYPES.get(_letter(buffer), buffer.format)
        shape, raw = list(buffer.shape or ()), buffer.tobytes()
    parts.append(raw)
    return {
        "name": spec["name"],
        "datatype": datatype,
        "shape": _batched(shape, spec["shape"]),
        "parameters": {"binary_data_size": len(raw)},
    }


def _buffer(value: Any) -> memoryview | None:
    try:
        return memoryview(value)
    except TypeError:
        return None


def _letter(buffer: memoryview) -> str:
    letter = buffer.format.lstrip("@=<")
    # The C types have other sizes on other machines.
    if letter in "lqn" and len(letter) == 1:
        return {4: "i", 8: "q"}[buffer.itemsize]
    if letter in "LQN" and len(letter) == 1:
        return {4: "I", 8: "Q"}[buffer.itemsize]
    return letter


def _flat(value: Any) -> tuple[list[int], list[Any]]:
    """Return the shape of nested lists and what is in them; the device checks that they agree."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    shape: list[int] = []
    level = value
    while isinstance(level, list | tuple):
        shape.append(len(level))
        level = level[0] if level else None
    values = [value]
    for _ in shape:
        values = [
            item for row in values for item in (row if isinstance(row, list | tuple) else [row])
        ]
    return shape, values


def _batched(shape: list[int], wanted: list[int]) -> list[int]:
    one_row = len(shape) == len(wanted) - 1 and wanted[0] in (-1, 1)
    return [1, *shape] if one_row else shape


def _encoded(value: Any) -> bytes:
    if isinstance(value, dict):
        return json.dumps(value).encode()
    return value if isinstance(value, bytes) else str(value).encode()


def _texts(raw: memoryview) -> list[str]:
    texts, at = [], 0
    while at < len(raw):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(raw, at)[0]
        texts.append(str(raw[begin:at], "utf-8", "surrogateescape"))
    return texts


def _nested(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    rows: list[Any] = list(values)
    for size in reversed(shape[1:]):
        rows = [rows[at : at + size] for at in range(0, len(rows), size or 1)]
    return rows


def _guess(text: str) -> Guess:
    value, index, *label = text.split(":", 2)
    return Guess(float(value), int(index), label[0] if label else "")


def _read_answer(body: bytes, length: int | None) -> Answer:
    fields = json.loads(body if length is None else body[:length])
    raw, at = memoryview(body), length or 0
    outputs = {}
    for output in fields["outputs"]:
        end = at + output["parameters"]["binary_data_size"]
        shape = tuple(output["shape"])
        outputs[output["name"]] = Tensor(output["datatype"], shape, raw[at:end])
        at = end
    return Answer(
        fields["id"],
        fields["model_name"],
        fields["model_version"],
        outputs,
        fields.get("parameters", {}),
    )


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
