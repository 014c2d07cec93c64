"""ONNX files tell what they take, answer and need; broken ones are refused in one line."""

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet.workshop.errors import ArtifactError
from fleet.workshop.onnx_file import read_onnx
from tests.fleet.workshop.models import ONNX, dense, external, graph_of, model_of, value
from wire.manifest import Quantization


def read(model):
    return read_onnx("m.onnx", model if isinstance(model, bytes) else model.SerializeToString())


def refusal(model):
    with pytest.raises(ArtifactError) as caught:
        read(model)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("m.onnx: ")
    return text


def test_a_quantized_model_tells_its_tensors_opset_and_precision():
    model = read(ONNX)

    assert [(t.name, t.datatype, t.shape) for t in model.inputs] == [
        ("image", "FP32", (-1, 8, 8, 1))
    ]
    assert [(t.name, t.datatype, t.shape) for t in model.outputs] == [
        ("probabilities", "FP32", (-1, 10))
    ]
    assert model.requires.onnx_ir == 8
    assert model.requires.onnx_opsets == {"": 13}
    assert model.requires.custom_operators == ()
    assert model.probabilities == {"probabilities"}
    assert model.precision == "int8"


def test_float_weights_and_no_softmax_are_seen():
    model = read(dense(softmax=False))

    assert model.precision == "float32"
    assert model.probabilities == frozenset()


def test_a_softmax_spelled_out_is_seen():
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("ReduceSum", ["e"], ["sum"], keepdims=1),
        helper.make_node("Div", ["e", "sum"], ["y"]),
        helper.make_node("Div", ["x", "sum"], ["z"]),
    ]
    graph = graph_of(nodes, [value("x", ["n", 3])], [value("y", ["n", 3]), value("z", ["n", 3])])

    assert read(model_of(graph)).probabilities == {"y"}


def test_initializers_listed_as_inputs_are_not_asked_of_apps():
    proto = dense()
    proto.graph.input.append(value("w", [4, 3]))

    assert [tensor.name for tensor in read(proto).inputs] == ["x"]


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.STRING, "BYTES"),
    ],
)
def test_element_types_carry_their_protocol_names(kind, datatype):
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = graph_of([node], [value("x", [2, None], kind)], [value("y", [2, None], kind)])

    assert [(t.datatype, t.shape) for t in read(model_of(graph)).inputs] == [(datatype, (2, -1))]


def test_integer_edges_tell_how_they_stand_for_reals():
    parameters = [
        numpy_helper.from_array(np.float32(0.5), "in_scale"),
        numpy_helper.from_array(np.uint8(128), "in_zero"),
        numpy_helper.from_array(np.array([0.25, 0.125], np.float32), "out_scale"),
        numpy_helper.from_array(np.array([0, -1], np.int8), "out_zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "in_scale", "in_zero"], ["real"]),
        helper.make_node("QuantizeLinear", ["real", "out_scale", "out_zero"], ["y"], axis=1),
    ]
    graph = graph_of(
        nodes,
        [value("x", [1, 2], TensorProto.UINT8)],
        [value("y", [1, 2], TensorProto.INT8)],
        parameters,
    )

    model = read(model_of(graph))

    assert model.inputs[0].quantization == Quantization(scale=(0.5,), zero_point=(128,))
    assert model.outputs[0].quantization == Quantization(
        scale=(0.25, 0.125), zero_point=(0, -1), axis=1
    )


def test_domains_and_operators_that_no_runtime_brings_are_named():
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Sparkle", ["a"], ["y"], domain="acme"),
    ]
    graph = graph_of(nodes, [value("x", [1])], [value("y", [1])])

    requires = read(model_of(graph, opsets=(("", 17), ("com.microsoft", 1), ("acme", 3)))).requires

    assert requires.onnx_opsets == {"": 17, "com.microsoft": 1, "acme": 3}
    assert requires.custom_operators == ("acme::Sparkle",)


def test_functions_that_the_model_defines_are_not_custom_operators():
    function = helper.make_function(
        "acme", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x"], ["y"], domain="acme")
    graph = graph_of([node], [value("x", [1])], [value("y", [1])])

    model = read(model_of(graph, opsets=(("", 17), ("acme", 1)), functions=[function]))

    assert model.requires.custom_operators == ()


def test_every_truncation_is_refused():
    """Every length near the end and the beginning, and a thousand between."""
    middle = random.Random(1).sample(range(len(ONNX)), 1000)

    for length in {*range(200), *middle, *range(len(ONNX) - 200, len(ONNX))}:
        refusal(ONNX[:length])


def test_a_truncation_between_two_opsets_is_refused():
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], domain="com.microsoft"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    graph = graph_of(nodes, [value("x", [1])], [value("y", [1])])
    content = model_of(graph, opsets=(("", 17), ("com.microsoft", 1))).SerializeToString()

    for length in range(len(content)):
        refusal(content[:length])


def test_random_bytes_and_other_files_are_refused():
    noise = random.Random(2)

    for size in (*range(1, 100), 1000, 100_000):
        refusal(noise.randbytes(size))
    refusal(b"\x89PNG\r\n\x1a\n" + bytes(100))
    refusal(b"<!DOCTYPE html><html></html>")


def test_flipped_bytes_are_read_or_refused_and_nothing_else():
    noise = random.Random(3)

    for _ in range(1500):
        content = bytearray(ONNX)
        for _ in range(noise.choice([1, 2, 8, 64])):
            content[noise.randrange(len(content))] = noise.randrange(256)
        try:
            read(bytes(content))
        except ArtifactError as error:
            assert "\n" not in str(error)


def test_weights_shorter_than_their_shape_are_refused():
    proto = dense()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]

    assert "raw_data size (44 bytes) is too small" in refusal(proto)


def test_an_operator_without_its_inputs_is_refused():
    proto = dense()
    del proto.graph.node[1].input[:]

    assert "expected a valid ONNX model" in refusal(proto)


def test_a_value_that_nothing_makes_is_refused():
    proto = dense()
    del proto.graph.node[0]

    refusal(proto)


def with_external_initializer():
    proto = dense()
    external(proto.graph.initializer[0])
    return proto


def constant(tensor):
    return helper.make_node("Constant", [], ["c"], value=tensor)


def some_tensor():
    return numpy_helper.from_array(np.ones(4, np.float32), "hidden")


def with_external_attribute():
    add = helper.make_node("Add", ["x", "c"], ["y"])
    graph = graph_of([constant(external(some_tensor())), add], [value("x", [4])], [value("y", [4])])
    return model_of(graph)


def with_external_data_in_a_branch():
    branches = [
        graph_of([constant(tensor)], [], [value("c", [4])])
        for tensor in (some_tensor(), external(some_tensor()))
    ]
    node = helper.make_node("If", ["x"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return model_of(graph_of([node], [value("x", [], TensorProto.BOOL)], [value("y", [4])]))


def with_external_data_in_a_function():
    function = helper.make_function(
        "acme", "Hide", ["a"], ["b"],
        [constant(external(some_tensor())), helper.make_node("Add", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Hide", ["x"], ["y"], domain="acme")
    graph = graph_of([node], [value("x", [4])], [value("y", [4])])
    return model_of(graph, opsets=(("", 17), ("acme", 1)), functions=[function])


def with_external_sparse_values():
    proto = dense()
    indices = numpy_helper.from_array(np.array([0], np.int64), "places")
    sparse = helper.make_sparse_tensor(external(some_tensor()), indices, [4])
    proto.graph.sparse_initializer.append(sparse)
    return proto


@pytest.mark.parametrize(
    "make",
    [
        with_external_initializer,
        with_external_attribute,
        with_external_data_in_a_branch,
        with_external_data_in_a_function,
        with_external_sparse_values,
    ],
)
def test_external_data_is_refused_wherever_it_hides(make):
    text = refusal(make())

    assert "an ONNX model with external data cannot be pushed" in text
    assert "onnx.save(model, path, save_as_external_data=False)" in text


def test_what_onnx_itself_saves_with_external_data_is_refused(tmp_path):
    path = tmp_path / "big.onnx"
    weights = np.zeros((4, 600), np.float32)
    onnx.save(dense(classes=600, weights=weights), path, save_as_external_data=True)

    assert "external data for 'w'" in refusal(path.read_bytes())


def test_outputs_that_are_maps_are_refused_with_the_way_out():
    proto = dense()
    of_maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    )
    zipmap = helper.make_node(
        "ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
    )
    proto.graph.node.append(zipmap)
    proto.graph.output[0].CopyFrom(helper.make_value_info("z", of_maps))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))

    text = refusal(proto)

    assert "'z': expected a tensor, got a sequence" in text
    assert "zipmap" in text


def test_types_that_no_app_can_send_are_refused():
    kind = TensorProto.BFLOAT16
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = graph_of([node], [value("x", [1], kind)], [value("y", [1], kind)])

    assert "got BFLOAT16" in refusal(model_of(graph))


def test_a_model_without_inputs_is_refused():
    graph = graph_of([constant(some_tensor())], [], [value("c", [4])])

    assert "expected at least one input, got none" in refusal(model_of(graph))
