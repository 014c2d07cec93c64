import json
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.codec import MAX_DOCUMENT_BYTES, DecodeError, decode, encode, parse_json
from wire.telemetry import Ack
from wire.twin import Reported, Status

STATUS = Status(device="cam-1", online=True, nonce="n", since=1)


@pytest.mark.parametrize("deflate", [False, True])
def test_a_document_reads_as_it_was_written(deflate):
    assert decode(Status, encode(STATUS, deflate=deflate)) == STATUS


@given(st.binary(max_size=300))
def test_whatever_bytes_come_the_only_error_is_a_decode_error(data):
    for each in (data, zlib.compress(data), b'{"device":' + data + b"}"):
        try:
            decode(Status, each)
        except DecodeError as error:
            assert "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(st.fixed_dictionaries({}, optional={
    "device": JSON, "desired_revision": JSON, "agent": JSON, "boot": JSON, "serving": JSON,
    "deployments": JSON, "capabilities": JSON, "schema_version": JSON}))  # fmt: skip
def test_whatever_json_comes_the_only_error_is_a_decode_error(value):
    try:
        decode(Reported, json.dumps(value).encode())
    except DecodeError as error:
        assert str(error).startswith("Reported: ")


def test_a_newer_document_is_read_as_far_as_it_is_understood():
    newer = {**json.loads(encode(STATUS)), "schema_version": 9, "mood": {"bright": [1, 2]}}

    read = decode(Status, json.dumps(newer).encode())

    assert read == STATUS.model_copy(update={"schema_version": 9})


def test_nothing_is_a_field_that_was_left_out():
    document = Reported(device="cam-1", desired_revision=0, agent="0.1.0", boot="b")

    assert b"null" not in encode(document)


def test_an_error_names_the_document_the_field_and_what_came():
    with pytest.raises(DecodeError, match=r"^Status: device: .*expected 1 to 40.*'Cam 1'"):
        decode(Status, b'{"device":"Cam 1","online":true,"nonce":"n","since":1}')


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b"[" * 50_000 + b"]" * 50_000,
        b'{"device":"cam-1","seq":' + b"9" * 5_000 + b"}",
        b'{"device":"cam-1","seq":1e999}',
        b'{"device":"cam-1","seq":NaN}',
        b'{"device":"cam-1","seq":-1}',
        b'{"device":"cam-1","seq":9007199254740993}',
        b'"' + b"x" * MAX_DOCUMENT_BYTES,
        b"\xff\xfe",
        b"",
        b"null",
        b"7",
        b'{"device":"cam-1","seq":"\\ud800"}',
    ],
    ids=lambda data: repr(data[:24]),
)
def test_hostile_json_is_refused_quickly(data):
    begun = time.perf_counter()

    with pytest.raises(DecodeError):
        decode(Ack, data)

    assert time.perf_counter() - begun < 1


def test_a_key_that_comes_twice_counts_once_with_its_last_value():
    assert decode(Ack, b'{"device":"cam-1","seq":1,"seq":2}').seq == 2


def test_a_compression_bomb_is_refused_without_being_inflated():
    bomb = zlib.compress(b" " * 100 * 1024 * 1024, 9)
    assert len(bomb) <= MAX_DOCUMENT_BYTES

    tracemalloc.start()
    with pytest.raises(DecodeError, match="inflated"):
        parse_json(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * MAX_DOCUMENT_BYTES


def test_a_deflated_document_that_was_cut_is_refused():
    whole = encode(STATUS, deflate=True)
    for length in range(1, len(whole)):
        with pytest.raises(DecodeError):
            decode(Status, whole[:length])


def test_the_longest_document_is_read_and_one_byte_more_is_not():
    assert parse_json(b" " * (MAX_DOCUMENT_BYTES - 1) + b"7") == 7
    with pytest.raises(DecodeError, match="at most"):
        parse_json(b" " * MAX_DOCUMENT_BYTES + b"7")
