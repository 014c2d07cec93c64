"""The edges of a graph: real numbers to a tensor's own type and back."""

from typing import Any

import numpy as np

from agent.engine.runtimes import Array, CannotRunError
from agent.engine.tensors import DTYPES
from wire.manifest import Quantization, TensorSpec
from wire.twin import Reason


def to_tensor(reals: Array, spec: TensorSpec) -> Array:
    """Return real numbers as the tensor `spec` takes them: quantized, rounded, clipped."""
    dtype = DTYPES[spec.datatype]
    if dtype.kind not in "iu":
        return reals.astype(dtype)
    if spec.quantization is not None:
        scale, zero_point = _along(spec.quantization, reals.ndim)
        reals = reals / scale + zero_point
    bounds = np.iinfo(dtype)
    return np.clip(np.rint(reals), bounds.min, bounds.max).astype(dtype)


def to_reals(array: Array, spec: TensorSpec) -> Array:
    """Return a tensor as FP32: dequantized where it is quantized."""
    reals: Array = array.astype(np.float32)
    if spec.quantization is not None and array.dtype.kind in "iu":
        scale, zero_point = _along(spec.quantization, array.ndim)
        reals = ((reals - zero_point) * scale).astype(np.float32)
    return reals


def whole(spec: TensorSpec) -> TensorSpec:
    """Return `spec` when it has one scale for all its elements.

    Raises:
        CannotRunError: it has several.
    """
    if spec.quantization is not None and len(spec.quantization.scale) > 1:
        raise CannotRunError(
            Reason.BAD_MANIFEST,
            f"input {spec.name}: expected one scale, got {len(spec.quantization.scale)}; its task "
            "cannot quantize by slices",
        )
    return spec


def _along(given: Quantization, ndim: int) -> tuple[Any, Any]:
    """Return scale and zero point in a form that numpy spreads along their axis."""
    shape = [1] * ndim
    if given.axis is not None and len(given.scale) > 1:
        shape[given.axis] = -1
    scale = np.array(given.scale, np.float64).reshape(shape if ndim else ())
    zero_point = np.array(given.zero_point, np.float64)
    return scale, zero_point.reshape(shape) if zero_point.size > 1 else zero_point.reshape(-1)[:1]
