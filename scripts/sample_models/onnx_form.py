"""The network as ONNX: a float graph, then int8 inside by static QDQ quantization."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from sample_models.digits import CLASSES
from sample_models.network import Weights

OPSET = 13
"""The first with per-channel QuantizeLinear: the older the opset, the more runtimes load it."""
IR = 8


def float_model(weights: Weights) -> onnx.ModelProto:
    """Return the float model: `image` (batch, 8, 8, 1) to `probabilities` (batch, 10)."""
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    node = helper.make_node
    nodes = [
        node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        node("Conv", ["planes", "conv1", "conv1_bias"], ["c1"], **same),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "conv2", "conv2_bias"], ["c2"], **same),
        node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["p2"], **pool),
        node("Conv", ["p2", "conv3", "conv3_bias"], ["c3"], **same),
        node("Relu", ["c3"], ["r3"]),
        node("MaxPool", ["r3"], ["p3"], **pool),
        node("Flatten", ["p3"], ["features"]),
        node("Gemm", ["features", "dense", "dense_bias"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    # Flatten sees channels first here, the weights come with channels last.
    planes_first = weights | {"dense": weights["dense"].transpose(0, 3, 1, 2).reshape(CLASSES, -1)}
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in planes_first.items()],
    )
    model = helper.make_model(
        graph,
        ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="farflung",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _OneBatch(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.float32]) -> None:
        self._batches = iter([{"image": images}])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


def int8_model(weights: Weights, images: NDArray[np.float32]) -> bytes:
    """Return the model in int8, float at its edges, with ranges seen on `images`."""
    return quantized(float_model(weights), images)


def quantized(original: onnx.ModelProto, images: NDArray[np.float32]) -> bytes:
    """Return a float model in int8, float at its edges, with ranges seen on `images`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        quantize_static(
            original,
            path,
            _OneBatch(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(path)
    model.producer_name, model.producer_version = "farflung", ""
    del model.metadata_props[:]  # the quantizer's note to itself
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
