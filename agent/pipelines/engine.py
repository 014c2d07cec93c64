"""Questions to the engine, by its public HTTP API.

Nobody accepts while no engine serves: the request then waits in the socket's backlog, and its
connection with it, for as long as it takes. Asking again instead would fill the backlog up.
"""

import contextlib
import http.client
import json
import math
import select
import socket
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agent.pipelines.buffer import MAX_STREAMS, Frame, Stopping
from agent.pipelines.plan import Input

MAX_ANSWER_BYTES = 16 * 1024 * 1024
_SIZES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "UINT32": 4, "INT32": 4,
    "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
_BROKEN = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Answered:
    """The engine's answer: a JSON object, as it came."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The model has no answer for this frame, however often it is asked."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Later:
    """No answer this time. `ours`: it may be this frame that is the cause."""

    text: str
    busy: bool = False
    ours: bool = False


Outcome = Answered | Refused | Later


class Connection:
    """A kept connection to the engine, for one thread; `cut` may come from another."""

    def __init__(self, address: str) -> None:
        """`address` is unix:/PATH or http://HOST:PORT."""
        self._address = address
        self._lock = threading.Lock()
        self._http: http.client.HTTPConnection | None = None
        self._cut = False

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return status and body.

        Raises:
            ConnectionRefusedError, FileNotFoundError: nobody listens there.
            OSError, HTTPException: the engine went while it had this.
            Stopping: the connection was cut.
        """
        try:
            return self._ask(method, path, body, headers or {})
        except _BROKEN:
            self.close()
            if self._cut:
                raise Stopping from None
            raise

    def close(self) -> None:
        """Leave; the next question connects again."""
        with self._lock:
            if self._http is not None:
                self._http.close()
                self._http = None

    def cut(self) -> None:
        """End the question under way, and every later one."""
        self._cut = True
        with self._lock:
            if self._http is not None and self._http.sock is not None:
                with contextlib.suppress(OSError):
                    self._http.sock.shutdown(socket.SHUT_RDWR)

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = self._connected()
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        if (response.length or 0) > MAX_ANSWER_BYTES:
            self.close()
            return 413, b'{"error": "the answer is longer than 16 MiB"}'
        answer = response.read(MAX_ANSWER_BYTES)
        if response.will_close:
            self.close()
        return response.status, answer

    def _connected(self) -> http.client.HTTPConnection:
        if self._http is not None:
            if not _ended(self._http.sock):
                return self._http
            self.close()
        made = _open(self._address)
        made.connect()
        with self._lock:
            self._http = made
        if self._cut:
            raise Stopping
        return made


def _ended(sock: socket.socket) -> bool:
    """Whether the engine left while nothing was asked, as one does that is replaced."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


def _open(address: str) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"))
    url = urlsplit(address)
    return http.client.HTTPConnection(url.hostname or "localhost", url.port)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Takes:
    """What the model takes: tensors, and where its task has it, a picture, text or row."""

    tensors: tuple[_Tensor, ...]
    items: _Tensor | None

    def choose(self, input: Input) -> tuple[_Tensor, Input]:
        """Return the input that frames become, and how.

        Raises:
            _Absent: they cannot become one.
        """
        item = self.items
        if item is not None and input in ("auto", "bytes"):
            return item, "bytes"
        if len(self.tensors) != 1:
            names = [tensor.name for tensor in self.tensors]
            raise _Absent(f"expected a model with one input, got {names}")
        [tensor] = self.tensors
        if input == "auto":
            input = "bytes" if tensor.datatype == "BYTES" else "raw"
        return tensor, input


class _UnfitError(ValueError):
    """The bytes cannot be this input."""


class Model:
    """One model, asked frame by frame."""

    def __init__(self, connection: Connection, name: str, input: Input) -> None:
        self._connection = connection
        self._name = name
        self._input = input
        self._takes: _Takes | None = None
        self._heard: OrderedDict[str, int] = OrderedDict()
        """Stream -> number of the latest frame that the model has heard of it."""

    def ask(self, frame: Frame) -> Outcome:
        """Put a frame to the model once.

        Raises:
            Stopping: this process ends.
        """
        known = self._takes
        try:
            if known is None:
                self._learn()
            outcome = self._ask(frame)
            if isinstance(outcome, Refused) and known is not None:
                # Perhaps another release serves by now, which takes something else.
                self._learn()
                if self._takes != known:
                    outcome = self._ask(frame)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            return Later(f"nobody listens for {self._name}: {error.strerror}")
        except _Absent as absent:
            self._takes = None
            return Later(str(absent))
        except _BROKEN as error:
            self._heard.clear()
            said = f"the engine ended with the request: {error or type(error).__name__}"
            return Later(said, ours=True)
        return outcome

    def _learn(self) -> None:
        """Ask what the model takes.

        Raises:
            _Absent: there is no such model, or it is none for pipelines.
        """
        self._takes = None
        status, body = self._connection.ask("GET", f"/v2/models/{self._name}")
        if status != 200:
            raise _Absent(_error(status, body))
        told = json.loads(body)
        items = _tensors(told.get("task", {}).get("inputs", []))
        self._takes = _Takes(_tensors(told["inputs"]), items[0] if items else None)

    def _ask(self, frame: Frame) -> Outcome:
        assert self._takes is not None
        try:
            fields, payload = _input(*self._takes.choose(self._input), frame.payload)
        except _UnfitError as error:
            return Refused("unfit", str(error))
        question = {"id": frame.id, "parameters": self._place(frame), "inputs": [fields]}
        head = json.dumps(question).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))} if payload else {}
        path = f"/v2/models/{self._name}/infer"
        status, body = self._connection.ask("POST", path, head + payload, headers)
        if status == 200 and body.startswith(b"{"):
            self._note(frame)
            return Answered(body)
        self._heard.pop(frame.stream, None)
        text = _error(status, body)
        if status in (429, 503):
            return Later(text, busy=True)
        if status == 404:
            self._takes = None
        if status in (404, 408, 410):
            return Later(text)
        return Later(text, ours=True) if status >= 500 else Refused("refused", text)

    def _place(self, frame: Frame) -> dict[str, Any]:
        """Return where the frame is in its stream; a model that does not listen ignores it."""
        place: dict[str, Any] = {"sequence_id": frame.stream}
        if self._heard.get(frame.stream) != frame.number - 1:
            place["sequence_start"] = True  # after a gap, too: what it remembers is of no use
        if frame.last:
            place["sequence_end"] = True
        return place

    def _note(self, frame: Frame) -> None:
        self._heard.pop(frame.stream, None)
        if not frame.last:
            self._heard[frame.stream] = frame.number
            if len(self._heard) > MAX_STREAMS:
                self._heard.popitem(last=False)


class _Absent(Exception):  # noqa: N818 - it may come yet
    """No such model now."""


def _error(status: int, body: bytes) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(body)["error"])[:400]
    return f"HTTP status {status}"


def _tensors(told: list[dict[str, Any]]) -> tuple[_Tensor, ...]:
    return tuple(_Tensor(it["name"], it["datatype"], tuple(it["shape"])) for it in told)


def _input(tensor: _Tensor, input: Input, payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the request's input and the bytes that belong to it.

    Raises:
        _UnfitError: the frame cannot be this input.
    """
    fields: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype}
    match input:
        case "json":
            fields["data"] = _numbers(payload)
            fields["shape"] = _shape(tensor, len(fields["data"]), 1, "values")
            return fields, b""
        case "bytes":
            # The model that listens takes a sound's bytes in place of its samples.
            fields["datatype"] = "BYTES"
            fields["shape"] = [1] * max(1, len(tensor.shape))
            payload = len(payload).to_bytes(4, "little") + payload
        case _:
            item = _SIZES.get(tensor.datatype)
            if item is None:
                raise _UnfitError(f"input {tensor.name}: expected bytes, not a raw tensor")
            fields["shape"] = _shape(tensor, len(payload), item, "bytes")
    fields["parameters"] = {"binary_data_size": len(payload)}
    return fields, payload


def _numbers(payload: bytes) -> list[Any]:
    try:
        # JSON has no words for NaN and infinity, and an int8 model would make something of them.
        value = json.loads(payload, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _UnfitError(f"expected a JSON list of numbers: {str(error)[:200]}") from None
    flat: list[Any] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += reversed(each)
        else:
            flat.append(each)
    return flat


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _shape(tensor: _Tensor, got: int, item: int, unit: str) -> list[int]:
    """Return the shape that `got` bytes or values fill; with two free dimensions, one example."""
    shape = list(tensor.shape)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    row = item * math.prod(size for size in shape if size != -1)
    free = shape.count(-1)
    if free > 1:
        raise _UnfitError(f"input {tensor.name}: its shape {shape} leaves more than one size open")
    if free == 0 and got != row:
        raise _UnfitError(f"input {tensor.name}: expected {row} {unit}, got {got}")
    if free == 1 and (got == 0 or got % max(row, 1)):
        raise _UnfitError(f"input {tensor.name}: expected a multiple of {row} {unit}, got {got}")
    return [got // max(row, 1) if size == -1 else size for size in shape]
