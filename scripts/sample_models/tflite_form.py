"""The network as TensorFlow Lite: a float flatbuffer, then int8 inside with float edges."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from numpy.typing import NDArray

from sample_models.digits import CLASSES
from sample_models.network import Weights

SIGNATURE = "serving_default"
FILE_IDENTIFIER = b"TFL3"
_RELU = schema.ActivationFunctionType.RELU
_NONE = schema.ActivationFunctionType.NONE
_OPERATORS = {
    "conv": (schema.BuiltinOperator.CONV_2D, schema.BuiltinOptions.Conv2DOptions),
    "pool": (schema.BuiltinOperator.MAX_POOL_2D, schema.BuiltinOptions.Pool2DOptions),
    "dense": (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOptions.FullyConnectedOptions),
    "softmax": (schema.BuiltinOperator.SOFTMAX, schema.BuiltinOptions.SoftmaxOptions),
}
# The versions in which these operators took int8 with one scale a channel, which is what
# the runtime of an old device must know; the quantizer leaves the float versions.
_INT8_VERSIONS = {
    schema.BuiltinOperator.CONV_2D: 3,
    schema.BuiltinOperator.MAX_POOL_2D: 2,
    schema.BuiltinOperator.FULLY_CONNECTED: 5,
    schema.BuiltinOperator.SOFTMAX: 2,
    schema.BuiltinOperator.DEQUANTIZE: 2,
}


class Builder:
    """Collects tensors, buffers and operators of one subgraph."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "digits"
        self.model.buffers = [schema.BufferT()]  # buffer 0 is empty by convention
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.name = "main"
        self.graph.tensors = []
        self.graph.operators = []
        self._codes: dict[str, int] = {}

    def tensor(self, name: str, shape: tuple[int, ...]) -> int:
        """Add an activation; its first dimension is the batch, which may be resized."""
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, schema.TensorType.FLOAT32, 0
        tensor.shape, tensor.shapeSignature, tensor.hasRank = [1, *shape], [-1, *shape], True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, name: str, value: NDArray[np.float32]) -> int:
        """Add a weight."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.astype("<f4").tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.shape = name, schema.TensorType.FLOAT32, list(value.shape)
        tensor.buffer, tensor.hasRank = len(self.model.buffers) - 1, True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, kind: str, options: object, inputs: list[int], output: int) -> int:
        """Add an operator and return its output tensor."""
        builtin, options_type = _OPERATORS[kind]
        if kind not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = builtin
            code.version = 1
            self._codes[kind] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes[kind]
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptionsType, operator.builtinOptions = options_type, options
        self.graph.operators.append(operator)
        return output

    def finish(self, given: tuple[str, int], answer: tuple[str, int]) -> bytes:
        """Close the graph with one input and one output, named also by a signature."""
        self.graph.inputs, self.graph.outputs = [given[1]], [answer[1]]
        self.model.subgraphs = [self.graph]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs, signature.outputs = [_named(*given)], [_named(*answer)]
        self.model.signatureDefs = [signature]
        return _packed(self.model)


def _named(name: str, tensor: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def _packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(64 * 1024)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def conv() -> schema.Conv2DOptionsT:
    """Return the options of a convolution that keeps the size, with a ReLU."""
    options = schema.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = schema.Padding.SAME, _RELU
    options.strideW = options.strideH = 1
    options.dilationWFactor = options.dilationHFactor = 1
    return options


def pool() -> schema.Pool2DOptionsT:
    """Return the options of 2 x 2 maxima."""
    options = schema.Pool2DOptionsT()
    options.padding, options.fusedActivationFunction = schema.Padding.VALID, _NONE
    options.strideW = options.strideH = options.filterWidth = options.filterHeight = 2
    return options


def dense(*, relu: bool) -> schema.FullyConnectedOptionsT:
    """Return the options of a dense layer."""
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _RELU if relu else _NONE
    return options


def softmax() -> schema.SoftmaxOptionsT:
    """Return the options of a plain softmax."""
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return options


def float_model(weights: Weights) -> bytes:
    """Return the float model: `image` (batch, 8, 8, 1) to `probabilities` (batch, 10)."""
    build = Builder()

    def layer(kind: str, options: object, name: str, given: int, shape: tuple[int, ...]) -> int:
        # Weights: one filter an output channel, channels last.
        kernel = weights[name] if kind == "dense" else weights[name].transpose(0, 2, 3, 1)
        kernel = kernel.reshape(CLASSES, -1) if kind == "dense" else kernel
        bias = weights[f"{name}_bias"]
        inputs = [given, build.constant(name, kernel), build.constant(f"{name}_bias", bias)]
        return build.operator(kind, options, inputs, build.tensor(f"{name}_out", shape))

    image = build.tensor("image", (8, 8, 1))
    last = layer("conv", conv(), "conv1", image, (8, 8, 16))
    last = layer("conv", conv(), "conv2", last, (8, 8, 24))
    last = build.operator("pool", pool(), [last], build.tensor("pool2", (4, 4, 24)))
    last = layer("conv", conv(), "conv3", last, (4, 4, 32))
    last = build.operator("pool", pool(), [last], build.tensor("pool3", (2, 2, 32)))
    last = layer("dense", dense(relu=False), "dense", last, (CLASSES,))
    answer = build.tensor("probabilities", (CLASSES,))
    build.operator("softmax", softmax(), [last], answer)
    return build.finish(("image", image), ("probabilities", answer))


def int8_model(weights: Weights, images: NDArray[np.float32]) -> bytes:
    """Return the model in int8, float at its edges, with ranges seen on `images`."""
    return quantized(float_model(weights), images)


def quantized(model: bytes, images: NDArray[np.float32]) -> bytes:
    """Return a float model in int8, float at its edges, with ranges seen on `images`."""
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
    )
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        recipe.add_quantization_config(
            regex=".*",
            operation_name=edge,
            algorithm_key=recipe_manager.AlgorithmName.NO_QUANTIZE,
        )
    maker = quantizer.Quantizer(model, recipe.get_quantization_recipe())
    # All images at once: from single ones the quantizer would average their ranges and clip.
    ranges = maker.calibrate({SIGNATURE: [{"image": images}]}, num_threads=1)
    result = maker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return _tidied(bytes(result.quantized_model))


def _tidied(content: bytes) -> bytes:
    """Set what the quantizer leaves out: operator versions, the output's name, the free batch."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # the quantizer puts large ones behind the flatbuffer
            data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.data, buffer.offset, buffer.size = data, 0, 0
    for code in model.operatorCodes:
        code.version = max(code.version, _INT8_VERSIONS.get(code.builtinCode, 1))
    graph = model.subgraphs[0]
    answer = graph.tensors[graph.outputs[0]]
    for tensor in graph.tensors:
        if tensor is not answer and tensor.name == b"probabilities":
            tensor.name = b"probabilities_int8"
    answer.name = b"probabilities"
    for tensor in graph.tensors:
        weights = model.buffers[tensor.buffer].data
        if weights is None or not len(weights):
            tensor.shapeSignature = [-1, *tensor.shape[1:]]
    return _packed(model)
