"""Reads an ONNX file: what it takes, what it answers, what it needs."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from fleet.workshop.errors import ArtifactError
from fleet.workshop.memory import Step, most_alive, peak_bytes
from fleet.workshop.model_file import ModelFile, precision_of
from wire.manifest import Datatype, Quantization, Requires, TensorSpec

_DATATYPES: dict[int, Datatype] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}
_PACKED = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.BFLOAT16: 16}
"""Bits of elements that NumPy has no type for."""

_PRECISIONS = {"float": "float32", "double": "float64"}

_STANDARD = frozenset({"", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators come with onnxruntime."""

_PASSING_ON = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Flatten", "Cast"}
)
_SUMMING_TO_ONE = frozenset({"Softmax", "Normalizer"})


def read_onnx(name: str, content: bytes) -> ModelFile:
    """Read the model in `content`; `name` is the file's, for the error.

    Protobuf has no end mark: a file cut just before a last field that nothing rests on, such as
    the version of a domain without nodes, is a whole model of its own and read as one.

    Raises:
        ArtifactError: not a model, cut, broken, with data in other files, or of a kind that no
            engine here can serve.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        # Before the checker: it would look for the other files.
        _refuse_external_data(name, model)
        if not model.HasField("graph") or not model.graph.node:
            raise _broken(name, "no graph in it")
        onnx.checker.check_model(content)
        return _model_file(name, model)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(name, _one_line(error)) from error
    except onnx.checker.ValidationError as error:
        raise ArtifactError(
            f"{name}: expected a valid ONNX model, got: {_one_line(error)}; export it again"
        ) from error


def _broken(name: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{name}: expected a whole ONNX model, got a cut or broken one: {why}; "
        "copy or export it again"
    )


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        yield from _graphs_of(node)


def _graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            if graph.ByteSize():
                yield from _graphs(graph)


def _all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield from _graphs(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _graphs_of(node)
    for training in model.training_info:
        yield from _graphs(training.initialization)
        yield from _graphs(training.algorithm)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _all_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant: initializers and attributes, of all graphs and functions."""
    for graph in _all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    attributes = [attribute for node in _all_nodes(model) for attribute in node.attribute]
    for function in model.functions:
        attributes.extend(function.attribute_proto)
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)


def _refuse_external_data(name: str, model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ArtifactError(
                f"{name}: expected all weights in one file, got external data for "
                f"{tensor.name[:80]!r}; an ONNX model with external data cannot be pushed: save it "
                "as one file with onnx.save(model, path, save_as_external_data=False)"
            )


def _type_name(data_type: int) -> str:
    known = data_type in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(data_type)) if known else f"type {data_type}"


def _model_file(name: str, model: onnx.ModelProto) -> ModelFile:
    graph = _Graph(name, model)
    functions = {(function.domain, function.name) for function in model.functions}
    custom = {
        f"{node.domain}::{node.op_type}"
        for node in _all_nodes(model)
        if _domain(node.domain) not in _STANDARD and (node.domain, node.op_type) not in functions
    }
    return ModelFile(
        format="onnx",
        requires=Requires(
            onnx_ir=model.ir_version,
            onnx_opsets={
                _domain(opset.domain): opset.version
                for opset in sorted(model.opset_import, key=lambda opset: str(opset.domain))
            },
            custom_operators=tuple(sorted(custom)),
            memory_bytes=_memory(model),
        ),
        inputs=graph.inputs(),
        outputs=graph.outputs(),
        probabilities=graph.probabilities(),
        precision=_precision(model),
    )


def _memory(model: onnx.ModelProto) -> int:
    weights = sum(_bytes_of(tensor.data_type, tensor.dims) for tensor in _tensors(model))
    # What cannot be inferred counts nothing: the weights are most of it anyway.
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = model.graph
    sizes = {
        value.name: _bytes_of(
            value.type.tensor_type.elem_type,
            (max(dimension.dim_value, 1) for dimension in value.type.tensor_type.shape.dim),
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    constants = {tensor.name for tensor in graph.initializer}
    steps = [Step(node.input, node.output) for node in graph.node]
    inputs = [value.name for value in graph.input if value.name not in constants]
    outputs = [value.name for value in graph.output]
    return peak_bytes(weights, most_alive(steps, sizes, inputs, outputs))


def _bytes_of(data_type: int, dims: Iterable[int]) -> int:
    if data_type not in _DATATYPES and data_type not in _PACKED:
        return 0
    bits = _PACKED.get(data_type) or 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    return (math.prod(dims) * bits + 7) // 8


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _precision(model: onnx.ModelProto) -> str:
    elements: Counter[str] = Counter()
    for graph in _all_graphs(model):
        for tensor in graph.initializer:
            text = _type_name(tensor.data_type).lower()
            elements[_PRECISIONS.get(text, text)] += math.prod(tensor.dims)
    return precision_of(elements)


class _Graph:
    """The main graph, indexed by what makes and what takes each value."""

    def __init__(self, file: str, model: onnx.ModelProto) -> None:
        self._file = file
        self._graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {out: node for node in model.graph.node for out in node.output}
        self._takers: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input:
                self._takers.setdefault(node.input[0], node)

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what a caller has to give: the inputs that have no value of their own."""
        given = [value for value in self._graph.input if value.name not in self._constants]
        self._require_some("input", given)
        return tuple(self._tensor(value, self._takers.get(value.name)) for value in given)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return what the model answers."""
        self._require_some("output", list(self._graph.output))
        return tuple(self._tensor(v, self._makers.get(v.name)) for v in self._graph.output)

    def probabilities(self) -> frozenset[str]:
        """Return the outputs whose answers sum to one."""
        names = (value.name for value in self._graph.output)
        return frozenset(name for name in names if self._is_probability(name))

    def _require_some(self, kind: str, values: list[onnx.ValueInfoProto]) -> None:
        if not values:
            raise ArtifactError(
                f"{self._file}: expected at least one {kind}, got none; export the model with one"
            )

    def _tensor(self, value: onnx.ValueInfoProto, quantizer: onnx.NodeProto | None) -> TensorSpec:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise ArtifactError(
                f"{self._file}: {value.name!r}: expected a tensor, got a "
                f"{str(kind).removesuffix('_type')}; export without it (skl2onnx: "
                'options={id(model): {"zipmap": False}})'
            )
        tensor = value.type.tensor_type
        datatype = _DATATYPES.get(tensor.elem_type)
        if datatype is None:
            raise ArtifactError(
                f"{self._file}: {value.name!r}: expected one of {', '.join(_DATATYPES.values())}, "
                f"got {_type_name(tensor.elem_type)}; export the model with another type at its "
                "edges"
            )
        if not tensor.HasField("shape"):
            raise ArtifactError(
                f"{self._file}: {value.name!r}: expected a shape, got none; run "
                "onnx.shape_inference or declare it, and save again"
            )
        return TensorSpec(
            name=value.name,
            datatype=datatype,
            shape=tuple(_size(dimension) for dimension in tensor.shape.dim),
            quantization=self._quantization(quantizer) if datatype in ("INT8", "UINT8") else None,
        )

    def _quantization(self, node: onnx.NodeProto | None) -> Quantization | None:
        """Return what the (de)quantizing node at an edge of the graph says."""
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        parameters = [self._constants.get(parameter) for parameter in node.input[1:3]]
        if not parameters or parameters[0] is None:
            return None
        scale = np.atleast_1d(numpy_helper.to_array(parameters[0])).astype(float)
        zero = np.zeros(scale.shape, int)
        if len(parameters) > 1 and parameters[1] is not None:
            zero = np.atleast_1d(numpy_helper.to_array(parameters[1])).astype(int)
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        return Quantization(
            scale=tuple(scale.ravel().tolist()),
            zero_point=tuple(zero.ravel().tolist()),
            axis=(axes or [1])[0] if scale.size > 1 else None,
        )

    def _is_probability(self, value: str) -> bool:
        for _ in range(len(_PASSING_ON) + 1):
            node = self._makers.get(value)
            if node is None or node.op_type not in _PASSING_ON or not node.input:
                return node is not None and self._sums_to_one(node)
            value = node.input[0]
        return False

    def _sums_to_one(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Div":  # a softmax spelled out, as JAX exports it: exp / sum of exp
            maker = self._makers.get(node.input[0])
            return maker is not None and maker.op_type == "Exp"
        return node.op_type in _SUMMING_TO_ONE


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int:
    known = dimension.WhichOneof("value") == "dim_value" and dimension.dim_value >= 0
    return int(dimension.dim_value) if known else -1
