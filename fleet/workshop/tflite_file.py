"""Reads a TensorFlow Lite file: what it takes, what it answers, what it needs.

Field numbers follow the schema of version 3 (schema.fbs), names of operators and types the
`tflite` package. Every table is visited, so that a file cut anywhere is refused.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import cast

import tflite

from fleet.workshop.errors import ArtifactError
from fleet.workshop.flatbuffer import BrokenBufferError, Buffer, Table
from fleet.workshop.memory import Step, most_alive, peak_bytes
from fleet.workshop.model_file import ModelFile, precision_of
from wire.manifest import Datatype, Quantization, Requires, TensorSpec

IDENTIFIER = b"TFL3"
VERSION = 3

_OPERATORS = {
    number: name for name, number in vars(tflite.BuiltinOperator).items() if name.isupper()
}
_TYPES = {number: name for name, number in vars(tflite.TensorType).items() if name.isupper()}
_DATATYPES: dict[str, Datatype] = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "FLOAT32": "FP32",
    "FLOAT64": "FP64",
    "STRING": "BYTES",
}
_BITS = {
    "BOOL": 8, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "FLOAT16": 16, "BFLOAT16": 16,
    "INT32": 32, "UINT32": 32, "FLOAT32": 32, "INT64": 64, "UINT64": 64, "FLOAT64": 64,
    "COMPLEX64": 64, "COMPLEX128": 128, "INT4": 4,
}  # fmt: skip

_CUSTOM = "CUSTOM"
_PASSING_ON = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "CAST"})


def read_tflite(name: str, content: bytes) -> ModelFile:
    """Read the model in `content`; `name` is the file's, for the error.

    Raises:
        ArtifactError: not a model, cut, broken, or of a kind that no engine here can serve.
    """
    if content[4:8] != IDENTIFIER:
        raise ArtifactError(
            f"{name}: expected a TensorFlow Lite model (TFL3 at byte 4), got {content[4:8]!r}; "
            "push the .tflite file that the converter wrote"
        )
    try:
        return _model(name, Buffer(content).root(), len(content))
    except BrokenBufferError as error:
        raise ArtifactError(
            f"{name}: expected a whole TensorFlow Lite model, got a cut or broken one: {error}; "
            "copy or convert it again"
        ) from error


@dataclass(frozen=True, slots=True)
class _Element:
    """A tensor, its data's size counted and its numbers not yet read."""

    table: Table
    name: str
    type: str
    shape: tuple[int, ...]
    is_constant: bool


@dataclass(frozen=True, slots=True)
class _Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _model(name: str, model: Table, file_bytes: int) -> ModelFile:
    version = model.number(0, "I")
    if version != VERSION:
        raise ArtifactError(
            f"{name}: expected schema version {VERSION}, got {version}; convert the model again"
        )
    operators, custom = _operator_codes(model)
    model.text(3)
    model.count(5, 4)
    buffers = [_buffer_bytes(buffer, file_bytes) for buffer in model.tables(4)]
    for entry in model.tables(6):
        entry.text(0)
        _check_place("buffer", entry.number(1, "I"), len(buffers))
    graphs = [_Graph(graph, list(operators), buffers, file_bytes) for graph in model.tables(2)]
    if not graphs:
        raise BrokenBufferError("no subgraph")
    main = graphs[0]
    aliases = _signature(model, graphs)
    inputs = tuple(main.tensor(name, place, aliases) for place in main.inputs)
    outputs = tuple(main.tensor(name, place, aliases) for place in main.outputs)
    if not inputs or not outputs:
        raise ArtifactError(
            f"{name}: expected at least one input and one output, got {len(inputs)} and "
            f"{len(outputs)}; convert the model with both"
        )
    weights: Counter[str] = Counter()
    for graph in graphs:
        weights.update(graph.weights())
    return ModelFile(
        format="tflite",
        requires=Requires(
            tflite_operators={
                operator: max(number for other, number in operators if other == operator)
                for operator in sorted({operator for operator, _ in operators} - {_CUSTOM})
            },
            custom_operators=tuple(sorted(custom)),
            memory_bytes=peak_bytes(sum(buffers), max(graph.most_alive() for graph in graphs)),
        ),
        inputs=inputs,
        outputs=outputs,
        probabilities=frozenset(
            output.name
            for output, place in zip(outputs, main.outputs, strict=True)
            if main.is_probability(place)
        ),
        precision=precision_of(weights),
    )


def _operator_codes(model: Table) -> tuple[list[tuple[str, int]], set[str]]:
    """Return name and version of every operator code, and the names of the custom ones."""
    codes = []
    custom = set()
    for code in model.tables(1):
        # Files from before 2020 have the number in one byte, later ones in four.
        number = max(code.number(0, "b"), code.number(3, "i"))
        operator = _OPERATORS.get(number, f"BUILTIN_{number}")
        codes.append((operator, code.number(2, "i", default=1)))
        text = code.text(1)
        if operator == _CUSTOM:
            custom.add(text)
    return codes, custom


def _buffer_bytes(buffer: Table, file_bytes: int) -> int:
    """Return how many bytes a buffer holds, in the table or further down in the file."""
    inside = buffer.count(0, 1)
    offset, size = buffer.number(1, "Q"), buffer.number(2, "Q")
    if offset <= 1:
        return inside
    if offset + size > file_bytes:
        raise BrokenBufferError(f"bytes {offset} to {offset + size} of {file_bytes} wanted")
    return size


def _check_place(kind: str, place: int, count: int) -> None:
    if not 0 <= place < count:
        raise BrokenBufferError(f"{kind} {place} of {count} wanted")


def _signature(model: Table, graphs: list["_Graph"]) -> dict[int, str]:
    """Return the names that the first signature of subgraph 0 gives to tensors."""
    found: dict[int, str] = {}
    for signature in model.tables(7):
        graph = signature.number(4, "I")
        _check_place("subgraph", graph, len(graphs))
        signature.text(2)
        names = {}
        for entry in (*signature.tables(0), *signature.tables(1)):
            tensor = entry.number(1, "I")
            _check_place("tensor", tensor, len(graphs[graph].elements))
            names[tensor] = entry.text(0)
        if graph == 0 and not found:
            found = names
    return found


class _Graph:
    """One subgraph, every table of it visited and every reference checked."""

    def __init__(
        self, graph: Table, codes: list[tuple[str, int]], buffers: list[int], file_bytes: int
    ) -> None:
        graph.text(4)
        self.elements = [_element(table, buffers) for table in graph.tables(0)]
        self.inputs = self._places(graph.numbers(1, "i"))
        self.outputs = self._places(graph.numbers(2, "i"))
        self._steps: list[Step[int]] = []
        self._makers: dict[int, _Operator] = {}
        for table in graph.tables(3):
            operator = self._operator(table, codes, file_bytes)
            self._steps.append(Step(operator.inputs, operator.outputs))
            self._makers |= dict.fromkeys(operator.outputs, operator)

    def _places(self, places: tuple[int, ...], *, optional: bool = False) -> tuple[int, ...]:
        for place in places:
            if not (optional and place == -1):
                _check_place("tensor", place, len(self.elements))
        return places

    def _operator(self, table: Table, codes: list[tuple[str, int]], file_bytes: int) -> _Operator:
        code = table.number(0, "I")
        _check_place("operator code", code, len(codes))
        table.table(4)
        table.table(12)
        table.count(5, 1)
        table.count(7, 1)
        self._places(table.numbers(8, "i"), optional=True)
        if table.number(9, "Q") + table.number(10, "Q") > file_bytes:
            raise BrokenBufferError(f"options of {codes[code][0]} lie outside of the file")
        return _Operator(
            codes[code][0],
            self._places(table.numbers(1, "i"), optional=True),
            self._places(table.numbers(2, "i"), optional=True),
        )

    def weights(self) -> Counter[str]:
        """Return how many constant elements there are of each type."""
        counts: Counter[str] = Counter()
        for element in self.elements:
            if element.is_constant:
                counts[element.type.lower()] += math.prod(element.shape)
        return counts

    def most_alive(self) -> int:
        """Return the most bytes of tensors needed at one time; of any size counts as one row."""
        sizes = {
            place: (math.prod(max(size, 1) for size in element.shape) * bits + 7) // 8
            for place, element in enumerate(self.elements)
            if not element.is_constant and (bits := _BITS.get(element.type))
        }
        return most_alive(self._steps, sizes, self.inputs, self.outputs)

    def tensor(self, file: str, place: int, aliases: dict[int, str]) -> TensorSpec:
        """Return an input or output of the model."""
        element = self.elements[place]
        name = aliases.get(place) or element.name or f"tensor_{place}"
        datatype = _DATATYPES.get(element.type)
        if datatype is None:
            raise ArtifactError(
                f"{file}: tensor {name!r}: expected one of {', '.join(_DATATYPES)}, got "
                f"{element.type}; convert the model with another type at its edges"
            )
        table = element.table
        shape = tuple(table.numbers(7, "i")) or element.shape
        return TensorSpec(
            name=name,
            datatype=datatype,
            shape=tuple(max(size, -1) for size in shape),
            quantization=_quantization(table),
        )

    def is_probability(self, place: int) -> bool:
        """Return whether a tensor is a softmax, perhaps in another form."""
        for _ in range(len(_PASSING_ON) + 1):
            maker = self._makers.get(place)
            if maker is None or maker.name not in _PASSING_ON or not maker.inputs:
                return maker is not None and maker.name == "SOFTMAX"
            place = maker.inputs[0]
        return False


def _element(table: Table, buffers: list[int]) -> _Element:
    shape = table.numbers(0, "i")
    type_ = _TYPES.get(table.number(1, "b"), "UNKNOWN")
    buffer = table.number(2, "I")
    name = table.text(3)
    _check_place("buffer", buffer, len(buffers))
    _visit_quantization(table)
    sparse = _visit_sparsity(table)
    table.count(7, 4)
    for variant in table.tables(9):
        variant.count(0, 4)
    held = buffers[buffer]
    if held and not sparse and type_ in _BITS:
        wanted = (math.prod(shape) * _BITS[type_] + 7) // 8
        if min(shape, default=0) < 0 or held != wanted:
            raise BrokenBufferError(
                f"tensor {name!r} of shape {list(shape)}: {wanted} bytes wanted, {held} there"
            )
    return _Element(table, name, type_, cast(tuple[int, ...], shape), held > 0)


def _visit_quantization(table: Table) -> None:
    parameters = table.table(4)
    if parameters is not None:
        for slot in (0, 1, 2):
            parameters.count(slot, 4)
        parameters.count(3, 8)
        parameters.table(5)


def _visit_sparsity(table: Table) -> bool:
    sparsity = table.table(6)
    if sparsity is None:
        return False
    sparsity.count(0, 4)
    sparsity.count(1, 4)
    for dimension in sparsity.tables(2):
        dimension.table(3)
        dimension.table(5)
    return True


def _quantization(table: Table) -> Quantization | None:
    parameters = table.table(4)
    if parameters is None or parameters.count(2, 4) == 0:
        return None
    scale, zero_point = parameters.numbers(2, "f"), parameters.numbers(3, "q")
    if len(zero_point) not in (0, len(scale)) or not all(math.isfinite(s) for s in scale):
        raise BrokenBufferError(f"{len(scale)} scales and {len(zero_point)} zero points")
    return Quantization(
        scale=scale,
        zero_point=zero_point or (0,) * len(scale),
        axis=parameters.number(6, "i") if len(scale) > 1 else None,
    )
