"""Answers of the real runtimes, so that a release states what was measured and nothing else."""

from collections.abc import Callable
from typing import Any

import ai_edge_litert.interpreter
import numpy as np
import onnxruntime
import tflite_runtime.interpreter
from numpy.typing import NDArray

Answers = NDArray[np.float32]
Run = Callable[[bytes, NDArray[np.float32]], Answers]


def onnx_answers(model: bytes, images: NDArray[np.float32]) -> Answers:
    """Return the probabilities (n, classes) that onnxruntime answers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    return np.asarray(session.run(None, {"image": images})[0], np.float32)


def _tflite_answers(kind: Any) -> Run:
    def answers(model: bytes, images: NDArray[np.float32]) -> Answers:
        interpreter = kind(model_content=model, num_threads=1)
        given = interpreter.get_input_details()[0]["index"]
        answer = interpreter.get_output_details()[0]["index"]
        interpreter.resize_tensor_input(given, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(answer), np.float32)

    return answers


RUNTIMES: dict[str, dict[str, Run]] = {
    "onnx": {"onnxruntime": onnx_answers},
    "tflite": {
        "ai-edge-litert": _tflite_answers(ai_edge_litert.interpreter.Interpreter),
        "tflite-runtime": _tflite_answers(tflite_runtime.interpreter.Interpreter),
    },
}
"""Format -> runtime -> how to run a model in it."""
