"""TFLite models, run by ai-edge-litert or by its predecessor tflite-runtime."""

import ctypes
import importlib
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from agent.engine.runtimes import DATATYPE_OF, MODULES, Array, CannotRunError, Port
from agent.engine.runtimes.accelerators import configured, one_line
from wire.twin import Reason

_MAKES_DELEGATES = "tflite_plugin_create_delegate"


class TfliteModel:
    """An interpreter, resized whenever the batch changes.

    Only input and output details are ever asked for: on a sparse model tflite-runtime
    crashes when asked for all tensors.

    Raises:
        CannotRunError: a tensor has an element type without a name in the inference protocol.
        Exception: whatever the library raises for a model it cannot open.
    """

    interrupt = None
    """Nothing ends a run but the end of the process."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        self.name = name
        library = importlib.import_module(f"{MODULES[name]}.interpreter")
        # What importlib.metadata would say, for 2 MB less.
        package = importlib.import_module(MODULES[name])
        self.version = str(getattr(package, "__version__", "unknown"))
        # Not by its path: the file would stay mapped, and one that is cut short in place would
        # end the process the next time a weight is read.
        self._content = content_of(path)
        self._interpreter, self.fallback = self._open(library, threads)
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

    def _open(self, library: Any, threads: int) -> tuple[Any, str]:
        """Return an interpreter, and why it is not on the delegates that are configured."""
        delegates, why = load_delegates(library)
        if delegates:
            try:
                interpreter = self._interpreter_with(library, threads, delegates)
            except Exception as error:
                why.append(f"{', '.join(delegates)}: {one_line(error)}")
            else:
                self.version += f" on {', '.join(Path(name).name for name in delegates)}"
                return interpreter, "; ".join(why)
        return self._interpreter_with(library, threads, {}), "; ".join(why)

    def _interpreter_with(self, library: Any, threads: int, delegates: dict[str, Any]) -> Any:
        interpreter = library.Interpreter(
            model_content=self._content.data,
            num_threads=threads,
            experimental_delegates=list(delegates.values()),
        )
        interpreter.allocate_tensors()
        return interpreter

    def _resize(self, shapes: list[tuple[int, ...]]) -> None:
        # Until all tensors are allocated again no shape counts as set.
        self._shapes = []
        for index, shape in zip(self._input_indices, shapes, strict=True):
            self._interpreter.resize_tensor_input(index, shape, strict=True)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


class Content:
    """The bytes of a model file. Those who open the same one at a time share them."""

    def __init__(self, data: bytes) -> None:
        self.data = data


_contents: "WeakValueDictionary[str, Content]" = WeakValueDictionary()


def content_of(path: str) -> Content:
    """Return the bytes of a model file that never changes, as files named by digest do not.

    Raises:
        CannotRunError: it is empty.
        OSError: it cannot be read.
    """
    content = _contents.get(path)
    if content is None:
        data = Path(path).read_bytes()
        if not data:
            raise CannotRunError(Reason.BAD_ARTIFACT, "the model file is empty")
        content = _contents[path] = Content(data)
    return content


def load_delegates(library: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the configured delegates by name, and why others are missing."""
    found, why = {}, []
    for each in configured("delegates"):
        try:
            if not hasattr(ctypes.CDLL(each.name), _MAKES_DELEGATES):
                raise OSError(f"no TFLite delegate: it lacks {_MAKES_DELEGATES}")
            found[each.name] = library.load_delegate(each.name, each.options)
        except Exception as error:
            why.append(f"{each.name}: {one_line(error)}")
    return found, why


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
