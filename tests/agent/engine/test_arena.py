"""What a large batch took is given back, by a real engine process."""

import re
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine, one_hot
from tests.agent.engine.models import CLASSES, FEATURES, GOOD, onnx_bytes

WIDTH = 4096
ROWS = 8192
BATCH_BYTES = ROWS * WIDTH * 4
"""Of one tensor between the layers; two of them live at a time."""
SMALL_BYTES = 32 * 1024 * 1024


def onnx_wide_classifier() -> bytes:
    """Return the classifier with a layer of `WIDTH` numbers a row before its last one."""
    widen = np.zeros((FEATURES, WIDTH), np.float32)
    widen[:, :FEATURES] = np.eye(FEATURES)
    narrow = np.zeros((WIDTH, CLASSES), np.float32)
    narrow[:FEATURES] = GOOD
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "widen"], ["wide"]),
            helper.make_node("Softplus", ["wide"], ["bent"]),
            helper.make_node("MatMul", ["bent", "narrow"], ["y"]),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(widen, "widen"), numpy_helper.from_array(narrow, "narrow")],
    )
    return onnx_bytes(graph)


def held_bytes(started: Engine, what: str) -> int:
    """Return a line of the process's status: VmRSS, or VmHWM, the most it ever was."""
    status = Path(f"/proc/{started.process.pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_memory_after_a_huge_batch_comes_back_to_what_it_was(
    tmp_path: Path, listeners: Listeners
) -> None:
    classes = [place % CLASSES for place in range(ROWS)]
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "release", onnx_wide_classifier()))
        client = Client(listeners.port)
        for _ in range(5):
            assert client.infer(one_hot(1)).status == 200
        before = held_bytes(started, "VmRSS")

        huge = client.infer(one_hot(*classes))
        for _ in range(5):
            assert client.infer(one_hot(2)).status == 200
        after, most = held_bytes(started, "VmRSS"), held_bytes(started, "VmHWM")

        client.close()
    scores = np.array(huge.json["outputs"][0]["data"]).reshape(ROWS, CLASSES)
    assert scores.argmax(axis=1).tolist() == classes
    assert most - before > BATCH_BYTES, "the batch must have taken what is to be given back"
    assert after - before < SMALL_BYTES
