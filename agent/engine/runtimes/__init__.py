"""The libraries that run models, behind one shape."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wire.manifest import Format
from wire.twin import Reason

# From 1.29 on onnxruntime reports to its makers and leaves an identifier on the disk, unless it
# is told before it is imported; its own call to stop that comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

Array = npt.NDArray[Any]

ALLOWED_VARIABLE = "FARFLUNG_RUNTIMES"
"""Environment: the runtimes that may be used, by distribution name; unset: all."""

MODULES = {
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
}
"""Distribution name -> the module it brings."""

PREFERENCE: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    # 8-bit models run ten times faster on the successor, on x86 at least.
    "tflite": ("ai-edge-litert", "tflite-runtime"),
}


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor as the model file declares it; -1 in the shape: any size."""

    name: str
    datatype: str
    """Open Inference Protocol name."""
    shape: tuple[int, ...]


class Runtime(Protocol):
    """One opened model. Not for two threads at a time."""

    name: str
    version: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    fallback: str
    """Why it runs on the processor although an accelerator is configured; empty: it need not."""

    @property
    def interrupt(self) -> Callable[[], None] | None:
        """Ends the run under way, called from another thread; None: it cannot be ended."""
        ...

    def run(self, inputs: list[Array]) -> list[Array]:
        """Return the outputs in the file's order for inputs in the file's order.

        Raises:
            Exception: whatever the library raises.
        """
        ...


class CannotRunError(Exception):
    """A model cannot be opened or run here."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def installed() -> list[str]:
    """Return the runtimes that are installed and allowed, by distribution name.

    Whether they work is another matter: see `agent.engine.probe`.
    """
    allowed = os.environ.get(ALLOWED_VARIABLE)
    names = {name.strip() for name in allowed.split(",")} if allowed is not None else set(MODULES)
    return [
        name
        for name, module in MODULES.items()
        if name in names and importlib.util.find_spec(module) is not None
    ]


def ensure_imported(format: Format) -> str:
    """Import the preferred working runtime for `format` and return its name.

    Raises:
        CannotRunError: no_runtime, naming what was tried.
    """
    there = installed()
    tried = []
    for name in PREFERENCE[format]:
        if name not in there:
            tried.append(f"{name} is not installed or not allowed")
            continue
        try:
            importlib.import_module(_entry_module(name))
        except Exception as error:
            tried.append(f"{name} does not import: {error}")
        else:
            return name
    raise CannotRunError(Reason.NO_RUNTIME, f"{format} models: {'; '.join(tried)}")


def open_runtime(format: Format, path: str, threads: int) -> Runtime:
    """Open a model file with the preferred runtime for its format.

    Raises:
        CannotRunError: with the reason.
    """
    name = ensure_imported(format)
    threads = max(1, min(threads, os.cpu_count() or 1))
    return open_with(name, path, threads)


def open_with(name: str, path: str, threads: int) -> Runtime:
    """Open a model file with the runtime called `name`.

    Raises:
        CannotRunError: with the reason.
    """
    try:
        if name == "onnxruntime":
            from agent.engine.runtimes.onnx import OnnxModel

            return OnnxModel(path, threads)
        from agent.engine.runtimes.tflite import TfliteModel

        return TfliteModel(name, path, threads)
    except CannotRunError:
        raise
    except Exception as error:
        raise cannot_run(error) from error


def cannot_run(error: Exception) -> CannotRunError:
    """Tell from a library's exception what is wrong with the model or the device."""
    text = " ".join(str(error).split()) or type(error).__name__
    for reason, marks in _MARKS.items():
        if any(mark in text for mark in marks):
            return CannotRunError(reason, text[:400])
    if isinstance(error, MemoryError):
        return CannotRunError(Reason.OUT_OF_MEMORY, text[:400])
    return CannotRunError(Reason.LOAD_FAILED, text[:400])


_MARKS = {
    Reason.OUT_OF_MEMORY: ("bad_alloc", "Failed to allocate memory", "Cannot allocate memory"),
    Reason.OPSET_TOO_NEW: ("Unsupported model IR version", "is under development and support"),
    Reason.UNSUPPORTED_OPERATOR: (
        "No Op registered",
        "Could not find an implementation",
        "Didn't find op for builtin opcode",
        "unresolved custom op",
        "Unsupported data type in custom op handler",
    ),
    Reason.BAD_ARTIFACT: (
        "INVALID_PROTOBUF",
        "No graph was found in the protobuf",
        "valid Flatbuffer",
        "model identifier",
        "model allocation is null",
    ),
}


def _entry_module(name: str) -> str:
    return MODULES[name] if name == "onnxruntime" else f"{MODULES[name]}.interpreter"


DATATYPE_OF: dict[np.dtype[Any], str] = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.uint16): "UINT16",
    np.dtype(np.uint32): "UINT32",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.int8): "INT8",
    np.dtype(np.int16): "INT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float16): "FP16",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
}
"""NumPy element type -> Open Inference Protocol name; BYTES is not among them."""
