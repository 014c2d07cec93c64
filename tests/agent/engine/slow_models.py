"""Models whose runs take as long as their input says."""

import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from onnx import TensorProto, helper, numpy_helper

from tests.agent.engine.models import CLASSES, FEATURES, GOOD, TflitePlan, onnx_bytes

WIDTH = 256
LAYERS = 100


def onnx_looper() -> bytes:
    """Return the good classifier after a loop of as many turns as the largest feature says."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["held", "held"], ["held_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_on", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
            helper.make_node("Loop", ["turns", "yes", "zero"], ["nothing"], body=body),
            helper.make_node("MatMul", ["x", "w"], ["scores"]),
            helper.make_node("Add", ["scores", "nothing"], ["y"]),
        ],
        "looper",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(GOOD, "w"),
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    return onnx_bytes(graph)


def onnx_widener() -> bytes:
    """Return the good classifier with some 400 KB on the way for every row."""
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["x", "last"], ["tall"]),
            helper.make_node("MatMul", ["tall", "row"], ["wide"]),
            helper.make_node("Tanh", ["wide"], ["bent"]),
            helper.make_node("ReduceMax", ["bent"], ["most"], axes=[2], keepdims=0),
            helper.make_node("Mul", ["most", "zero"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["same"]),
            helper.make_node("MatMul", ["same", "w"], ["y"]),
        ],
        "widener",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(GOOD, "w"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.ones((1, 25_000), np.float32), "row"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    return onnx_bytes(graph)


def tflite_plodder() -> bytes:
    """Return a deep and wide TFLite model: milliseconds a row, so that many rows take minutes."""
    plan = TflitePlan()
    float32 = tfl.TensorType.FLOAT32
    rng = np.random.default_rng(1)

    def dense(name: str, given: int, made: int, values: int, weights: int | None = None) -> int:
        if weights is None:
            table = rng.normal(size=(made, given)).astype(np.float32) / WIDTH
            weights = plan.tensor(f"{name}/w", float32, [made, given], data=table)
        out = plan.tensor(name, float32, [1, made], dynamic=True)
        plan.operator(
            tfl.BuiltinOperator.FULLY_CONNECTED,
            tfl.FullyConnectedOptionsT(),
            tfl.BuiltinOptions.FullyConnectedOptions,
            [values, weights, -1],
            [out],
        )
        return out

    x = plan.tensor("x", float32, [1, FEATURES], dynamic=True)
    values = dense("wide", FEATURES, WIDTH, x)
    table = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH
    shared = plan.tensor("shared/w", float32, [WIDTH, WIDTH], data=table)
    for layer in range(LAYERS):
        values = dense(f"deep{layer}", WIDTH, WIDTH, values, shared)
    y = dense("y", WIDTH, CLASSES, values)
    return plan.finish([x], [y])
