"""Batches as they travel: what was packed comes back, and nothing else does harm."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import packing
from wire.codec import MAX_DOCUMENT_BYTES, DecodeError, encode
from wire.ids import digest_of
from wire.packing import DICTIONARY, PackError, pack, unpack
from wire.telemetry import (
    Batch,
    DeviceEvent,
    Estimate,
    Golden,
    Health,
    Histogram,
    ScoreWindow,
    Shadow,
)

GOLDEN = Path(__file__).parent / "golden/v1/Batch.packed"
COUNTS = st.integers(0, 300) | st.integers(0, 2**53)
TEXTS = st.text(max_size=20)


def maps(keys: st.SearchStrategy[int]) -> st.SearchStrategy[dict[int, int]]:
    return st.dictionaries(keys, COUNTS, max_size=30)


CLASSES = maps(st.integers(0, 20) | st.integers(0, 2**31 - 1))
BINS = st.builds(lambda bins: Histogram(bins=bins), maps(st.integers(0, 2000)))
PLACES = st.integers(0, 12) | st.integers(0, 2**31 - 1)
CONFUSED = st.builds(lambda true, answer: f"{true},{answer}", PLACES, PLACES)


def each(document: type, **named: Any) -> st.SearchStrategy[Any]:
    """Return documents of a kind whose other values are counts."""
    counts = {n: COUNTS for n, f in document.model_fields.items() if f.annotation is int}  # type: ignore[attr-defined]
    return st.builds(document, **{**counts, "schema_version": st.sampled_from((1, 1, 2)), **named})


SEQUENCES = st.integers(1, 100_000)
COMMON = {"device": st.just("cam-1"), "boot": TEXTS, "seq": SEQUENCES}
WINDOWS = each(
    ScoreWindow, **COMMON, first=st.none() | SEQUENCES, model=st.just("digits"),
    version=st.integers(1, 9), manifest=st.sampled_from([digest_of(b"a"), digest_of(b"b")]),
    variant=TEXTS, latency=BINS, predicted=CLASSES, confidence=CLASSES,
    confusion=st.dictionaries(CONFUSED | TEXTS, COUNTS, max_size=8)
    | st.dictionaries(CONFUSED, COUNTS, max_size=30),
    calibration=st.dictionaries(st.integers(0, 19), st.tuples(COUNTS, COUNTS, COUNTS)),
    estimate=st.none() | each(Estimate), golden=st.none() | each(Golden),
    drift=st.dictionaries(
        st.integers(0, 63), st.lists(COUNTS, max_size=22).map(tuple), max_size=8
    ),
    outcomes=st.dictionaries(TEXTS, COUNTS, max_size=16), value_errors=st.none() | BINS,
    epsilon=st.none() | st.floats(0.01, 100),
    noised=st.dictionaries(PLACES, st.integers(-(2**53), 2**53), max_size=5),
    shadow=st.none() | each(Shadow, challenger=st.just(digest_of(b"c"))),
)  # fmt: skip
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
HEALTH = each(
    Health, **COMMON, first=st.none() | SEQUENCES, cpu_percent=NUMBERS, load_1m=NUMBERS,
    agent_cpu_percent=NUMBERS, engine_cpu_percent=NUMBERS, temperature_c=st.none() | NUMBERS,
    pressure=st.dictionaries(TEXTS, NUMBERS, max_size=3), throttled=st.none() | st.booleans(),
    kernel_boot=st.none() | TEXTS, network_sent_bytes=st.none() | COUNTS,
    battery_charging=st.none() | st.booleans(), clock_stepped_s=NUMBERS,
)  # fmt: skip
EVENTS = each(
    DeviceEvent, **COMMON, kind=st.sampled_from(["gap", "dropped", "crash"]), text=TEXTS,
    model=st.none() | st.just("digits"), version=st.none() | st.integers(1, 9),
    counts=st.dictionaries(TEXTS, COUNTS, max_size=4),
)  # fmt: skip
BATCHES = st.builds(
    lambda windows, health, events, complete: Batch(
        device="cam-1", windows=tuple(windows), health=tuple(health), events=tuple(events),
        complete=complete,
    ),
    st.lists(WINDOWS, max_size=3), st.lists(HEALTH, max_size=3), st.lists(EVENTS, max_size=3),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(BATCHES)
def test_what_was_packed_comes_back(batch: Batch) -> None:
    assert unpack(pack(batch)) == batch


@given(st.lists(COUNTS, max_size=400))
def test_any_list_of_counts_comes_back(values: list[int]) -> None:
    writer = packing._Writer()
    writer.ints(values)

    assert list(packing._Reader(bytes(writer.data), 0).ints()) == values


def test_every_value_of_every_item_has_a_place() -> None:
    columns = {"latency", "predicted", "confidence", "confusion", "calibration", "drift"}

    assert {"device", *packing.WINDOW, *columns} == set(ScoreWindow.model_fields)
    assert {"device", *packing.HEALTH} == set(Health.model_fields)
    assert {"device", *packing.EVENT} == set(DeviceEvent.model_fields)
    assert set(packing.ESTIMATE) == set(Estimate.model_fields)
    assert set(packing.GOLDEN) == set(Golden.model_fields)
    assert set(packing.SHADOW) == set(Shadow.model_fields)


def test_values_that_a_newer_writer_adds_at_the_ends_are_passed_over() -> None:
    head, _, columns = inflated(GOLDEN.read_bytes()).partition(b"\n")
    newer = json.loads(head)
    window = newer[2][0]
    window += [*packing._WINDOW_DEFAULTS[len(window) :], "more", 7]
    newer += [1, "more"]

    again = unpack(deflated(json.dumps(newer).encode() + b"\n" + columns + b"\0\3abc"))

    assert again == unpack(GOLDEN.read_bytes())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_batches_are_refused_or_read_and_never_worse(data: st.DataObject) -> None:
    whole = bytearray(inflated(GOLDEN.read_bytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(1, len(whole))) :]

    try:
        unpack(deflated(bytes(whole)))
    except DecodeError as error:
        assert len(str(error)) < 1000


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack(packing.VERSION + noise)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x02", b"{}", b"\x78\x9c", b"\x01" * (MAX_DOCUMENT_BYTES + 1),
        encode(Batch(device="cam-1"), deflate=True),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack(data)


@pytest.mark.parametrize(
    "whole",
    [
        b'["cam-1"' + b" " * MAX_DOCUMENT_BYTES + b"]\n", b"[" * 50_000 + b"\n", b"7\n", b"null\n",
        b'["cam-1",1,[7]]\n', b'["cam-1",1,[[1]]]\n\0\2\1\xff', b'["cam-1",1,7]\n', b"[]",
        # A column that says how far its keys go, and lies.
        b'["cam-1",1,[[1]]]\n\x08\x0c\1\0\0\0\0\0\0\0\xff\xff\xff\xff',
    ],
)  # fmt: skip
def test_bombs_and_lies_are_refused(whole: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack(deflated(whole))


def test_a_batch_too_long_for_a_message_is_not_packed() -> None:
    event = DeviceEvent(device="cam-1", boot="b", seq=1, at=1, kind="other", text="x" * 300)

    with pytest.raises(PackError, match="inflated"):
        pack(Batch(device="cam-1", events=(event,) * 400))


def inflated(data: bytes) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY).decompress(data[1:])


def deflated(whole: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=DICTIONARY)
    return packing.VERSION + deflater.compress(whole) + deflater.flush()
