"""What the runtimes are opened with: accelerators, and files that may be cut short under them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.control import Ready
from tests.agent.engine.harness import Client, Listeners, Release, engine, one_hot
from tests.agent.engine.models import onnx_classifier, tflite_classifier
from tests.agent.engine.slow_models import onnx_widener

WRONG = {
    "providers": [["QNN", {"backend_path": "libQnnHtp.so"}]],
    "delegates": [["/nowhere/libedgetpu.so.1", {}]],
}


def accelerators(
    monkeypatch: pytest.MonkeyPatch, **named: list[tuple[str, dict[str, str]]]
) -> None:
    monkeypatch.setenv("FARFLUNG_ACCELERATORS", json.dumps(named))


def test_a_named_execution_provider_is_used_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerators(monkeypatch, providers=[("azure", {})])  # one that every wheel brings

    with engine() as started:
        ready = started.load(Release(tmp_path / "r", onnx_classifier()))

    assert isinstance(ready, Ready)
    assert ready.models[0].runtime.endswith(" on Azure")
    assert ready.models[0].fallback == ""


def test_a_provider_that_is_not_there_leaves_the_model_to_the_processor(
    tmp_path: Path, listeners: Listeners, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerators(monkeypatch, providers=[("QNN", {"backend_path": "libQnnHtp.so"})])

    with engine(listeners) as started:
        ready = started.serve(Release(tmp_path / "r", onnx_classifier()))
        answer = client.infer(one_hot(2))

    assert " on " not in ready.models[0].runtime
    assert ready.models[0].fallback.startswith("QNN: not in this onnxruntime, which has ")
    assert answer.json["outputs"][0]["data"] == [0, 0, 8]


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
@pytest.mark.parametrize(
    ("library", "why"),
    [
        ("/nowhere/libedgetpu.so.1", "cannot open shared object file"),
        ("libc.so.6", "no TFLite delegate: it lacks tflite_plugin_create_delegate"),
    ],
)
def test_a_delegate_that_does_not_load_leaves_the_model_to_the_processor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    library: str,
    why: str,
) -> None:
    accelerators(monkeypatch, delegates=[(library, {})])

    with engine(runtimes=runtime) as started:
        ready = started.load(Release(tmp_path / "r", tflite_classifier(), format="tflite"))

    assert isinstance(ready, Ready)
    assert ready.models[0].runtime.startswith(f"{runtime} ")
    assert " on " not in ready.models[0].runtime
    assert why in ready.models[0].fallback


def test_the_probe_tells_which_accelerators_cannot_be_used() -> None:
    named = {**WRONG, "providers": [*WRONG["providers"], ["Azure", {}]]}

    done = subprocess.run(
        [sys.executable, "-m", "agent.engine", "--probe"],
        env={**os.environ, "FARFLUNG_ACCELERATORS": json.dumps(named)},
        capture_output=True,
        check=True,
    )

    told = json.loads(done.stdout)
    assert set(told["runtimes"]) == {"onnxruntime", "ai-edge-litert", "tflite-runtime"}
    assert set(told["unusable"]) == {"QNN", "/nowhere/libedgetpu.so.1"}
    assert told["unusable"]["QNN"].startswith("not in this onnxruntime")


@pytest.mark.parametrize("runtime", ["onnxruntime", "ai-edge-litert", "tflite-runtime"])
@pytest.mark.parametrize("harm", ["cut short", "overwritten", "deleted"])
def test_a_model_file_harmed_in_place_cannot_kill_the_engine_that_uses_it(
    tmp_path: Path, listeners: Listeners, client: Client, runtime: str, harm: str
) -> None:
    format = "onnx" if runtime == "onnxruntime" else "tflite"
    data = onnx_classifier() if format == "onnx" else tflite_classifier()
    release = Release(tmp_path / "r", data, format=format)
    file = Path(release.spec.files[release.manifest.variants[0].artifact.digest])

    with engine(listeners, runtime) as started:
        started.serve(release)
        before = client.infer(one_hot(2)).body
        match harm:
            case "cut short":
                os.truncate(file, 0)
            case "overwritten":
                file.write_bytes(b"\xff" * len(data))
            case "deleted":
                shutil.rmtree(tmp_path / "r")
        # A batch of another size makes TFLite lay out its tensors and weights anew.
        answers = [client.infer(one_hot(*[2] * rows)) for rows in (1, 7, 3)]

    assert [answer.status for answer in answers] == [200] * 3
    assert answers[0].json["outputs"] == json.loads(before)["outputs"]
    assert answers[1].json["outputs"][0]["data"] == [0, 0, 8] * 7


def test_a_large_batch_leaves_no_memory_behind(tmp_path: Path) -> None:
    plodder = Release(tmp_path / "r", onnx_widener())
    listeners = Listeners(tmp_path)
    client = Client(listeners.port)

    with engine(listeners) as started:
        started.serve(plodder)
        client.infer(one_hot(1))
        process = psutil.Process(started.process.pid)
        before = process.memory_full_info().pss
        for rows in (400, 300, 200):
            assert client.infer(np.ones((rows, 4))).status == 200
        peak_kib = int(
            next(
                line.split()[1]
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if line.startswith("VmHWM")
            )
        )
        client.infer(one_hot(1))
        after = process.memory_full_info().pss

    client.close()
    listeners.close()
    assert peak_kib * 1024 > before + 100_000_000
    assert after < before + 15_000_000
