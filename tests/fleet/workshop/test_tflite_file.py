"""TensorFlow Lite files tell what they take, answer and need; broken ones are refused."""

import random
import struct

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from fleet.workshop.errors import ArtifactError
from fleet.workshop.tflite_file import read_tflite
from tests.fleet.workshop.models import TFLITE


def read(content):
    return read_tflite("m.tflite", content)


def refusal(content):
    with pytest.raises(ArtifactError) as caught:
        read(content)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("m.tflite: ")
    return text


def unpacked():
    return schema.ModelT.InitFromPackedBuf(TFLITE, 0)


def packed(model):
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor(model, name):
    return next(t for t in model.subgraphs[0].tensors if t.name == name.encode())


def test_a_quantized_model_tells_its_tensors_operators_and_precision():
    model = read(TFLITE)

    assert [(t.name, t.datatype, t.shape) for t in model.inputs] == [
        ("image", "FP32", (-1, 8, 8, 1))
    ]
    assert [(t.name, t.datatype, t.shape) for t in model.outputs] == [
        ("probabilities", "FP32", (-1, 10))
    ]
    assert model.requires.tflite_operators == {
        "CONV_2D": 3,
        "DEQUANTIZE": 2,
        "FULLY_CONNECTED": 5,
        "MAX_POOL_2D": 2,
        "QUANTIZE": 1,
        "SOFTMAX": 2,
    }
    assert model.requires.custom_operators == ()
    assert model.probabilities == {"probabilities"}
    assert model.precision == "int8"


def test_integer_edges_tell_how_they_stand_for_reals():
    model = unpacked()
    graph = model.subgraphs[0]
    graph.inputs = [graph.tensors.index(tensor(model, "image_quantized"))]
    model.signatureDefs = None

    image = read(packed(model)).inputs[0]

    assert (image.name, image.datatype) == ("image_quantized", "INT8")
    assert image.quantization.scale == pytest.approx((16 / 255,))
    assert image.quantization.zero_point == (-128,)
    assert image.quantization.axis is None


def test_scales_of_single_channels_come_with_their_axis():
    model = unpacked()
    graph = model.subgraphs[0]
    graph.outputs = [graph.tensors.index(tensor(model, "conv1"))]

    quantization = read(packed(model)).outputs[0].quantization

    assert len(quantization.scale) == len(quantization.zero_point) == 16
    assert quantization.axis == 0


def test_names_of_the_signature_stand_for_those_of_the_converter():
    model = unpacked()
    tensor(model, "image").name = b"serving_default_image:0"

    assert read(packed(model)).inputs[0].name == "image"


def test_a_fixed_batch_is_told_as_fixed():
    model = unpacked()
    tensor(model, "image").shapeSignature = None

    assert read(packed(model)).inputs[0].shape == (1, 8, 8, 1)


def test_custom_and_unknown_operators_are_named():
    model = unpacked()
    custom, unknown = schema.OperatorCodeT(), schema.OperatorCodeT()
    custom.deprecatedBuiltinCode = custom.builtinCode = schema.BuiltinOperator.CUSTOM
    custom.customCode, custom.version = "TFLite_Detection_PostProcess", 1
    unknown.deprecatedBuiltinCode, unknown.builtinCode, unknown.version = 127, 9999, 7
    model.operatorCodes += [custom, unknown]

    requires = read(packed(model)).requires

    assert requires.custom_operators == ("TFLite_Detection_PostProcess",)
    assert requires.tflite_operators["BUILTIN_9999"] == 7
    assert "CUSTOM" not in requires.tflite_operators


def test_every_truncation_is_refused():
    for length in range(len(TFLITE)):
        refusal(TFLITE[:length])


def test_random_bytes_and_other_files_are_refused():
    noise = random.Random(2)

    for size in (*range(1, 100), 1000, 100_000):
        refusal(noise.randbytes(size))
        refusal(noise.randbytes(4) + b"TFL3" + noise.randbytes(size))
    refusal(b"PK\x03\x04" + bytes(100))


def test_flipped_bytes_are_read_or_refused_and_nothing_else():
    noise = random.Random(3)

    for _ in range(5000):
        content = bytearray(TFLITE)
        limit = noise.choice([1500, len(content)])
        for _ in range(noise.choice([1, 2, 8, 64])):
            content[noise.randrange(8, limit)] = noise.randrange(256)
        try:
            read(bytes(content))
        except ArtifactError as error:
            assert "\n" not in str(error)
        except ValueError as error:
            # What a manifest cannot say is refused a layer up, with the file's name.
            assert "validation error for TensorSpec" in str(error)


def test_a_vector_that_claims_four_billion_entries_is_refused_at_once():
    content = bytearray(TFLITE)
    root = struct.unpack_from("<I", content, 0)[0]
    vtable = root - struct.unpack_from("<i", content, root)[0]
    subgraphs = root + struct.unpack_from("<H", content, vtable + 4 + 2 * 2)[0]
    vector = subgraphs + struct.unpack_from("<I", content, subgraphs)[0]
    struct.pack_into("<I", content, vector, 2**32 - 1)

    assert "wanted" in refusal(bytes(content))


def test_another_schema_version_is_refused():
    model = unpacked()
    model.version = 4

    assert "expected schema version 3, got 4" in refusal(packed(model))


def test_references_to_nothing_are_refused():
    for break_it in (
        lambda model: setattr(model.subgraphs[0], "outputs", [99]),
        lambda model: setattr(model.subgraphs[0].operators[0], "opcodeIndex", 99),
        lambda model: setattr(model.subgraphs[0].operators[0], "inputs", [-2]),
        lambda model: setattr(model.subgraphs[0].tensors[0], "buffer", 99),
        lambda model: setattr(model.signatureDefs[0].inputs[0], "tensorIndex", 99),
        lambda model: setattr(model, "subgraphs", []),
    ):
        model = unpacked()
        break_it(model)
        refusal(packed(model))


def test_weights_shorter_than_their_shape_are_refused():
    model = unpacked()
    buffer = model.buffers[tensor(model, "dense").buffer]
    buffer.data = np.asarray(buffer.data)[:-1]

    assert "1280 bytes wanted, 1279 there" in refusal(packed(model))


def test_weights_further_down_the_file_have_to_be_there():
    model = unpacked()
    buffer = model.buffers[tensor(model, "dense").buffer]
    weights = bytes(buffer.data)
    # Offsets of this length leave the layout as it is, whatever their value.
    buffer.data, buffer.offset, buffer.size = None, 2**20, len(weights)
    buffer.offset = len(packed(model))
    content = packed(model) + weights

    assert read(content).precision == "int8"
    for cut in (1, 100, len(weights)):
        assert "wanted" in refusal(content[:-cut])


def test_a_model_without_outputs_is_refused():
    model = unpacked()
    model.subgraphs[0].outputs = []

    assert "expected at least one input and one output, got 1 and 0" in refusal(packed(model))


def test_types_that_no_app_can_send_are_refused():
    model = unpacked()
    tensor(model, "image").type = schema.TensorType.COMPLEX64

    assert "got COMPLEX64" in refusal(packed(model))
