"""An engine is small beside its model: what it can do without is not in it."""

from pathlib import Path

import pytest

from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine, one_hot
from tests.agent.engine.models import onnx_classifier, tflite_classifier

UNWANTED = ("pydantic_core", "_ssl.", "libssl", "_decimal.", "_bz2.", "_lzma.")
"""In the names of libraries: pydantic, TLS, and what `statistics` and `zipfile` bring."""


def mapped(started: Engine) -> set[str]:
    """The files that a process has mapped, libraries among them."""
    lines = Path(f"/proc/{started.process.pid}/maps").read_text().splitlines()
    return {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}


@pytest.mark.parametrize(
    ("format", "runtime", "library"),
    [("onnx", "onnxruntime", "onnxruntime_pybind11"), ("tflite", "ai-edge-litert", "LiteRt")],
)
def test_a_serving_engine_has_neither_pydantic_nor_tls(
    tmp_path: Path, listeners: Listeners, format: str, runtime: str, library: str
) -> None:
    made = onnx_classifier() if format == "onnx" else tflite_classifier()
    with engine(listeners, runtimes=runtime) as started:
        started.serve(Release(tmp_path / "release", made, format=format))
        client = Client(listeners.port)
        assert client.infer(one_hot(1)).status == 200

        files = mapped(started)

        client.close()
    assert any(library in path for path in files), "the model's own library is seen here"
    assert [path for path in files if any(name in path for name in UNWANTED)] == []
