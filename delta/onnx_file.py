"""Finds the initializers of an ONNX file, with no need of the onnx package.

Field numbers follow onnx.proto. Only bytes that hold little-endian numbers as they are count:
`raw_data`, and packed `float_data`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from delta.formats import Place, Tensor, UnreadableModelError

_ELEMENTS = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 10: "i2", 12: "i4", 16: "i2"}
_FLOAT, _UINT8, _INT8 = 1, 2, 3
_WIDTHS = {"i1": 1, "u1": 1, "i2": 2, "u2": 2, "i4": 4, "f4": 4}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_onnx(content: bytes) -> list[Tensor]:
    """Return the tensors of the main graph, in the order of the file.

    Raises:
        UnreadableModelError: not an ONNX file, or cut.
    """
    graphs = [
        value for number, value in _fields(content, 0, len(content))
        if number == 7 and isinstance(value, Place)
    ]  # fmt: skip
    if len(graphs) != 1:
        raise UnreadableModelError(f"expected one graph, found {len(graphs)}")
    raw: dict[str, _Initializer] = {}
    nodes = []
    for number, value in _fields(content, graphs[0].offset, graphs[0].offset + graphs[0].length):
        if number == 5 and isinstance(value, Place):
            found = _initializer(content, value)
            raw[found.name] = found
        elif number == 1 and isinstance(value, Place):
            nodes.append(_node(content, value))
    return _linked(content, raw, nodes)


@dataclass
class _Initializer:
    name: str = ""
    type: int = 0
    shape: list[int] = field(default_factory=list)
    data: Place | None = None
    integers: bytes = b""

    def size(self) -> int:
        return math.prod(self.shape) * _WIDTHS[_ELEMENTS[self.type]]


@dataclass
class _Node:
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    axis: int = 1


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise UnreadableModelError(f"a number ends at byte {end}")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise UnreadableModelError(f"a number at byte {at} has no end")


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, "int | Place"]]:
    while at < end:
        tag, at = _varint(content, at, end)
        value: int | Place
        if tag & 7 == _VARINT:
            value, at = _varint(content, at, end)
        else:
            if tag & 7 == _BYTES:
                length, at = _varint(content, at, end)
            elif tag & 7 in (_FIXED64, _FIXED32):
                length = 8 if tag & 7 == _FIXED64 else 4
            else:
                raise UnreadableModelError(f"field type {tag & 7} at byte {at}")
            if at + length > end:
                raise UnreadableModelError(f"bytes {at} to {at + length} of {end} wanted")
            value = Place(at, length)
            at += length
        yield tag >> 3, value


def _bytes(content: bytes, place: Place) -> bytes:
    return content[place.offset : place.offset + place.length]


def _text(content: bytes, value: "int | Place") -> str:
    return _bytes(content, value).decode("utf-8", "replace") if isinstance(value, Place) else ""


def _numbers(content: bytes, value: "int | Place") -> list[int]:
    """Return a repeated integer, packed or not."""
    if isinstance(value, int):
        return [value]
    found, at, end = [], value.offset, value.offset + value.length
    while at < end:
        number, at = _varint(content, at, end)
        found.append(number)
    return found


def _initializer(content: bytes, place: Place) -> _Initializer:
    made = _Initializer()
    for number, value in _fields(content, place.offset, place.offset + place.length):
        if number == 1:
            made.shape += _numbers(content, value)
        elif number == 2 and isinstance(value, int):
            made.type = value
        elif number == 8:
            made.name = _text(content, value)
        elif isinstance(value, Place):
            if number == 9 or (number == 4 and made.type in (_FLOAT, 0)):
                made.data = value
            elif number == 5:
                made.integers = _bytes(content, value)
    return made


def _node(content: bytes, place: Place) -> _Node:
    made = _Node()
    for number, value in _fields(content, place.offset, place.offset + place.length):
        if number == 1:
            made.inputs.append(_text(content, value))
        elif number == 2:
            made.outputs.append(_text(content, value))
        elif number == 4:
            made.kind = _text(content, value)
        elif number == 5 and isinstance(value, Place):
            parts = dict(_fields(content, value.offset, value.offset + value.length))
            axis = parts.get(3)
            if _text(content, parts.get(1, 0)) == "axis" and isinstance(axis, int):
                made.axis = axis - (1 << 64) if axis >> 63 else axis
    return made


def _linked(content: bytes, raw: dict[str, _Initializer], nodes: list[_Node]) -> list[Tensor]:
    readers = {
        node.inputs[0]: node
        for node in nodes
        if node.kind == "DequantizeLinear" and len(node.inputs) >= 2
    }
    bias_factors = _bias_factors(nodes, readers)
    tensors = []
    for name, held in raw.items():
        if held.type not in _ELEMENTS or held.data is None or held.data.length != held.size():
            continue
        reader = readers.get(name)
        zero_point: int | None = 0
        if reader is not None and len(reader.inputs) > 2:
            zero_point = _zero_point(content, raw.get(reader.inputs[2]))
        axis = reader.axis if reader is not None else 0
        axis += len(held.shape) if axis < 0 else 0
        tensors.append(
            Tensor(
                name,
                held.data,
                _ELEMENTS[held.type],
                tuple(held.shape),
                axis if axis < len(held.shape) else 0,
                reader.inputs[1] if reader is not None and zero_point is not None else None,
                zero_point or 0,
                bias_factors.get(name),
            )
        )
    return tensors


def _bias_factors(nodes: list[_Node], readers: dict[str, _Node]) -> dict[str, tuple[str, str]]:
    """Return, for scales of biases, the scales of weights and input that quantizers multiply."""
    makers = {output: node for node in readers.values() for output in node.outputs}
    factors = {}
    for node in nodes:
        sources = [makers.get(name) for name in node.inputs[:3]]
        if len(sources) == 3 and all(sources):
            given, weights, bias = (source.inputs[1] for source in sources if source is not None)
            factors[bias] = (weights, given)
    return factors


def _zero_point(content: bytes, held: _Initializer | None) -> int | None:
    """Return the one zero point that all channels share; None when there is no such."""
    if held is None:
        return None
    if held.data is not None:
        values = set(_bytes(content, held.data))
    else:
        values = set(_numbers(held.integers, Place(0, len(held.integers))))
    if len(values) > 1 or (held.type not in (_UINT8, _INT8) and values - {0}):
        return None
    value = values.pop() & 255 if values else 0
    return value - 256 if held.type == _INT8 and value > 127 else value
