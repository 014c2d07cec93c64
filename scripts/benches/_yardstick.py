"""What can be done with nothing in between: a runtime, and a server of frames around it.

    python -m scripts.benches._yardstick MODEL [SOCKET]

With SOCKET it answers frames (see `_client.Framed`) of one float32 input tensor; without, it loads
the model, runs it once, says so and waits for the end of its standard input.
"""

import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Array], Array]


def open_model(path: str) -> tuple[Run, tuple[int, ...], Any]:
    """Return how to run a model, and shape and element type of its input; one thread."""
    return _open_onnx(path) if path.endswith(".onnx") else _open_tflite(path)


def _open_onnx(path: str) -> tuple[Run, tuple[int, ...], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = tuple(size if isinstance(size, int) else 1 for size in given.shape)
    dtype = np.int8 if given.type == "tensor(int8)" else np.float32

    def run(array: Array) -> Array:
        output: Array = session.run(None, {given.name: array})[0]
        return output

    return run, shape, dtype


def _open_tflite(path: str) -> tuple[Run, tuple[int, ...], Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    answer = interpreter.get_output_details()[0]["index"]

    def run(array: Array) -> Array:
        interpreter.set_tensor(given["index"], array)
        interpreter.invoke()
        output: Array = interpreter.get_tensor(answer)
        return output

    return run, tuple(int(size) for size in given["shape"]), given["dtype"]


def _serve(path: str, run: Run, shape: tuple[int, ...], dtype: Any) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    print("ready", flush=True)
    connection, _ = listener.accept()
    length = bytearray(4)
    while connection.recv_into(length, 4, socket.MSG_WAITALL):
        body = bytearray(int.from_bytes(length, "little"))
        connection.recv_into(body, len(body), socket.MSG_WAITALL)
        output = run(np.frombuffer(body, dtype).reshape(shape)).tobytes()
        connection.sendall(len(output).to_bytes(4, "little") + output)


def main() -> None:
    """Serve, or load and wait."""
    run, shape, dtype = open_model(sys.argv[1])
    run(np.zeros(shape, dtype))
    if len(sys.argv) > 2:
        _serve(sys.argv[2], run, shape, dtype)
        return
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
