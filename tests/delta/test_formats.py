"""The places of tensors are where the packages that know the formats say they are."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from delta.encode import tensors_of
from delta.formats import Tensor, UnreadableModelError
from delta.onnx_file import read_onnx
from delta.tflite_file import read_tflite

SAMPLES = Path(__file__).parents[2] / "samples/digits-1"
ONNX = (SAMPLES / "digits-int8.onnx").read_bytes()
TFLITE = (SAMPLES / "digits-int8.tflite").read_bytes()


def content_of(tensor: Tensor, content: bytes) -> np.ndarray:
    kind = f"<{tensor.element}"
    count = tensor.place.length // np.dtype(kind).itemsize
    return np.frombuffer(content, kind, count, tensor.place.offset).reshape(tensor.shape)


def test_every_initializer_that_lies_open_in_an_onnx_file_is_found():
    found = {tensor.name: tensor for tensor in read_onnx(ONNX)}

    graph = onnx.load_from_string(ONNX).graph
    open_ones = [held for held in graph.initializer if not held.int32_data]
    assert found.keys() == {held.name for held in open_ones}
    for held in open_ones:
        expected = numpy_helper.to_array(held)
        assert np.array_equal(content_of(found[held.name], ONNX), expected), held.name


def test_an_onnx_weight_knows_its_scales_and_a_bias_scale_what_it_is_the_product_of():
    found = {tensor.name: tensor for tensor in read_onnx(ONNX)}

    weight = found["conv2_quantized"]
    assert (weight.scale, weight.axis, weight.zero_point) == ("conv2_scale", 0, 0)
    bias = content_of(found["conv2_bias_quantized_scale"], ONNX)
    many, one = found["conv2_bias_quantized_scale"].factors
    assert np.array_equal(bias, content_of(found[many], ONNX) * content_of(found[one], ONNX))


def test_every_constant_of_a_tflite_file_is_found_with_its_scales():
    found = {tensor.name: tensor for tensor in read_tflite(TFLITE)}

    model = tflite.Model.GetRootAs(TFLITE)
    graph = model.Subgraphs(0)
    for place in range(graph.TensorsLength()):
        tensor = graph.Tensors(place)
        scales = tensor.Quantization() and tensor.Quantization().ScaleAsNumpy()
        if isinstance(scales, np.ndarray):
            assert np.array_equal(content_of(found[f"0/{place}/scale"], TFLITE), scales)
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if isinstance(data, np.ndarray):
            mine = found[tensor.Name().decode()]
            assert TFLITE[mine.place.offset :][: mine.place.length] == data.tobytes()
            assert mine.shape == tuple(tensor.ShapeAsNumpy())
            assert mine.scale == f"0/{place}/scale"


@pytest.mark.parametrize(("read", "content"), [(read_onnx, ONNX), (read_tflite, TFLITE)])
@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=5
    ),
    length=st.integers(0, 20_000),
)
def test_a_broken_model_is_refused_or_has_its_tensors_inside(read, content, changes, length):
    broken = bytearray(content[:length])
    for at, value in changes:
        if broken:
            broken[at % len(broken)] = value

    try:
        found = read(bytes(broken))
    except UnreadableModelError:
        return

    for tensor in found:
        assert 0 <= tensor.place.offset <= len(broken) - tensor.place.length
        content_of(tensor, bytes(broken))


@given(content=st.binary(max_size=300))
def test_what_is_no_model_has_no_tensors_or_some_inside(content):
    for tensor in tensors_of(content):
        assert tensor.place.offset + tensor.place.length <= len(content)
