"""Models of a known size, made here: what they answer does not matter, what they cost does."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as tfl
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

IMAGE = 224
CLASSES = 1000
# Of every stage: expansion, channels, blocks, stride of the first.
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
LAST_CHANNELS = 1280


def write_image_model(path: Path) -> Path:
    """Write a float model of some convolutions: image FP32 (1, 224, 224, 3), scores (1, 10)."""
    net = _Onnx()
    last = net.node("Transpose", ["image"], perm=[0, 3, 1, 2])
    channels = 3
    for more, stride in ((16, 2), (32, 1), (64, 2), (128, 1), (256, 2)):
        last = net.conv(last, channels, more, 3, stride)
        channels = more
    last = net.node("Flatten", [net.node("GlobalAveragePool", [last])])
    net.node("Softmax", [net.dense(last, channels, 10)], name="scores")
    onnx.save_model(net.model([1, IMAGE, IMAGE, 3], 10), path)
    return path


def write_mobilenet_onnx(path: Path) -> Path:
    """Write MobileNetV2 in int8, float at its edges: image FP32 (1, 224, 224, 3)."""
    net = _Onnx()
    last = net.conv(net.node("Transpose", ["image"], perm=[0, 3, 1, 2]), 3, 32, 3, 2)
    channels = 32
    for expansion, more, blocks, first_stride in MOBILENET_V2:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            wide = channels * expansion
            inner = last if expansion == 1 else net.conv(last, channels, wide, 1)
            inner = net.conv(inner, wide, wide, 3, stride, groups=wide)
            inner = net.conv(inner, wide, more, 1, relu=False)
            last = net.node("Add", [last, inner]) if block else inner
            channels = more
    last = net.conv(last, channels, LAST_CHANNELS, 1)
    last = net.node("Flatten", [net.node("GlobalAveragePool", [last])])
    net.node("Softmax", [net.dense(last, LAST_CHANNELS, CLASSES)], name="scores")
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        onnx.save_model(net.model([1, IMAGE, IMAGE, 3], CLASSES), plain)
        quantize_static(
            plain,
            path,
            _Noise(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    return path


def write_mobilenet_tflite(path: Path) -> Path:
    """Write MobileNetV2 in int8: image INT8 (1, 224, 224, 3), scores INT8 (1, 1000)."""
    net = _Tflite()
    image = net.activation("image", (1, IMAGE, IMAGE, 3))
    size, channels = IMAGE // 2, 32
    last = net.conv(image, size, 3, channels, 3, stride=2)
    for expansion, more, blocks, first_stride in MOBILENET_V2:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            wide = channels * expansion
            inner = last if expansion == 1 else net.conv(last, size, channels, wide, 1)
            size //= stride
            inner = net.depthwise(inner, size, wide, stride)
            inner = net.conv(inner, size, wide, more, 1, relu=False)
            last = net.add(last, inner, size, more) if block else inner
            channels = more
    last = net.conv(last, size, channels, LAST_CHANNELS, 1)
    path.write_bytes(net.finish(image, net.dense(net.mean(last, LAST_CHANNELS), LAST_CHANNELS)))
    return path


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    """Two images of nothing, to see ranges on."""

    def __init__(self) -> None:
        draw = np.random.default_rng(1)
        self._left = [draw.random((1, IMAGE, IMAGE, 3), np.float32) for _ in range(2)]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return {"image": self._left.pop()} if self._left else None


class _Onnx:
    """An ONNX graph in the making, channels first."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._draw = np.random.default_rng(1)

    def node(self, kind: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        """Add a node; return its output."""
        output = name or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv(
        self, given: str, less: int, more: int, kernel: int, stride: int = 1, *,
        groups: int = 1, relu: bool = True,
    ) -> str:  # fmt: skip
        """Add a convolution that keeps the size, but for its stride."""
        weight = self._weight((more, less // groups, kernel, kernel))
        output = self.node(
            "Conv", [given, weight, self._weight((more,))], group=groups,
            kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[kernel // 2] * 4,
        )  # fmt: skip
        return self.node("Relu", [output]) if relu else output

    def dense(self, given: str, less: int, more: int) -> str:
        """Add a dense layer."""
        weights = [self._weight((more, less)), self._weight((more,))]
        return self.node("Gemm", [given, *weights], transB=1)

    def model(self, shape: list[int], classes: int) -> onnx.ModelProto:
        """Close the graph, from `image` to `scores`."""
        graph = helper.make_graph(
            self._nodes,
            "bench",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, classes])],
            self._weights,
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])

    def _weight(self, shape: tuple[int, ...]) -> str:
        name = f"w{len(self._weights)}"
        spread = np.sqrt(2 / max(1, np.prod(shape[1:])))
        values = (self._draw.normal(size=shape) * spread).astype(np.float32)
        self._weights.append(numpy_helper.from_array(values, name))
        return name


class _Tflite:
    """A TFLite graph in the making, int8 throughout: one scale for all that flows."""

    SCALE = 0.05
    WEIGHT_SCALE = 0.01

    def __init__(self) -> None:
        self._draw = np.random.default_rng(1)
        self._model = tfl.ModelT()
        self._model.version, self._model.buffers = 3, [tfl.BufferT()]
        self._model.operatorCodes = []
        self._graph = tfl.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[int, int] = {}

    def activation(self, name: str, shape: tuple[int, ...]) -> int:
        """Add what flows from one operator to the next."""
        return self._tensor(name, tfl.TensorType.INT8, shape, [self.SCALE])

    def conv(
        self, given: int, size: int, less: int, more: int, kernel: int, *, stride: int = 1,
        relu: bool = True,
    ) -> int:  # fmt: skip
        """Add a convolution that keeps the size, but for its stride."""
        options = tfl.Conv2DOptionsT()
        options.strideW = options.strideH = stride
        options.dilationWFactor = options.dilationHFactor = 1
        return self._weighted(
            tfl.BuiltinOperator.CONV_2D, 3, tfl.BuiltinOptions.Conv2DOptions, _relu(options, relu),
            given, shape=(more, kernel, kernel, less), output_shape=(1, size, size, more),
        )  # fmt: skip

    def depthwise(self, given: int, size: int, channels: int, stride: int) -> int:
        """Add a 3 x 3 convolution of every channel alone."""
        options = tfl.DepthwiseConv2DOptionsT()
        options.strideW = options.strideH = stride
        options.dilationWFactor = options.dilationHFactor = options.depthMultiplier = 1
        return self._weighted(
            tfl.BuiltinOperator.DEPTHWISE_CONV_2D, 3, tfl.BuiltinOptions.DepthwiseConv2DOptions,
            _relu(options, True), given, shape=(1, 3, 3, channels), axis=3,
            output_shape=(1, size, size, channels),
        )  # fmt: skip

    def dense(self, given: int, less: int) -> int:
        """Add the last layer."""
        options = tfl.FullyConnectedOptionsT()
        return self._weighted(
            tfl.BuiltinOperator.FULLY_CONNECTED, 4, tfl.BuiltinOptions.FullyConnectedOptions,
            options, given, shape=(CLASSES, less), output_shape=(1, CLASSES), name="scores",
        )  # fmt: skip

    def add(self, one: int, other: int, size: int, channels: int) -> int:
        """Add two activations."""
        output = self.activation(self._name(), (1, size, size, channels))
        options = tfl.AddOptionsT()
        return self._operator(
            tfl.BuiltinOperator.ADD, 2, tfl.BuiltinOptions.AddOptions, options,
            inputs=[one, other], output=output,
        )  # fmt: skip

    def mean(self, given: int, channels: int) -> int:
        """Add the mean over height and width."""
        axes = self._tensor("axes", tfl.TensorType.INT32, (2,), data=np.array([1, 2], np.int32))
        options = tfl.ReducerOptionsT()
        return self._operator(
            tfl.BuiltinOperator.MEAN, 2, tfl.BuiltinOptions.ReducerOptions, options,
            inputs=[given, axes], output=self.activation(self._name(), (1, channels)),
        )  # fmt: skip

    def finish(self, given: int, answer: int) -> bytes:
        """Close the graph."""
        self._graph.inputs, self._graph.outputs = [given], [answer]
        self._model.subgraphs = [self._graph]
        builder = flatbuffers.Builder(8 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _name(self) -> str:
        return f"t{len(self._graph.tensors)}"

    def _weighted(
        self, code: int, version: int, kind: int, options: object, given: int, *,
        shape: tuple[int, ...], axis: int = 0, output_shape: tuple[int, ...], name: str = "",
    ) -> int:  # fmt: skip
        channels = shape[axis]
        weight = self._tensor(
            self._name(), tfl.TensorType.INT8, shape, [self.WEIGHT_SCALE] * channels, axis=axis,
            data=self._draw.integers(-127, 128, shape, np.int8),
        )  # fmt: skip
        bias = self._tensor(
            self._name(), tfl.TensorType.INT32, (channels,),
            [self.SCALE * self.WEIGHT_SCALE] * channels, data=np.zeros(channels, np.int32),
        )  # fmt: skip
        output = self.activation(name or self._name(), output_shape)
        inputs = [given, weight, bias]
        return self._operator(code, version, kind, options, inputs=inputs, output=output)

    def _operator(
        self, code: int, version: int, kind: int, options: object, *, inputs: list[int],
        output: int,
    ) -> int:  # fmt: skip
        if code not in self._codes:
            entry = tfl.OperatorCodeT()
            entry.builtinCode = entry.deprecatedBuiltinCode = code
            entry.version = version
            self._codes[code] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(entry)
        operator = tfl.OperatorT()
        operator.opcodeIndex = self._codes[code]
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptionsType, operator.builtinOptions = kind, options
        self._graph.operators.append(operator)
        return output

    def _tensor(
        self, name: str, kind: int, shape: tuple[int, ...], scales: list[float] | None = None, *,
        axis: int = 0, data: NDArray[Any] | None = None,
    ) -> int:  # fmt: skip
        tensor = tfl.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, list(shape), 0
        if data is not None:
            buffer = tfl.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        if scales is not None:
            tensor.quantization = tfl.QuantizationParametersT()
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = [0] * len(scales)
            tensor.quantization.quantizedDimension = axis
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


def _relu(options: Any, relu: bool) -> Any:
    options.padding = tfl.Padding.SAME
    kinds = tfl.ActivationFunctionType
    options.fusedActivationFunction = kinds.RELU if relu else kinds.NONE
    return options
