"""Finds the constant tensors of a TensorFlow Lite file, with no need of any package for it.

Field numbers follow schema.fbs, version 3. Quantization scales are tensors here too, named after
the tensor they belong to.
"""

import math
import struct
from dataclasses import dataclass

from delta.formats import Place, Tensor, UnreadableModelError

_ELEMENTS = {0: "f4", 1: "i2", 2: "i4", 3: "u1", 7: "i2", 9: "i1", 15: "i4", 16: "u2"}
_WIDTHS = {"i1": 1, "u1": 1, "i2": 2, "u2": 2, "i4": 4, "f4": 4}


def read_tflite(content: bytes) -> list[Tensor]:
    """Return the constant tensors of all subgraphs.

    Raises:
        UnreadableModelError: not a TensorFlow Lite file, or cut.
    """
    if content[4:8] != b"TFL3":
        raise UnreadableModelError("expected TFL3 at byte 4")
    try:
        return _tensors(_Reader(content))
    except struct.error as error:
        raise UnreadableModelError(str(error)) from error


class _Reader:
    """Bounds-checked access; every read is paid from a budget, so that loops end."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._left = 1000 + 4 * len(content)

    def number(self, code: str, at: int) -> int:
        self._left -= 1
        if at < 0 or self._left < 0:
            raise UnreadableModelError(f"byte {at} wanted, or more than a file can hold")
        return int(struct.unpack_from(f"<{code}", self.content, at)[0])

    def field(self, table: int, slot: int) -> int | None:
        vtable = table - self.number("i", table)
        if 4 + 2 * slot >= self.number("H", vtable):
            return None
        offset = self.number("H", vtable + 4 + 2 * slot)
        return table + offset if offset else None

    def scalar(self, table: int, slot: int, code: str) -> int:
        at = self.field(table, slot)
        return 0 if at is None else self.number(code, at)

    def follow(self, at: int) -> int:
        return at + self.number("I", at)

    def table(self, table: int, slot: int) -> int | None:
        at = self.field(table, slot)
        return None if at is None else self.follow(at)

    def vector(self, table: int, slot: int, width: int) -> Place:
        at = self.table(table, slot)
        if at is None:
            return Place(0, 0)
        place = Place(at + 4, self.number("I", at) * width)
        if place.offset + place.length > len(self.content):
            raise UnreadableModelError(f"{place.length} bytes at {place.offset} wanted")
        return place

    def tables(self, table: int, slot: int) -> list[int]:
        place = self.vector(table, slot, 4)
        return [self.follow(at) for at in range(place.offset, place.offset + place.length, 4)]

    def numbers(self, table: int, slot: int, code: str) -> list[int]:
        width = struct.calcsize(code)
        place = self.vector(table, slot, width)
        return [
            self.number(code, at) for at in range(place.offset, place.offset + place.length, width)
        ]


@dataclass
class _Quantization:
    scales: Place
    zero_point: int | None
    axis: int


def _tensors(reader: _Reader) -> list[Tensor]:
    model = reader.follow(0)
    buffers = [_data(reader, buffer) for buffer in reader.tables(model, 4)]
    found: list[Tensor] = []
    for number, graph in enumerate(reader.tables(model, 2)):
        tables = reader.tables(graph, 0)
        scale_names = [f"{number}/{place}/scale" for place in range(len(tables))]
        factors = _bias_factors(reader, graph, scale_names)
        for place, table in enumerate(tables):
            found += _tensor(reader, table, buffers, f"{number}/{place}", factors.get(place))
    return found


def _data(reader: _Reader, buffer: int) -> Place:
    """Return the data of a buffer, in the table or further down in the file."""
    offset, size = reader.scalar(buffer, 1, "Q"), reader.scalar(buffer, 2, "Q")
    if offset <= 1:
        return reader.vector(buffer, 0, 1)
    if offset + size > len(reader.content):
        raise UnreadableModelError(f"{size} bytes at {offset} wanted")
    return Place(offset, size)


def _bias_factors(reader: _Reader, graph: int, scales: list[str]) -> dict[int, tuple[str, str]]:
    """Return, for biases, the scales of weights and input that quantizers multiply."""
    factors = {}
    for operator in reader.tables(graph, 3):
        inputs = reader.numbers(operator, 1, "i")
        if len(inputs) == 3 and all(0 <= tensor < len(scales) for tensor in inputs):
            given, weights, bias = inputs
            factors[bias] = (scales[weights], scales[given])
    return factors


def _tensor(
    reader: _Reader,
    table: int,
    buffers: list[Place],
    name: str,
    factors: tuple[str, str] | None,
) -> list[Tensor]:
    """Return a tensor and its scales, whatever of them there is."""
    quantization = _quantization(reader, table)
    found = []
    if quantization.scales.length:
        count = quantization.scales.length // 4
        found.append(
            Tensor(f"{name}/scale", quantization.scales, "f4", (count,), 0, factors=factors)
        )
    element = _ELEMENTS.get(reader.scalar(table, 1, "b"))
    shape = tuple(reader.numbers(table, 0, "i"))
    buffer = reader.scalar(table, 2, "I")
    data = buffers[buffer] if buffer < len(buffers) else Place(0, 0)
    if element is None or not data.length or data.length != math.prod(shape) * _WIDTHS[element]:
        return found
    known = quantization.scales.length > 0 and quantization.zero_point is not None
    text = reader.vector(table, 3, 1)
    label = reader.content[text.offset : text.offset + text.length].decode("utf-8", "replace")
    found.append(
        Tensor(
            label or name,
            data,
            element,
            shape,
            quantization.axis if 0 <= quantization.axis < len(shape) else 0,
            f"{name}/scale" if known else None,
            quantization.zero_point or 0,
        )
    )
    return found


def _quantization(reader: _Reader, table: int) -> _Quantization:
    parameters = reader.table(table, 4)
    if parameters is None:
        return _Quantization(Place(0, 0), None, 0)
    zero_points = set(reader.numbers(parameters, 3, "q"))
    return _Quantization(
        reader.vector(parameters, 2, 4),
        None if len(zero_points) > 1 else max(zero_points, default=0),
        reader.scalar(parameters, 6, "i"),
    )
