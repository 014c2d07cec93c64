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
