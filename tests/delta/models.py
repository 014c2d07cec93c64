"""Small model files for tests, put together by hand: no runtime is needed to align tensors."""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.generic]


def quantized(weights: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the weights as int8, one scale a row, as quantizers do."""
    scales = (np.abs(weights).max(axis=1) / 127).astype(np.float32)
    return np.rint(weights / scales[:, None]).clip(-127, 127).astype(np.int8), scales


def onnx_of(**tensors: Array) -> bytes:
    """Return an ONNX file of these initializers; `x_scale`, if there, are the scales of `x`."""
    nodes = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [f"{name}_float"], axis=0)
        for name in tensors
        if f"{name}_scale" in tensors
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph).SerializeToString(deterministic=True)


def layer(seed: int, rows: int = 96, columns: int = 256) -> NDArray[np.float64]:
    """Return the weights of a layer."""
    return np.random.default_rng(seed).normal(0, 0.05, (rows, columns))


def tuned(
    weights: NDArray[np.float64], seed: int, size: float, rank: int = 4
) -> NDArray[np.float64]:
    """Return weights after an update that, as real ones, has few ranks and some noise."""
    random = np.random.default_rng(seed)
    rows, columns = weights.shape
    shared = random.normal(0, 1, (rows, rank)) @ random.normal(0, 1, (rank, columns))
    return weights + size * (shared / np.sqrt(rank) + 0.3 * random.normal(0, 1, weights.shape))
