"""Real model files for the workshop's tests: the samples, and small ONNX graphs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SAMPLES = Path(__file__).parents[3] / "samples"
DIGITS = SAMPLES / "digits-1"
ONNX = (DIGITS / "digits-int8.onnx").read_bytes()
TFLITE = (DIGITS / "digits-int8.tflite").read_bytes()

FLOAT = TensorProto.FLOAT


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def dense(*, classes=3, batch="n", softmax=True, weights=None):
    """Return a model `x` (batch, 4) -> `y` (batch, classes)."""
    if weights is None:
        weights = np.linspace(-1, 1, 4 * classes, dtype=np.float32).reshape(4, classes)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if not softmax else "logits"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "dense",
        [value("x", [batch, 4])],
        [value("y", [batch, classes])],
        [numpy_helper.from_array(weights, "w")],
    )
    return model_of(graph)


def model_of(graph, *, opsets=(("", 17),), **more):
    return helper.make_model(
        graph,
        ir_version=8,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets],
        **more,
    )


def graph_of(nodes, inputs, outputs, initializers=()):
    return helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))


def external(tensor):
    """Move a tensor's data to another file, in name only."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path
