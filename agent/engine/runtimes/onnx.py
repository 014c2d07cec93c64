"""ONNX models, run by onnxruntime."""

import re
from pathlib import Path
from typing import Any

import onnxruntime

from agent.engine.runtimes import Array, CannotRunError, Port
from agent.engine.runtimes.accelerators import configured, one_line
from wire.twin import Reason

PROCESSOR = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"

OLDEST = (1, 24, 1)
"""Older ones read any file of the device that a model names as its external data."""

_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

# TensorProto.external_data, whose first entry has the key "location".
_EXTERNAL_DATA = re.compile(rb"\x6a[\x00-\xff]{1,2}\x0a\x08location\x12")
_LONGEST_MARK = 32
_READ_BYTES = 1024 * 1024


class OnnxModel:
    """An inference session on the configured providers or the processor, without external data.

    Raises:
        CannotRunError: the library is too old or the model has weights outside its file.
        Exception: whatever onnxruntime raises for a model it cannot open.
    """

    name = "onnxruntime"

    def __init__(self, path: str, threads: int) -> None:
        self.version = str(onnxruntime.__version__)
        if _numbers(self.version) < OLDEST:
            raise CannotRunError(
                Reason.NO_RUNTIME,
                f"onnxruntime: expected {'.'.join(map(str, OLDEST))} or newer, got {self.version}",
            )
        _refuse_external_data(path)
        self._session, self.fallback = _open(path, threads)
        used = [name for name in self._session.get_providers() if name != PROCESSOR]
        if used:
            self.version += f" on {', '.join(name.removesuffix(SUFFIX) for name in used)}"
        self._run_options = onnxruntime.RunOptions()
        self._shrinks = False
        self._interrupted = False
        self._warm_bytes = 0
        self.inputs = tuple(_port(node) for node in self._session.get_inputs())
        self.outputs = tuple(_port(node) for node in self._session.get_outputs())
        self._input_names = [port.name for port in self.inputs]
        self._output_names = [port.name for port in self.outputs]

    def run(self, inputs: list[Array]) -> list[Array]:
        """Return the outputs in the file's order for inputs in the file's order."""
        size = sum(array.nbytes for array in inputs)
        self._warm_bytes = self._warm_bytes or size
        shrink = size > self._warm_bytes
        # Those of an interrupted run would end every later one.
        if self._interrupted or shrink is not self._shrinks:
            self._run_options = _run_options(shrink=shrink)
            self._shrinks = shrink
            self._interrupted = False
        feed = dict(zip(self._input_names, inputs, strict=True))
        outputs: list[Array] = self._session.run(self._output_names, feed, self._run_options)
        return outputs

    def interrupt(self) -> None:
        """End the run under way with an exception; called from another thread."""
        self._interrupted = True
        self._run_options.terminate = True


def _open(path: str, threads: int) -> tuple[Any, str]:
    """Return a session, and why it is not on the providers that are configured."""
    available = {name.lower(): name for name in onnxruntime.get_available_providers()}
    providers, why = [], []
    for each in configured("providers"):
        named = each.name.lower().removesuffix(SUFFIX.lower()) + SUFFIX.lower()
        if named in available:
            providers.append((available[named], each.options))
        else:
            there = ", ".join(name.removesuffix(SUFFIX) for name in available.values())
            why.append(f"{each.name}: not in this onnxruntime, which has {there}")
    if providers:
        try:
            return _session(path, threads, [*providers, (PROCESSOR, {})]), "; ".join(why)
        except Exception as error:
            names = ", ".join(name.removesuffix(SUFFIX) for name, _ in providers)
            why.append(f"{names}: {one_line(error)}")
    return _session(path, threads, [(PROCESSOR, {})]), "; ".join(why)


def _session(path: str, threads: int, providers: list[tuple[str, dict[str, str]]]) -> Any:
    # Its own way back to the processor would go unnoticed but for words on standard output.
    return onnxruntime.InferenceSession(
        path, _options(threads), providers=providers, enable_fallback=0
    )


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Patterns are kept for every batch size seen.
    options.enable_mem_pattern = False
    # Idle pool threads would otherwise spin on a core that others need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What goes wrong is raised; the same text on standard error would only repeat it.
    options.log_severity_level = 4
    return options


def _run_options(*, shrink: bool) -> Any:
    """Return the options of a run; with `shrink` it gives back the memory that it leaves free.

    The arena would otherwise keep the peak of the largest batch for ever. Without an arena every
    run asks the system for every tensor anew: a quarter to a half more time on images.
    """
    options = onnxruntime.RunOptions()
    if shrink:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _refuse_external_data(path: str) -> None:
    # Read, not mapped: a mapped file that is cut short in place would end the process.
    with Path(path).open("rb") as file:
        seen = file.read(_READ_BYTES)
        if not seen:
            raise CannotRunError(Reason.BAD_ARTIFACT, "the model file is empty")
        found = _EXTERNAL_DATA.search(seen)
        while found is None and (more := file.read(_READ_BYTES)):
            seen = seen[-_LONGEST_MARK:] + more
            found = _EXTERNAL_DATA.search(seen)
    if found is not None:
        raise CannotRunError(
            Reason.BAD_ARTIFACT,
            "the model keeps weights outside its file (ONNX external data); "
            "save it as one file and push that",
        )


def _port(node: Any) -> Port:
    datatype = _TYPES.get(node.type)
    if datatype is None:
        raise CannotRunError(
            Reason.LOAD_FAILED, f"{node.name}: expected a dense tensor, got {node.type}"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape or ())
    return Port(node.name, datatype, shape)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
