"""Models run here, and nobody hears of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.engine.models import onnx_classifier

OPEN = """
import sys
from agent.engine.runtimes import open_runtime
print(open_runtime("onnx", sys.argv[1], 1).name)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_classifier())
    return path


def test_onnxruntime_leaves_no_trace_of_itself_on_the_disk(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    places = {name: str(home) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    environ = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}

    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(model)],
        env={**environ, **places},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stdout == "onnxruntime\n", done.stderr
    assert list(home.iterdir()) == []
