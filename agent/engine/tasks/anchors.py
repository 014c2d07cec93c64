"""The anchors that a detector's boxes are counted from."""

import math
from pathlib import Path

import numpy as np

from agent.engine.runtimes import Array
from wire.task import Anchors

MAX_ANCHORS_BYTES = 16 * 1024 * 1024


def grid(given: Anchors, width: int, height: int) -> Array:
    """Return the anchors of all layers, FP32 (anchors, 4): centre x and y, width and height.

    Layer by layer, in a layer row by row, in a cell one for every aspect ratio and then the
    interpolated one; layers of one stride share their cells. The scales rise evenly from the
    first layer to the last.

    Source: Liu et al. 2016, "SSD: Single shot multibox detector", 2.2.
    """
    layers = len(given.strides)
    rise = (given.max_scale - given.min_scale) / max(1, layers - 1)
    scales = [given.min_scale + rise * layer for layer in range(layers)]
    if layers == 1:
        scales = [(given.min_scale + given.max_scale) / 2]
    scales.append(1.0)
    parts = []
    layer = 0
    while layer < layers:
        stride = given.strides[layer]
        sizes: list[tuple[float, float]] = []
        while layer < layers and given.strides[layer] == stride:
            sizes += _sizes(given, scales[layer], scales[layer + 1])
            layer += 1
        parts.append(
            _cells(given.offset, sizes, math.ceil(width / stride), math.ceil(height / stride))
        )
    return np.concatenate(parts)


def read_anchors(path: str | Path) -> Array:
    """Return the anchors in a .npy file, FP32 (anchors, 4); without sizes all are 1 wide and high.

    Raises:
        ValueError: it is no such file.
    """
    size = Path(path).stat().st_size
    if size > MAX_ANCHORS_BYTES:
        raise ValueError(f"expected at most {MAX_ANCHORS_BYTES} bytes, got {size}")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"expected anchors as NumPy .npy: {error}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.shape[1] not in (2, 4):
        raise ValueError(f"expected anchors (n, 2 or 4), got {getattr(found, 'shape', 'no array')}")
    if found.dtype.kind != "f" or not np.isfinite(found).all():
        raise ValueError(f"expected finite floats, got {found.dtype}")
    anchors: Array = np.ones((len(found), 4), np.float32)
    anchors[:, : found.shape[1]] = found
    return anchors


def _sizes(given: Anchors, scale: float, next_scale: float) -> list[tuple[float, float]]:
    wanted = [(scale, ratio) for ratio in given.aspect_ratios]
    if given.interpolated_aspect_ratio is not None:
        wanted.append((math.sqrt(scale * next_scale), given.interpolated_aspect_ratio))
    if given.fixed_size:
        return [(1.0, 1.0)] * len(wanted)
    return [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for size, ratio in wanted]


def _cells(offset: float, sizes: list[tuple[float, float]], columns: int, rows: int) -> Array:
    ys, xs = np.mgrid[:rows, :columns]
    centres = np.stack([(xs + offset) / columns, (ys + offset) / rows], axis=-1).reshape(-1, 2)
    cells = np.repeat(centres, len(sizes), axis=0)
    return np.hstack([cells, np.tile(sizes, (len(centres), 1))]).astype(np.float32)
