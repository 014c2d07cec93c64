"""One raw client for all that is timed: blocking sockets, kept alive, requests made beforehand."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Address = tuple[str, int] | Path
Tensor = NDArray[Any]
ANSWER_S = 60.0
BUFFER_BYTES = 1 << 20


class Connection:
    """A kept connection to TCP (host, port) or to a Unix socket's path."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connect()
        self._data = bytearray(BUFFER_BYTES)
        self._buffer = memoryview(self._data)

    def _connect(self) -> None:
        address = self._address
        if isinstance(address, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(ANSWER_S)
            self._socket.connect(str(address))
        else:
            self._socket = socket.create_connection(address, ANSWER_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _receive(self, filled: int) -> int:
        got = self._socket.recv_into(self._buffer[filled:])
        if got == 0:
            raise ConnectionError("a server hung up")
        return filled + got


class Http(Connection):
    """Speaks HTTP/1.1; a request is the bytes that are sent."""

    status = 0
    _head, _length = b"", 0
    """The head of the last answer, and how long it said that the body was."""

    def call(self, request: bytes) -> bytes:
        """Send a request; return the answer's body."""
        try:
            return self._call(request)
        except ConnectionError:
            # Some end a connection that was idle for a few seconds.
            self.close()
            self._connect()
            return self._call(request)

    def _call(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        filled, found = 0, -1
        while found < 0:
            filled = self._receive(filled)
            found = self._data.find(b"\r\n\r\n", 0, filled)
        body = found + 4
        # Most heads are like the one before: what is timed is the server.
        if not self._data.startswith(self._head, 0, body) or len(self._head) != body:
            self._head = bytes(self._buffer[:body])
            head = self._head.lower()
            self.status = int(head[9:12])
            self._length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        end = body + self._length
        while filled < end:
            filled = self._receive(filled)
        return bytes(self._buffer[body:end])


class Framed(Connection):
    """Speaks the yardstick's frames: u32 length, little-endian, and so many bytes, both ways."""

    def call(self, request: bytes) -> bytes:
        """Send a frame, its length in front; return the answer's bytes."""
        self._socket.sendall(request)
        filled = self._receive(0)
        while filled < 4 or filled < 4 + int.from_bytes(self._buffer[:4], "little"):
            filled = self._receive(filled)
        return bytes(self._buffer[4:filled])


def frame(tensor: Tensor) -> bytes:
    """Return a request for the yardstick."""
    return tensor.nbytes.to_bytes(4, "little") + tensor.tobytes()


def as_json(model: str, name: str, tensor: Tensor, datatype: str = "FP32") -> bytes:
    """Return a request of the Open Inference Protocol with the tensor in JSON."""
    described = _described(name, tensor, datatype) | {"data": tensor.ravel().tolist()}
    return post(f"/v2/models/{model}/infer", json.dumps({"inputs": [described]}).encode())


def as_binary(model: str, name: str, tensor: Tensor, datatype: str = "FP32") -> bytes:
    """Return a request of the Open Inference Protocol with the tensor as bytes, both ways."""
    described = _described(name, tensor, datatype) | {
        "parameters": {"binary_data_size": tensor.nbytes}
    }
    fields = {"inputs": [described], "parameters": {"binary_data_output": True}}
    text = json.dumps(fields).encode()
    return post(
        f"/v2/models/{model}/infer",
        text + tensor.tobytes(),
        f"Inference-Header-Content-Length: {len(text)}",
    )


def as_region(model: str, name: str, tensor: Tensor, region: str) -> bytes:
    """Return a request whose tensor lies in shared memory, its answer as bytes."""
    where = {"shared_memory_region": region, "shared_memory_byte_size": tensor.nbytes}
    fields = {
        "inputs": [_described(name, tensor) | {"parameters": where}],
        "parameters": {"binary_data_output": True},
    }
    return post(f"/v2/models/{model}/infer", json.dumps(fields).encode())


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return a whole request as bytes, with the headers that every client sends."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Accept: */*", *headers]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


def answered(body: bytes) -> dict[str, Any]:
    """Return the JSON part of an answer, with tensors as bytes behind it or not."""
    fields, _ = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    assert isinstance(fields, dict)
    return fields


def timed_us(call: Callable[[int], Any], argument: int) -> tuple[float, Any]:
    """Return how long a call takes, and what it returned."""
    began = time.perf_counter_ns()
    answer = call(argument)
    return (time.perf_counter_ns() - began) / 1000, answer


def _described(name: str, tensor: Tensor, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(tensor.shape), "datatype": datatype}
