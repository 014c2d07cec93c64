"""TFLite models, run by ai-edge-litert or by its predecessor tflite-runtime."""

import importlib
import importlib.metadata
from typing import Any

import numpy as np

from agent.engine.runtimes import DATATYPE_OF, MODULES, Array, CannotRunError, Port
from wire.twin import Reason


class TfliteModel:
    """An interpreter, resized whenever the batch changes.

    Only input and output details are ever asked for: on a sparse model tflite-runtime
    crashes when asked for all tensors.

    Raises:
        CannotRunError: a tensor has an element type without a name in the inference protocol.
        Exception: whatever the library raises for a model it cannot open.
    """

    def __init__(self, name: str, path: str, threads: int) -> None:
        self.name = name
        self.version = importlib.metadata.version(name)
        library = importlib.import_module(f"{MODULES[name]}.interpreter")
        self._interpreter = library.Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self.inputs = tuple(_port(detail) for detail in inputs)
        self.outputs = tuple(_port(detail) for detail in outputs)
        self._input_indices = [int(detail["index"]) for detail in inputs]
        self._output_indices = [int(detail["index"]) for detail in outputs]
        self._shapes = [tuple(int(size) for size in detail["shape"]) for detail in inputs]

    def run(self, inputs: list[Array]) -> list[Array]:
        """Return the outputs in the file's order for inputs in the file's order."""
        shapes = [array.shape for array in inputs]
        if shapes != self._shapes:
            self._resize(shapes)
        for index, array in zip(self._input_indices, inputs, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def _resize(self, shapes: list[tuple[int, ...]]) -> None:
        # Until all tensors are allocated again no shape counts as set.
        self._shapes = []
        for index, shape in zip(self._input_indices, shapes, strict=True):
            self._interpreter.resize_tensor_input(index, shape, strict=True)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _port(detail: Any) -> Port:
    datatype = DATATYPE_OF.get(np.dtype(detail["dtype"]))
    if datatype is None:
        raise CannotRunError(
            Reason.LOAD_FAILED,
            f"{detail['name']}: expected numbers, got {np.dtype(detail['dtype'])}",
        )
    signature = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    return Port(str(detail["name"]), datatype, tuple(int(size) for size in shape))
