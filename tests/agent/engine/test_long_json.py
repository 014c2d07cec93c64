import json
import math

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import long_json
from agent.engine.tensors import from_json
from wire.manifest import TensorSpec

SPEC = TensorSpec(name="image", datatype="FP32", shape=(-1,))
MANY = 20_000


def _body(data: str, *, before: str = "", behind: str = "") -> bytes:
    item = (
        f'{before}"name": "image", "shape": [{MANY}], "datatype": "FP32", "data" : {data}{behind}'
    )
    return f'{{"id": "7", "inputs": [{{{item}}}], "outputs": [{{"name": "scores"}}]}}'.encode()


def _numbers(count: int = MANY) -> list[float]:
    drawn: list[float] = np.random.default_rng(count).normal(0, 100, count).tolist()
    return drawn


def _whole(body: bytes) -> dict[str, object]:
    read: dict[str, object] = orjson.loads(body)
    return read


def test_a_long_list_is_read_in_pieces_to_the_same_numbers() -> None:
    body = _body(json.dumps(_numbers()), before='"parameters": {}, ', behind=', "more": [1, "]"]')

    fields = long_json.read(memoryview(body))

    whole = _whole(body)
    data = fields["inputs"][0].pop("data")
    expected = np.array(whole["inputs"][0].pop("data"))
    assert data.dtype == np.float64
    assert np.array_equal(data, expected)
    assert fields == whole
    assert np.array_equal(
        from_json(SPEC, (MANY,), data), from_json(SPEC, (MANY,), expected.tolist())
    )


def test_of_several_inputs_the_first_long_one_is_read_in_pieces() -> None:
    short, long = [0.5, 1.5], _numbers()
    inputs = [
        {"name": "a", "data": short},
        {"name": "b", "data": long},
        {"name": "c", "data": long},
    ]

    fields = long_json.read(orjson.dumps({"inputs": inputs}))

    assert fields["inputs"][0]["data"] == short
    assert fields["inputs"][1]["data"].tolist() == long
    assert fields["inputs"][2]["data"] == long


LONG = json.dumps(_numbers())
PLACES = len(LONG) // 2


@pytest.mark.parametrize(
    "body",
    [
        _body(json.dumps([int(number) for number in _numbers()] * 3)),
        _body(json.dumps([_numbers(MANY // 2)] * 2)),
        _body(LONG[:-1] + ",]"),
        _body("[," + LONG[1:]),
        _body(LONG[:-1] + ', "x"]'),
        _body(LONG[:-1] + ", null]"),
        _body(LONG[:-1] + ", [1.5]]"),
        _body(LONG[:-1] + ", NaN]"),
        _body(LONG[:PLACES] + ",," + LONG[PLACES:]),
        _body(LONG)[:-1],
        _body(LONG) + b"}",
        _body(LONG[:-1]),
        _body('"' + "x" * 200_000 + '"'),
        json.dumps({"parameters": {"data": _numbers()}, "inputs": [{"data": None}]}).encode(),
        json.dumps([{"data": _numbers()}]).encode(),
        json.dumps({"inputs": {"data": _numbers()}}).encode(),
        _body(LONG, behind=', "data": 5'),
        json.dumps({"id": '"data":[' + LONG[1:]}).encode(),
        b'"data":[' * 40_000,
    ],
)
def test_what_is_no_long_list_of_numbers_is_left_to_be_read_as_a_whole(body: bytes) -> None:
    assert len(body) >= long_json.LONG_BYTES

    assert long_json.read(body) is None


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, len(LONG)),
    st.integers(0, 3),
    st.binary(max_size=6) | st.sampled_from([b",", b"]", b"[", b"1e999", b" ", b"true", b'"']),
)
def test_whatever_is_changed_in_a_body_it_is_read_as_a_whole_would_be(
    at: int, gone: int, put: bytes
) -> None:
    body = _body(LONG)
    at += body.index(b"[-") if b"[-" in body else 60
    changed = body[:at] + put + body[at + gone :]

    fields = long_json.read(changed)

    if fields is not None:
        whole = _whole(changed)
        expected = np.array(whole["inputs"][0].pop("data"))
        assert expected.dtype == np.float64
        assert np.array_equal(fields["inputs"][0].pop("data"), expected, equal_nan=True)
        assert fields == whole
        assert math.prod(expected.shape) == expected.size
