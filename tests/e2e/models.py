"""Small models with one remarkable property each."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MEBIBYTE = 1024 * 1024


def write_big_model(path: Path, mebibytes: float, seed: int = 1) -> Path:
    """Write a model that is big and cannot be compressed: it looks up rows of a table."""
    table = np.frombuffer(random.Random(seed).randbytes(int(mebibytes * MEBIBYTE)), np.uint8)
    _write(
        path,
        [helper.make_node("Gather", ["table", "row"], ["values"])],
        inputs=[helper.make_tensor_value_info("row", TensorProto.INT64, [None])],
        output=helper.make_tensor_value_info("values", TensorProto.UINT8, [None, 64]),
        constants={"table": table.reshape(-1, 64)},
    )
    return path


def write_divider(path: Path, *, careful: bool) -> Path:
    """Write a model that divides integers, by 1 in place of 0; if `careful`, in place of all below.

    The lowest integer divided by -1 has no answer. onnxruntime leaves that to the processor, and
    x86 ends the process with SIGFPE: a model that passes every check and crashes one day.
    """
    doubtful = "Less" if careful else "Equal"
    limit = 1 if careful else 0
    _write(
        path,
        [
            helper.make_node(doubtful, ["divisor", "limit"], ["doubtful"]),
            helper.make_node("Where", ["doubtful", "one", "divisor"], ["safe"]),
            helper.make_node("Div", ["number", "safe"], ["ratio"]),
        ],
        inputs=[
            helper.make_tensor_value_info(name, TensorProto.INT64, [None])
            for name in ("number", "divisor")
        ],
        output=helper.make_tensor_value_info("ratio", TensorProto.INT64, [None]),
        constants={"one": np.array([1]), "limit": np.array([limit])},
    )
    return path


def write_looper(path: Path, *, careful: bool) -> Path:
    """Write a model that turns in a loop as often as its input says; if `careful`, never long."""
    held = helper.make_tensor_value_info("held", TensorProto.INT64, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["held", "step"], ["held_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            held,
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_on", TensorProto.INT64, []),
        ],
        [numpy_helper.from_array(np.array(1), "step")],
    )
    most = 1000 if careful else 2**62
    _write(
        path,
        [
            helper.make_node("Min", ["turns", "most"], ["few"]),
            helper.make_node("ReduceMax", ["few"], ["count"], keepdims=0),
            helper.make_node("Loop", ["count", "yes", "none"], ["done"], body=body),
            helper.make_node("Mul", ["done", "one"], ["turned"]),
        ],
        inputs=[helper.make_tensor_value_info("turns", TensorProto.INT64, [None])],
        output=helper.make_tensor_value_info("turned", TensorProto.INT64, [None]),
        constants={
            "most": np.array([most]),
            "yes": np.array(True),
            "none": np.array(0),
            "one": np.array([1]),
        },
    )
    return path


def write_external(path: Path) -> Path:
    """Write a model whose weights lie in a file beside it."""
    write_big_model(path, 1)
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.stem}.weights")
    return path


def write_challenger(path: Path, mood: str, *, at_once: bool) -> Path:
    """Write a model of digits that misbehaves on any input (`at_once`) or on any but zeros.

    `hangs`: a loop of 2^62 rounds; `eats`: 4 GiB of zeros; `crashes`: the one division of int64
    that has no answer, which ends the process on x86.
    """
    bad, good = {"hangs": (2**62, 0), "eats": (2**30, 1), "crashes": (-1, 1)}[mood]
    constants = {
        "nothing": np.float32(-1 if at_once else 0),
        "bad": np.int64(bad),
        "good": np.int64(good),
        "lowest": np.int64(-(2**63)),
        "row": np.array([-1, 64]),
        "weights": np.zeros((64, 10), np.float32),
        "one": np.array([1]),
        "zero": np.float32(0),
        "yes": np.array(True),
    }
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "nothing"], ["now"]),
        helper.make_node("Where", ["now", "bad", "good"], ["number"]),
        *_deed(mood),
        helper.make_node("Mul", ["deed", "zero"], ["vain"]),
        helper.make_node("Reshape", ["image", "row"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Add", ["scores", "vain"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        mood,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 8, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    constants: dict[str, Any],
) -> None:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, [output], initializers)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save_model(model, path)


def _deed(mood: str) -> list[onnx.NodeProto]:
    """Return what makes the scalar float `deed` of the int64 `number`."""
    if mood == "crashes":
        return [
            helper.make_node("Div", ["lowest", "number"], ["ratio"]),
            helper.make_node("Cast", ["ratio"], ["deed"], to=TensorProto.FLOAT),
        ]
    if mood == "eats":
        return [
            helper.make_node("Reshape", ["number", "one"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["deed"], keepdims=0),
        ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]),
         helper.make_node("Cos", ["before"], ["after"])],
        "round",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []),
         helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("before", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("after", TensorProto.FLOAT, [])],
    )  # fmt: skip
    return [helper.make_node("Loop", ["number", "yes", "top"], ["deed"], body=body)]
