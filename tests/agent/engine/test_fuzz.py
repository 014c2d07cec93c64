"""The whole local API under requests that nobody should send: no 500, no hang, no growth."""

import copy
import gzip
import http.client
import json
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine, one_hot
from tests.agent.engine.models import (
    onnx_classifier,
    onnx_quantized_classifier,
    onnx_text_picker,
)
from wire.manifest import Task

ANSWER_S = 5.0
MAX_GROWTH_BYTES = 4 * 1024 * 1024
FUZZ = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MODELS = ("digits", "words", "steps", "nobody", "")
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
TENSOR = {"name": "image", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
WORDS = {**TENSOR, "datatype": "BYTES", "data": ["a", "b", "c", "d"]}
PARAMETERS = {
    "timeout": 10**6, "binary_data_output": False, "sequence_id": 7, "sequence_start": True,
}  # fmt: skip
MEMORY = {
    "shared_memory_region": "frames",
    "shared_memory_byte_size": 16,
    "shared_memory_offset": 0,
}
BODIES: list[Any] = [
    {"id": "a", "inputs": [TENSOR], "outputs": [{"name": "scores"}], "parameters": PARAMETERS},
    {"inputs": [WORDS], "outputs": [{"name": "scores", "parameters": {"binary_data": True}}]},
    {"inputs": [TENSOR], "outputs": [{"name": "scores", "parameters": {"classification": 2}}]},
    {
        "inputs": [{**TENSOR, "data": None, "parameters": MEMORY}],
        "outputs": [{"name": "scores", "parameters": MEMORY}],
    },
    {"instances": [[1.0, 2.0, 3.0, 4.0]]},
    {"instances": [{"image": [1.0, 2.0, 3.0, 4.0]}], "signature_name": "serving_default"},
    {"inputs": {"image": [[{"b64": "YQ=="}, "b", "c", "d"]]}},
    {"request_id": "a", "label": "one", "model": "digits"},
    {"key": "/frames", "offset": 0, "byte_size": 64},
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
    releases = [
        Release(folder / "a", onnx_classifier()),
        Release(folder / "b", onnx_text_picker(), model="words", datatype="BYTES", task=Task()),
        Release(folder / "c", onnx_quantized_classifier(), model="steps"),
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
def near_misses(draw: st.DrawFn) -> Any:
    """Draw a body that an app might send, with a few places of it changed."""
    body = copy.deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(body))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        holder = body
        for key in way:
            holder = holder[key]
        match draw(st.integers(0, 3)):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            case 2 if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = holder.pop(last)
            case _:
                holder[last] = draw(ANY_JSON)
    return body


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """Draw a body, and the headers that say (rightly or not) how it is to be read."""
    body = json.dumps(draw(near_misses() | ANY_JSON)).encode()
    headers: dict[str, str] = {}
    if draw(st.booleans()):
        length = draw(st.just(len(body)) | st.integers(-2, len(body) + 2))
        headers["Inference-Header-Content-Length"] = str(length)
        texts = struct.pack("<I", 1) + b"a" + struct.pack("<I", 2**31) + b"b"
        body += draw(st.sampled_from([b"\0" * 16, texts, b"\xff" * 16]) | st.binary(max_size=40))
    if draw(st.booleans()):
        body = draw(st.just(body) | st.binary(max_size=60))
    coding = draw(st.sampled_from(["", "", "gzip", "deflate", "br"]))
    if coding:
        headers["Content-Encoding"] = coding
        if draw(st.booleans()):
            body = gzip.compress(body)
    accepts = draw(st.sampled_from(["", "gzip", "deflate", "*"]))
    return body, headers | ({"Accept-Encoding": accepts} if accepts else {})


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
    @given(METHODS, TARGETS, bodies())
    def fuzz(method: str, path: str, body: tuple[bytes, dict[str, str]]) -> None:
        seen.add(ask(target, method, path, *body))

    unbounded(target, fuzz)
    assert {200, 400, 404, 405} <= seen


def test_near_misses_of_inferences_are_answered_and_never_with_a_500(target: Target) -> None:
    memory = Path("/dev/shm/frames-of-the-fuzz")
    memory.write_bytes(struct.pack("<4f", 1, 2, 3, 4) * 4)
    path = "/v2/systemsharedmemory/region/frames/register"
    target.client.ask("POST", path, {"key": memory.name, "byte_size": 64})
    seen: set[int] = set()

    @FUZZ
    @given(
        st.sampled_from(MODELS[:3]),
        st.sampled_from(["/v2/models/{}/infer", "/v1/models/{}:predict"]),
        bodies(),
    )
    def fuzz(model: str, path: str, body: tuple[bytes, dict[str, str]]) -> None:
        seen.add(ask(target, "POST", path.replace("{}", model), *body))

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
