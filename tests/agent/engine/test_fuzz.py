"""The whole local API under requests that nobody should send: no 500, no hang, no growth."""

import copy
import gzip
import http.client
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine, one_hot
from tests.agent.engine.models import (
    onnx_classifier,
    onnx_quantized_classifier,
    onnx_text_picker,
)
from tests.agent.engine.speech import vad
from wire.manifest import Task
from wire.task import Column, TableInput, TextInput

ANSWER_S = 10.0
MAX_GROWTH_BYTES = 4 * 1024 * 1024
FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MODELS = ("digits", "words", "steps", "rows", "bytes", "vad", "nobody", "")
PATHS = (
    "/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/feedback", "/v2/repository/index",
    "/v2/repository/models/{}/load", "/v2/models/stats", "/v2/models/{}", "/v2/models/{}/ready",
    "/v2/models/{}/stats", "/v2/models/{}/shadow", "/v2/models/{}/infer",
    "/v2/models/{}/versions/1/infer", "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/unregister", "/v2/systemsharedmemory/region/{}/register",
    "/v2/systemsharedmemory/region/{}/unregister", "/v2/systemsharedmemory/region/{}/status",
    "/v2/cudasharedmemory/region/{}/register", "/v1/models/{}", "/v1/models/{}/metadata",
    "/v1/models/{}:predict", "/v1/models/{}/labels/stable:predict", "/v1/models/{}/versions/1",
)  # fmt: skip
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 5)
    | st.floats(-1e30, 1e30)
    | st.sampled_from(
        [float("nan"), float("inf"), 10**400, "", "\ud800", "FP32", "BYTES", "scores"]
    )
    | st.text(st.characters(exclude_categories=()), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
ODD = {
    str: ["", "\ud800", "\0", "é" * 300, "NaN", "stable", "serving_default"],
    int: [0, -1, 1, 2**31, 2**63, 10**400],
    float: [0.0, -0.0, 1e-320, 1e30, 1e300, float("nan"), float("inf"), float("-inf")],
    bool: [True, False],
}
"""Values of a kind that somebody may not have thought of."""
TENSOR = {"name": "image", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
WORDS = {**TENSOR, "datatype": "BYTES", "data": ["a", "b", "c", "d"]}
ONE_TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["abcd"]}
SOUND = {"name": "audio", "shape": [4], "datatype": "INT16", "data": [0, 1, -1, 32767]}
ROW = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
IN_MEMORY = {name: value for name, value in TENSOR.items() if name != "data"}
PARAMETERS = {
    "timeout": 10**6, "binary_data_output": False, "sequence_id": 7, "sequence_start": True,
}  # fmt: skip
MEMORY = {
    "shared_memory_region": "frames",
    "shared_memory_byte_size": 16,
    "shared_memory_offset": 0,
}
FRAMES = f"frames-of-the-fuzz-{os.getpid()}"
INFER, PREDICT = "/v2/models/{}/infer", "/v1/models/{}:predict"
INFERENCES: list[tuple[str, str, Any]] = [
    (
        "digits",
        INFER,
        {"id": "a", "inputs": [TENSOR], "outputs": [{"name": "scores"}], "parameters": PARAMETERS},
    ),
    (
        "steps",
        INFER,
        {"inputs": [TENSOR], "outputs": [{"name": "scores", "parameters": {"classification": 2}}]},
    ),
    (
        "words",
        INFER,
        {"inputs": [WORDS], "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]},
    ),
    (
        "digits",
        INFER,
        {
            "inputs": [{**IN_MEMORY, "parameters": MEMORY}],
            "outputs": [{"name": "scores", "parameters": MEMORY}],
        },
    ),
    ("digits", PREDICT, {"instances": [[1.0, 2.0, 3.0, 4.0]]}),
    (
        "steps",
        PREDICT,
        {"instances": [{"image": [1.0, 2.0, 3.0, 4.0]}], "signature_name": "serving_default"},
    ),
    ("words", PREDICT, {"inputs": {"image": [[{"b64": "YQ=="}, "b", "c", "d"]]}}),
    ("rows", PREDICT, {"instances": [ROW, {**ROW, "d": None}]}),
    ("rows", PREDICT, {"inputs": {name: [value] for name, value in ROW.items()}}),
    ("rows", INFER, {"inputs": [{**ONE_TEXT, "name": "row", "data": [json.dumps(ROW)]}]}),
    ("bytes", INFER, {"inputs": [ONE_TEXT], "outputs": [{"name": "label"}]}),
    ("bytes", PREDICT, {"instances": ["abcd", {"b64": "YWJj"}]}),
    ("vad", INFER, {"inputs": [SOUND], "parameters": {"sequence_id": "s", "sequence_start": True}}),
]
"""Requests that are answered as they stand: model, path, body."""

BODIES: list[Any] = [
    *(body for _, _, body in INFERENCES),
    {"request_id": "a", "label": "one", "model": "digits"},
    {"key": FRAMES, "offset": 0, "byte_size": 64},
    {"ready": True},
]


@dataclass(frozen=True)
class Target:
    """The engine that is asked, and a client that knows it."""

    engine: Engine
    listeners: Listeners
    client: Client

    def is_well(self) -> bool:
        answer = self.client.infer(one_hot(1))
        scores = answer.json["outputs"][0]["data"]
        return (answer.status, scores) == (200, [0.0, 8.0, 0.0])

    @property
    def memory_bytes(self) -> int:
        """What the engine's process has taken, without what is in files."""
        text = Path(f"/proc/{self.engine.process.pid}/smaps_rollup").read_text()
        return int(text.partition("Anonymous:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    listeners = Listeners(folder)
    columns = tuple(Column(name=name, missing=0.0) for name in ROW)
    scores = {"kind": "classification", "scores": "scores", "scores_are": "logits"}
    rows = Task(**scores, input=TableInput(columns=columns))
    texts = Task(**scores, input=TextInput(head=4))
    releases: list[Any] = [
        Release(folder / "a", onnx_classifier()),
        Release(folder / "b", onnx_text_picker(), model="words", datatype="BYTES", task=Task()),
        Release(folder / "c", onnx_quantized_classifier(), model="steps"),
        Release(folder / "d", onnx_classifier(), model="rows", task=rows),
        Release(folder / "e", onnx_classifier(), model="bytes", task=texts),
        vad(folder / "f"),
    ]
    client = Client(listeners.port)
    with engine(listeners) as started:
        started.serve(*releases)
        yield Target(started, listeners, client)
        assert started.process.poll() is None
    client.close()
    listeners.close()


def unbounded(target: Target, fuzz: Callable[[], None]) -> None:
    """Run `fuzz` twice; what the second run adds to the engine's memory would add up for ever."""
    fuzz()
    before = target.memory_bytes
    fuzz()

    assert target.is_well()
    assert target.memory_bytes - before < MAX_GROWTH_BYTES


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the way to everything inside a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def near_misses(draw: st.DrawFn, body: Any) -> Any:
    """Draw a body that an app might send, with a few places of it changed."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        found = list(places(body))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        holder = body
        for key in way:
            holder = holder[key]
        match draw(st.integers(0, 7)):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case 2 if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = holder.pop(last)
            case 3:
                holder[last] = draw(ANY_JSON)
            case _:
                kind = type(holder[last])
                holder[last] = draw(st.sampled_from(ODD[kind]) if kind in ODD else ANY_JSON)
    return body


@st.composite
def sent(draw: st.DrawFn, body: Any) -> tuple[bytes, dict[str, str]]:
    """Draw a body, and the headers that say (rightly or not) how it is to be read."""

    def seldom() -> bool:
        return draw(st.integers(0, 7)) == 0

    data = json.dumps(draw(ANY_JSON if seldom() else near_misses(body))).encode()
    headers: dict[str, str] = {}
    if seldom():
        length = draw(st.just(len(data)) | st.integers(-2, len(data) + 2))
        headers["Inference-Header-Content-Length"] = str(length)
        texts = struct.pack("<I", 1) + b"a" + struct.pack("<I", 2**31) + b"b"
        data += draw(st.sampled_from([b"\0" * 16, texts, b"\xff" * 16]) | st.binary(max_size=40))
    if seldom():
        data = draw(st.binary(max_size=60))
    if seldom():
        headers["Content-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "br"]))
        if draw(st.booleans()):
            data = gzip.compress(data)
    if seldom():
        headers["Accept-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "*"]))
    return data, headers


METHODS = st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "DELETE"])
TARGETS = st.builds(
    lambda path, name: path.replace("{}", name),
    st.sampled_from(PATHS),
    st.sampled_from(MODELS) | st.text("abz%2F/.:~?#", max_size=8),
)


def ask(target: Target, method: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
    """Return the answer's JSON, having seen that it is one of the right kind."""
    connection = http.client.HTTPConnection("127.0.0.1", target.listeners.port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        said = response.read()
    finally:
        connection.close()
    assert response.status != 500 and response.status < 504, (response.status, said)
    if response.status != 200:
        assert response.getheader("Content-Type") == "application/json"
        assert list(json.loads(said)) == ["error"]
    return response.status


def test_near_misses_of_every_request_are_answered_and_never_with_a_500(target: Target) -> None:
    seen: set[int] = set()

    @FUZZ
    @given(METHODS, TARGETS, st.sampled_from(BODIES).flatmap(sent))
    @example("GET", "/v2", (b"", {}))
    @example("POST", "/v2/models/digits/infer", (b"{}", {}))
    @example("GET", "/v2/models/digits/infer", (b"", {}))
    @example("GET", "/v3", (b"", {}))
    def fuzz(method: str, path: str, body: tuple[bytes, dict[str, str]]) -> None:
        seen.add(ask(target, method, path, *body))

    unbounded(target, fuzz)
    assert {200, 400, 404, 405} <= seen


def test_near_misses_of_inferences_are_answered_and_never_with_a_500(target: Target) -> None:
    memory = Path("/dev/shm", FRAMES)
    memory.write_bytes(struct.pack("<4f", 1, 2, 3, 4) * 4)
    path = "/v2/systemsharedmemory/region/frames/register"
    target.client.ask("POST", path, {"key": memory.name, "byte_size": 64})
    seen = {
        ask(target, "POST", path.replace("{}", model), json.dumps(body).encode(), {})
        for model, path, body in INFERENCES
    }
    assert seen == {200}

    @settings(FUZZ, max_examples=300)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        model, path, body = data.draw(st.sampled_from(INFERENCES))
        seen.add(ask(target, "POST", path.replace("{}", model), *data.draw(sent(body))))

    unbounded(target, fuzz)
    memory.unlink()
    assert {200, 400} <= seen


REQUEST = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
VALID = REQUEST % (len(json.dumps(BODIES[0])), json.dumps(BODIES[0]).encode())


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    """Draw what may come over a socket: noise, or requests with bytes changed, cut and doubled."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(VALID * draw(st.integers(1, 3)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at:at] = draw(st.binary(max_size=20))
            case _:
                data[at:at] = draw(
                    st.sampled_from(
                        [b"\r\n", b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"0x"]
                    )
                )
        if not data:
            break
    return bytes(data)


def test_bytes_that_are_hardly_http_never_cost_more_than_their_connection(target: Target) -> None:
    seen: set[bytes] = set()

    @FUZZ
    @given(raw_requests(), st.booleans())
    def fuzz(data: bytes, unix: bool) -> None:
        family = socket.AF_UNIX if unix else socket.AF_INET
        address: Any = target.listeners.path if unix else ("127.0.0.1", target.listeners.port)
        with socket.socket(family) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(address)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            said = b""
            while chunk := connection.recv(65536):
                said += chunk
        lines = [line for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert bool(lines) == bool(said)
        seen.update(line[9:12] for line in lines)

    unbounded(target, fuzz)
    assert b"500" not in seen
    assert {b"200", b"400"} <= seen
