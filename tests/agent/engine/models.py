"""Tiny real models, built here: one dense layer over 4 features, 3 classes, in both formats."""

from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as tfl
from onnx import TensorProto, helper, numpy_helper

FEATURES = 4
CLASSES = 3

GOOD = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4], [0, 0, 0]], np.float32)
"""Class i answers feature i: input row e_i gives class i."""
ROTATED = np.roll(GOOD, 1, axis=1)
"""Always the next class: wrong wherever GOOD is right."""


def onnx_classifier(weights: np.ndarray[Any, Any] = GOOD, batch: int | str = "n") -> bytes:
    """Return y = x @ weights: x FP32 (batch, 4), logits y FP32 (batch, 3)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    return onnx_bytes(graph)


def onnx_classifier_with(name: str, keep: int) -> bytes:
    """Return the classifier with one more output: the sum of all scores, or (keep 1) of each row.

    Its shape is (), or (batch, 1).
    """
    axes = [numpy_helper.from_array(np.array([1], np.int64), "axes")] if keep else []
    sum_inputs = ["y", "axes"] if keep else ["y"]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ReduceSum", sum_inputs, [name], keepdims=keep),
        ],
        "dense_and_sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES]),
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1] if keep else []),
        ],
        [numpy_helper.from_array(GOOD, "w"), *axes],
    )
    return onnx_bytes(graph)


def onnx_quantized_classifier() -> bytes:
    """Return the classifier with inputs that go through int8 steps of 1/16."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
        "dense_int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(GOOD, "w"),
            numpy_helper.from_array(np.float32(1 / 16), "step"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ],
    )
    return onnx_bytes(graph)


def onnx_half_plus_three() -> bytes:
    """Return y = x / 2 + 3 over FP32 (n,), as in TensorFlow Serving's documentation."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "half"], ["h"]),
            helper.make_node("Add", ["h", "three"], ["y"]),
        ],
        "half_plus_three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.float32(0.5), "half"),
            numpy_helper.from_array(np.float32(3), "three"),
        ],
    )
    return onnx_bytes(graph)


def onnx_slow_classifier(turns: int) -> bytes:
    """Return the classifier with `turns` rounds of a costly matrix product in front."""
    size = 384
    nodes = [helper.make_node("MatMul", ["big", "big"], ["t0"])]
    for turn in range(turns):
        nodes.append(helper.make_node("Tanh", [f"t{turn}"], [f"u{turn}"]))
        nodes.append(helper.make_node("MatMul", [f"u{turn}", "big"], [f"t{turn + 1}"]))
    nodes += [
        helper.make_node("ReduceMax", [f"t{turns}"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "zero"], ["nothing"]),
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Add", ["scores", "nothing"], ["y"]),
    ]
    # The product must depend on the input, or it is folded away when the model is opened.
    nodes.insert(0, helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0))
    nodes.insert(1, helper.make_node("Add", ["noise", "top"], ["big"]))
    noise = np.random.default_rng(1).normal(size=(size, size)).astype(np.float32) / size
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(GOOD, "w"),
            numpy_helper.from_array(noise, "noise"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    return onnx_bytes(graph)


def onnx_text_picker() -> bytes:
    """Return y = the first 3 of 4 texts in every row of x: BYTES (batch, 4)."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "columns"], ["y"], axis=1)],
        "picker",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n", CLASSES])],
        [numpy_helper.from_array(np.arange(CLASSES, dtype=np.int64), "columns")],
    )
    return onnx_bytes(graph)


def onnx_bytes(graph: onnx.GraphProto) -> bytes:
    """Wrap a graph into a model of opset 13."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class TflitePlan:
    """A TFLite graph in the making: tensors, operators, buffers."""

    def __init__(self) -> None:
        self.model = tfl.ModelT()
        self.model.version = 3
        self.model.buffers = [tfl.BufferT()]
        self.model.operatorCodes = []
        self.graph = tfl.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        kind: int,
        shape: list[int],
        *,
        dynamic: bool = False,
        data: np.ndarray[Any, Any] | None = None,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> int:
        made = tfl.TensorT()
        made.name, made.type, made.shape = name.encode(), kind, shape
        if dynamic:
            made.shapeSignature = [-1, *shape[1:]]
        made.buffer = 0
        if data is not None:
            buffer = tfl.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        if scale is not None:
            made.quantization = tfl.QuantizationParametersT()
            made.quantization.scale = [scale]
            made.quantization.zeroPoint = [zero_point]
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def operator(
        self, code: int, options: Any, kind: int, inputs: list[int], outputs: list[int]
    ) -> None:
        opcode = tfl.OperatorCodeT()
        opcode.builtinCode = opcode.deprecatedBuiltinCode = code
        opcode.version = 4 if code == tfl.BuiltinOperator.FULLY_CONNECTED else 1
        self.model.operatorCodes.append(opcode)
        made = tfl.OperatorT()
        made.opcodeIndex = len(self.model.operatorCodes) - 1
        made.inputs, made.outputs = inputs, outputs
        made.builtinOptionsType, made.builtinOptions = kind, options
        self.graph.operators.append(made)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def tflite_classifier(
    weights: np.ndarray[Any, Any] = GOOD, *, dynamic: bool = True, softmax: bool = False
) -> bytes:
    """Return the same layer as TFLite: x FP32 (batch, 4), y FP32 (batch, 3)."""
    plan = TflitePlan()
    float32 = tfl.TensorType.FLOAT32
    x = plan.tensor("x", float32, [1, FEATURES], dynamic=dynamic)
    w = plan.tensor("w", float32, [CLASSES, FEATURES], data=weights.T.copy())
    logits = plan.tensor("logits" if softmax else "y", float32, [1, CLASSES], dynamic=dynamic)
    plan.operator(
        tfl.BuiltinOperator.FULLY_CONNECTED,
        tfl.FullyConnectedOptionsT(),
        tfl.BuiltinOptions.FullyConnectedOptions,
        [x, w, -1],
        [logits],
    )
    if not softmax:
        return plan.finish([x], [logits])
    y = plan.tensor("y", float32, [1, CLASSES], dynamic=dynamic)
    options = tfl.SoftmaxOptionsT()
    options.beta = 1.0
    plan.operator(
        tfl.BuiltinOperator.SOFTMAX, options, tfl.BuiltinOptions.SoftmaxOptions, [logits], [y]
    )
    return plan.finish([x], [y])


def tflite_quantized(weights: np.ndarray[Any, Any] = GOOD) -> bytes:
    """Return the layer in int8: x INT8 (1, 4) scale 1/16, y INT8 (1, 3) scale 1/8."""
    plan = TflitePlan()
    int8 = tfl.TensorType.INT8
    x = plan.tensor("x", int8, [1, FEATURES], scale=1 / 16)
    w = plan.tensor("w", int8, [CLASSES, FEATURES], data=weights.T.astype(np.int8), scale=1.0)
    y = plan.tensor("y", int8, [1, CLASSES], scale=1 / 8)
    plan.operator(
        tfl.BuiltinOperator.FULLY_CONNECTED,
        tfl.FullyConnectedOptionsT(),
        tfl.BuiltinOptions.FullyConnectedOptions,
        [x, w, -1],
        [y],
    )
    return plan.finish([x], [y])


def tflite_adder() -> bytes:
    """Return y = x + x over FP32 (2,)."""
    plan = TflitePlan()
    x = plan.tensor("x", tfl.TensorType.FLOAT32, [2])
    y = plan.tensor("y", tfl.TensorType.FLOAT32, [2])
    plan.operator(
        tfl.BuiltinOperator.ADD, tfl.AddOptionsT(), tfl.BuiltinOptions.AddOptions, [x, x], [y]
    )
    return plan.finish([x], [y])


def onnx_adder() -> bytes:
    """Return y = x + x over FP32 (2,)."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "adder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    return onnx_bytes(graph)
