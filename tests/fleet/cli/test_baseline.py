"""A baseline from an engineer's own data, all the way: push, manifest, engine, counts."""

from pathlib import Path

import numpy as np

from agent.control import ModelSpec
from tests.agent.engine.harness import Client, Listeners, engine, one_hot
from tests.agent.engine.models import CLASSES, FEATURES, onnx_classifier
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import MemoryController
from wire.codec import encode
from wire.ids import digest_of


def test_drift_is_counted_in_the_bins_of_the_data_that_was_pushed(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    model, data = tmp_path / "own.onnx", tmp_path / "train.npz"
    model.write_bytes(onnx_classifier())
    random = np.random.default_rng(5)
    inputs = random.uniform(0, 1, (400, FEATURES)).astype(np.float32)
    np.savez(data, x=inputs, predicted=random.integers(0, CLASSES, 400))

    pushed = run("model", "push", str(model), "--baseline", str(data), "--task", "classification")
    shown = run("model", "show", "own").stdout

    assert pushed.exit_code == 0, pushed.stderr
    assert "400 samples of x[0], x[1]" in shown and "; predicted classes" in shown
    manifest = controller.release("own", 1).manifest
    assert manifest is not None and manifest.baseline is not None
    path = tmp_path / "manifest.json"
    path.write_bytes(encode(manifest))
    artifact = manifest.variants[0].artifact.digest
    assert digest_of(model.read_bytes()) == artifact
    spec = ModelSpec(
        "own", 1, manifest.digest, manifest.variants[0].name, str(path), {artifact: str(model)}
    )

    class Release:
        pass

    release = Release()
    release.spec = spec  # type: ignore[attr-defined]
    listeners = Listeners(tmp_path)
    with engine(listeners) as running:
        running.serve(release)  # type: ignore[arg-type]
        client = Client(listeners.port)
        body = {"name": "x", "datatype": "FP32", "shape": [1, FEATURES]}
        for _ in range(10):
            sent = {"inputs": [{**body, "data": one_hot(0)[0]}]}
            assert client.ask("POST", "/v2/models/own/infer", sent).status == 200
        client.close()
        (window,) = running.report().windows
    listeners.close()

    drift = window.counts["drift"]
    assert len(drift) == FEATURES
    bins = len(manifest.baseline.features[0].counts)
    # Element 0 is 2.0 where the data ended at 1: outside of all bins.
    assert drift["0"] == [0] * bins + [0, 10]
    assert all(sum(counts) == 10 for counts in drift.values())


def test_data_of_another_shape_stops_the_push(run: Fleet, tmp_path: Path) -> None:
    model, data = tmp_path / "own.onnx", tmp_path / "train.npz"
    model.write_bytes(onnx_classifier())
    np.savez(data, x=np.zeros((100, FEATURES + 1), np.float32))

    refused = run("model", "push", str(model), "--baseline", str(data))

    assert refused.exit_code == 1
    assert f"train.npz: x: expected rows of shape ({FEATURES},)" in refused.stderr
    assert "Traceback" not in refused.stderr
