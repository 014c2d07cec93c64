"""Whatever the two files are, what is decoded is the new one, and it is never sent dearer."""

from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import load_from_string, numpy_helper

from delta.decode import decode
from delta.encode import encode
from tests.delta.models import layer, onnx_of, quantized, tuned

SAMPLES = Path(__file__).parents[2] / "samples"


def zstd19(content: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=19).compress(content))


def round_trip(base: bytes, new: bytes) -> int:
    """Check the way there and back; return the bytes it takes."""
    delta = encode(base, new)
    if delta is None:
        return zstd19(new)
    assert decode(base, delta, len(new)) == new
    return len(delta)


def sample(version: int, form: str) -> bytes:
    return (SAMPLES / f"digits-{version}/digits-int8.{form}").read_bytes()


@pytest.mark.parametrize("form", ["onnx", "tflite"])
@pytest.mark.parametrize(("old", "now"), [(1, 2), (2, 3), (1, 3), (3, 1)])
def test_a_release_of_the_sample_models_takes_fewer_bytes_than_zstd_makes_of_it(form, old, now):
    base, new = sample(old, form), sample(now, form)

    assert round_trip(base, new) < 0.85 * zstd19(new)


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_a_model_that_did_not_change_takes_next_to_nothing(form):
    content = sample(1, form)

    assert round_trip(content, content) < 120


def test_one_format_from_the_other_is_no_worse_than_zstd():
    new = sample(2, "tflite")

    assert round_trip(sample(1, "onnx"), new) <= zstd19(new)


def model(weights: np.ndarray, **others: np.ndarray) -> bytes:
    values, scales = quantized(weights)
    return onnx_of(w=values, w_scale=scales, **others)


def test_an_update_of_few_ranks_takes_a_fraction_of_the_entropy_of_its_differences():
    before = layer(1, 256, 512)
    after = tuned(before, 2, 0.002)
    base, new = model(before), model(after)

    spent = round_trip(base, new)

    differences = quantized(after)[0].astype(int) - quantized(before)[0]
    counts = np.unique(differences, return_counts=True)[1]
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert spent < 0.75 * entropy


def test_new_scales_for_the_same_weights_cost_only_what_rounding_hid():
    weights = layer(1)
    values, scales = quantized(weights)
    coarser = (scales * np.float32(1.07)).astype(np.float32)
    again = np.rint(weights / coarser[:, None]).astype(np.int8)

    spent = round_trip(onnx_of(w=values, w_scale=scales), onnx_of(w=again, w_scale=coarser))

    # What is left of a uniform half is 0.72 bits a weight.
    assert spent < 1.05 * weights.size * 0.72 / 8 + 400


def test_a_new_head_costs_only_the_head():
    body, head = layer(1), layer(2, 10, 96)
    first, scale = quantized(body)

    def whole(last: np.ndarray) -> bytes:
        values, scales = quantized(last)
        return onnx_of(w=first, w_scale=scale, head=values, head_scale=scales)

    assert round_trip(whole(head), whole(tuned(head, 3, 0.01))) < head.size


def test_tensors_that_moved_or_came_or_went_are_found_by_name():
    weights = layer(1)
    values, scales = quantized(weights)
    after, after_scales = quantized(tuned(weights, 2, 0.001))
    gone = np.random.default_rng(4).integers(-99, 99, 3000, np.int8)
    base = onnx_of(gone=gone, w=values, w_scale=scales)

    straight = round_trip(onnx_of(w=values, w_scale=scales), onnx_of(w=after, w_scale=after_scales))
    moved = round_trip(base, onnx_of(w_scale=after_scales, w=after, came=gone[:40]))

    assert moved < straight + 200


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int16, np.int32, np.uint8])
def test_weights_of_every_kind_come_back_and_cost_no_more_than_zstd(kind):
    before = layer(1) * (1 if np.issubdtype(kind, np.floating) else 500)
    after = tuned(before, 2, 0.001)
    offset = 128 if kind is np.uint8 else 0
    base, new = (onnx_of(w=(array + offset).astype(kind)) for array in (before, after))

    assert round_trip(base, new) <= 1.01 * zstd19(new)


def test_asymmetric_weights_are_rescaled_about_their_zero_points():
    weights = np.abs(layer(1))

    def asymmetric(scale: float, zero: int) -> bytes:
        values = np.rint(weights / scale + zero).clip(0, 255).astype(np.uint8)
        made = load_from_string(onnx_of(w=values, w_scale=np.array(scale, np.float32)))
        made.graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), "zero"))
        made.graph.node[0].input.append("zero")
        return made.SerializeToString(deterministic=True)

    spent = round_trip(asymmetric(0.002, 20), asymmetric(0.0018, 5))

    assert spent < weights.size * 0.8 / 8 + 400


@settings(max_examples=60, deadline=None)
@given(base=st.binary(max_size=3000), new=st.binary(max_size=3000))
def test_files_that_are_no_models_come_back(base, new):
    round_trip(base, new)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(["onnx", "tflite"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=40)), min_size=1, max_size=6),
    shorten=st.integers(0, 4000),
)
def test_models_that_were_mutilated_come_back(form, cuts, shorten):
    base, new = sample(1, form), bytearray(sample(2, form))
    for where, what in cuts:
        at = int(where * len(new))
        new[at : at + len(what)] = what
    del new[len(new) - shorten :]

    round_trip(base, bytes(new))
    round_trip(bytes(new), base)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 600),
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 10.0]),
    scales=st.sampled_from([0.0, 1e-30, 1.0, np.inf, np.nan]),
)
@example(rows=35, columns=118, seed=0, size=0.1, scales=0.0)
@example(rows=35, columns=118, seed=0, size=0.1, scales=np.nan)
def test_any_shape_size_of_update_and_scale_come_back(rows, columns, seed, size, scales):
    before = layer(seed, rows, columns)
    old, old_scales = quantized(before)
    now, now_scales = quantized(tuned(before, seed, size))
    now_scales[0] = scales

    round_trip(onnx_of(w=old, w_scale=old_scales), onnx_of(w=now, w_scale=now_scales))
