"""Tensors as apps send them: JSON or bytes, checked against what the model expects."""

import math
import struct
from array import array as packed_array
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.engine.runtimes import DATATYPE_OF, Array
from wire.manifest import TensorSpec

DTYPES: dict[str, np.dtype[Any]] = {name: dtype for dtype, name in DATATYPE_OF.items()}
"""Open Inference Protocol name -> NumPy element type; BYTES is not among them."""

FEW = 1024
_LENGTH = struct.Struct("<I")


class TensorError(ValueError):
    """What an app sent is not the tensor that the model expects; the message says why."""


def check_shape(spec: TensorSpec, shape: Any) -> tuple[int, ...]:
    """Return `shape` as a tuple when `spec` allows it.

    Raises:
        TensorError: it is no list of positive integers, or one that does not fit.
    """
    if isinstance(shape, list) and len(shape) == len(spec.shape):
        for want, size in zip(spec.shape, shape, strict=True):
            if type(size) is not int or size < 1 or want not in (-1, size):
                break
        else:
            return tuple(shape)
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise TensorError(
            f"input {spec.name}: shape: expected positive integers, got {_short(shape)}"
        )
    raise TensorError(
        f"input {spec.name}: shape: expected {list(spec.shape)} (-1: any size), got {_short(shape)}"
    )


def from_json(
    spec: TensorSpec, shape: tuple[int, ...], data: Any, *, finite_only: bool = False
) -> Array:
    """Return the tensor that JSON numbers, flat or nested as `shape`, stand for.

    Raises:
        TensorError: ragged, of another size, of another kind or out of range; with
            `finite_only` also NaN and infinity, which Python writes into what it calls JSON.
    """
    if spec.datatype == "BYTES":
        return _texts(spec, shape, data)
    if isinstance(data, np.ndarray) and data.size == math.prod(shape):
        return _cast(spec, data, shape, finite_only=finite_only)
    if spec.datatype == "FP32" and (packed := _pack(shape, data)) is not None:
        return packed
    try:
        plain = np.array(data)
    except (ValueError, OverflowError) as error:
        raise TensorError(f"input {spec.name}: data: expected numbers, got ragged lists") from error
    if plain.size != math.prod(shape) or (plain.ndim > 1 and plain.shape != shape):
        raise TensorError(
            f"input {spec.name}: data: expected {math.prod(shape)} values in shape {list(shape)}, "
            f"got {plain.size} in {list(plain.shape)}"
        )
    return _cast(spec, plain.ravel(), shape, finite_only=finite_only)


def _pack(shape: tuple[int, ...], data: Any) -> Array | None:
    """Return flat FP32 numbers sooner than NumPy finds out what they are; None: ask NumPy."""
    count = math.prod(shape)
    if type(data) is not list or len(data) != count or type(data[0]) is not float:
        return None
    try:
        if count <= FEW:
            packed = struct.pack(f"={count}f", *data)
            finite = math.isfinite(sum(data))
            return np.frombuffer(packed, np.float32).reshape(shape) if finite else None
        many: Array = np.frombuffer(packed_array("f", data), np.float32).reshape(shape)
    except (struct.error, TypeError, OverflowError):
        return None
    # What is too large for the type has become infinity.
    return many if all_finite(many) else None


def nested_from_json(spec: TensorSpec, data: Any) -> Array:
    """Return the tensor that nested JSON lists stand for; their nesting is its shape.

    Raises:
        TensorError: as `check_shape` and `from_json`.
    """
    shape: list[int] = []
    level = data
    while isinstance(level, list) and len(shape) < len(spec.shape) + 1:
        shape.append(len(level))
        level = level[0] if level else None
    return from_json(spec, check_shape(spec, shape), data)


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], raw: memoryview) -> Array:
    """Return the tensor in `raw`: row-major, little-endian; BYTES are u32 length + bytes.

    Raises:
        TensorError: of another size.
    """
    if spec.datatype == "BYTES":
        return _texts(spec, shape, _split(spec, raw))
    dtype = DTYPES[spec.datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise TensorError(
            f"input {spec.name}: expected {expected} bytes for {spec.datatype} "
            f"{list(shape)}, got {len(raw)}"
        )
    if spec.datatype == "BOOL" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise TensorError(f"input {spec.name}: expected bytes of 0 or 1 for BOOL")
    array: Array = np.frombuffer(raw, dtype).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
    return array


def to_bytes(array: Array) -> bytes:
    """Return a tensor as it travels: row-major, little-endian; BYTES as u32 length + bytes."""
    if array.dtype.kind != "O":
        return array.tobytes()
    texts = [_encoded(text) for text in array.ravel()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def to_list(array: Array) -> list[Any]:
    """Return the elements, flat and row-major, as JSON values."""
    flat: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "O":
        return [_encoded(text).decode(errors="replace") for text in flat]
    return flat


def all_finite(array: Array) -> bool:
    """Whether there is no NaN and no infinity."""
    flat = array.ravel()
    # A sum of squares is finite only if all of them are, and quick; where it is too large for its
    # type, each is looked at.
    return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(flat).all())


def check_finite(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
    """Check that there is no NaN and no infinity.

    Raises:
        TensorError: there is; the message names the tensor and the place.
    """
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype.kind == "f" and not all_finite(array):
            flat = array.ravel()
            place = int(np.argmin(np.isfinite(flat)))
            indices = [int(index) for index in np.unravel_index(place, array.shape)]
            raise TensorError(
                f"input {spec.name}: expected finite numbers, got {flat[place]} at {indices}"
            )


def highest(array: Array, count: int, labels: Sequence[str]) -> Array:
    """Return the `count` highest values of every row as texts, `value:index` or with `:label`.

    The first dimension of several is the rows. Of equal values the earlier comes first.

    Raises:
        TensorError: one of them is NaN.
    """
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise TensorError("the answer holds NaN, which is neither high nor low")
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    # Of unsigned integers the negative is no smaller: sort ascending, backwards, from behind.
    order = np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    order = rows.shape[1] - 1 - order
    texts = [
        _described(rows[row, place], int(place), labels)
        for row, places in enumerate(order)
        for place in places
    ]
    shape = order.shape if array.ndim > 1 else order.shape[1:]
    return np.array(texts, dtype=object).reshape(shape)


def _described(value: Any, place: int, labels: Sequence[str]) -> str:
    label = f":{labels[place]}" if place < len(labels) else ""
    return f"{value}:{place}{label}"


def same_batch(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
    """Check that tensors with a variable first dimension agree in it.

    Raises:
        TensorError: they do not.
    """
    if len(specs) == 1:
        return
    rows = {
        spec.name: array.shape[0]
        for spec, array in zip(specs, arrays, strict=True)
        if spec.shape and spec.shape[0] == -1
    }
    if len(set(rows.values())) > 1:
        raise TensorError(f"inputs: expected one batch size, got {rows}")


def _cast(spec: TensorSpec, plain: Array, shape: tuple[int, ...], *, finite_only: bool) -> Array:
    dtype = DTYPES[spec.datatype]
    safe = _SAFE_SQUARES.get(spec.datatype)
    if safe is not None and plain.dtype.kind == "f" and np.dot(plain, plain) <= safe:
        return plain.astype(dtype).reshape(shape)
    kinds, wanted = _KINDS[dtype.kind]
    if plain.dtype.kind not in kinds:
        raise TensorError(
            f"input {spec.name}: data: expected {wanted} for {spec.datatype}, "
            f"got {_short(plain[:1].tolist())}"
        )
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        low, high = int(plain.min()), int(plain.max())
        if low < bounds.min or high > bounds.max:
            raise TensorError(
                f"input {spec.name}: data: expected {spec.datatype} from {bounds.min} "
                f"to {bounds.max}, got {low if low < bounds.min else high}"
            )
    with np.errstate(over="ignore"):
        array: Array = plain.astype(dtype).reshape(shape)
    if dtype.kind == "f" and not all_finite(array):
        lost = np.isfinite(plain.astype(np.float64)) & ~np.isfinite(array.ravel())
        if lost.any():
            raise TensorError(
                f"input {spec.name}: data: expected numbers that {spec.datatype} can hold, "
                f"got {plain[np.argmax(lost)]}"
            )
        if finite_only:
            check_finite((spec,), (array,))
    return array


_SAFE_SQUARES = {name: float(np.finfo(DTYPES[name]).max) ** 2 for name in ("FP16", "FP32")}
"""A sum of squares up to which no number is too large for the type, nor NaN."""

_KINDS = {
    "b": ("b", "true and false"),
    "i": ("iu", "integers"),
    "u": ("iu", "integers"),
    "f": ("fiu", "numbers"),
}


def _texts(spec: TensorSpec, shape: tuple[int, ...], data: Any) -> Array:
    flat = np.array(data, dtype=object).reshape(-1)
    if flat.size != math.prod(shape) or not all(isinstance(text, str) for text in flat):
        raise TensorError(
            f"input {spec.name}: data: expected {math.prod(shape)} strings, got {_short(data)}"
        )
    return flat.reshape(shape)


def _split(spec: TensorSpec, raw: memoryview) -> list[str]:
    texts, at = [], 0
    while at < len(raw):
        end = at + _LENGTH.size
        length = _LENGTH.unpack_from(raw, at)[0] if end <= len(raw) else len(raw)
        if end + length > len(raw):
            raise TensorError(f"input {spec.name}: expected u32 length + bytes, got a cut element")
        try:
            texts.append(str(raw[end : end + length], "utf-8"))
        except UnicodeDecodeError as error:
            raise TensorError(f"input {spec.name}: expected UTF-8 text: {error}") from error
        at = end + length
    return texts


def _encoded(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
