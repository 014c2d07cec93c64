import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.control import Failed, Ready
from tests.agent.engine.harness import Release, engine, good_golden
from tests.agent.engine.models import (
    GOOD,
    ROTATED,
    onnx_classifier,
    tflite_classifier,
    tflite_quantized,
)

Build = Callable[..., bytes]

RUNTIMES: list[tuple[str, str, Build]] = [
    ("onnx", "onnxruntime", onnx_classifier),
    ("tflite", "ai-edge-litert", tflite_classifier),
    ("tflite", "tflite-runtime", tflite_classifier),
]


@pytest.mark.parametrize(("format", "runtime", "build"), RUNTIMES)
def test_every_runtime_passes_the_trial_of_a_model_with_its_golden_samples(
    tmp_path: Path, format: str, runtime: str, build: Build
) -> None:
    release = Release(tmp_path, build(), format=format, golden=good_golden())

    with engine(runtimes=runtime) as started:
        answer = started.load(release)

        assert isinstance(answer, Ready)
        (loaded,) = answer.models
        assert loaded.runtime.split()[0] == runtime
        assert (loaded.golden_samples, loaded.golden_flips) == (6, 0)
        assert loaded.golden_worst <= 1e-5
        assert 0 < loaded.invoke_ms < 1000
        assert started.blamed() == ""


def test_the_newer_tflite_library_is_preferred(tmp_path: Path) -> None:
    release = Release(tmp_path, tflite_classifier(), format="tflite")

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Ready)
    assert answer.models[0].runtime.startswith("ai-edge-litert ")


@pytest.mark.parametrize("runtime", ["ai-edge-litert", "tflite-runtime"])
def test_an_8_bit_model_conforms_in_its_own_integers(tmp_path: Path, runtime: str) -> None:
    # x = 16 steps of 1/16 is 1.0; times a weight of 4 that is 4.0: 32 steps of 1/8.
    inputs = (np.eye(4)[:3] * 16).astype(np.int8)
    outputs = (inputs.astype(np.int32) @ GOOD.astype(np.int32) // 2).astype(np.int8)
    release = Release(
        tmp_path,
        tflite_quantized(),
        format="tflite",
        datatype="INT8",
        variant_batch=1,
        golden=(inputs, outputs),
        tolerance=1,
    )

    with engine(runtimes=runtime) as started:
        answer = started.load(release)

    assert isinstance(answer, Ready), answer
    assert answer.models[0].golden_flips == 0


@pytest.mark.parametrize(("format", "runtime", "build"), RUNTIMES)
def test_a_model_with_other_answers_than_the_golden_ones_is_refused(
    tmp_path: Path, format: str, runtime: str, build: Build
) -> None:
    release = Release(tmp_path, build(ROTATED), format=format, golden=good_golden(), flips=5)

    with engine(runtimes=runtime) as started:
        answer = started.load(release)

        assert isinstance(answer, Failed)
        assert (answer.model, answer.reason) == ("digits", "golden_mismatch")
        assert "up to 5 changed classes" in answer.detail and "got 0 and 6" in answer.detail
        assert started.process.wait(10) == 1


def test_allowed_flips_may_exceed_the_tolerance_and_other_samples_may_not(tmp_path: Path) -> None:
    inputs, outputs = good_golden()
    outputs[0] = [0, 1, 0]
    flipped = Release(tmp_path, onnx_classifier(), golden=(inputs, outputs), flips=1)
    shifted = Release(tmp_path, onnx_classifier(), golden=(inputs, outputs + 0.5), flips=1)

    with engine() as started:
        allowed = started.load(flipped)
    with engine() as started:
        refused = started.load(shifted)

    assert isinstance(allowed, Ready)
    assert allowed.models[0].golden_flips == 1
    assert allowed.models[0].golden_worst == 4.0
    assert isinstance(refused, Failed)
    assert refused.reason == "golden_mismatch"


def test_a_constant_model_is_refused_even_within_a_wide_tolerance(tmp_path: Path) -> None:
    release = Release(
        tmp_path, onnx_classifier(GOOD * 0), golden=good_golden(), tolerance=100, flips=6
    )

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    assert answer.reason == "golden_mismatch"
    assert "the same answer to all 6" in answer.detail


def test_a_model_that_answers_nan_is_refused(tmp_path: Path) -> None:
    weights = GOOD.copy()
    weights[0, 0] = np.nan
    release = Release(tmp_path, onnx_classifier(weights), golden=good_golden(), tolerance=100)

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    assert answer.reason == "golden_mismatch"
    assert "finite" in answer.detail


def test_a_restart_of_proven_models_skips_the_golden_samples(tmp_path: Path) -> None:
    release = Release(tmp_path, onnx_classifier(ROTATED), golden=good_golden())

    with engine() as started:
        answer = started.load(release, golden=False)

    assert isinstance(answer, Ready)
    assert answer.models[0].golden_samples == 0


@pytest.mark.parametrize(
    ("format", "runtime", "build"), [row for row in RUNTIMES if row[1] != "tflite-runtime"]
)
def test_a_truncated_model_is_refused_as_a_bad_artifact(
    tmp_path: Path, format: str, runtime: str, build: Build
) -> None:
    whole = build()
    release = Release(tmp_path, whole[: len(whole) // 2], format=format)

    with engine(runtimes=runtime) as started:
        answer = started.load(release)

        assert isinstance(answer, Failed)
        assert answer.reason == "bad_artifact"
        assert started.process.wait(10) == 1


def test_a_truncated_model_never_gets_ready_in_the_old_library_either(tmp_path: Path) -> None:
    whole = tflite_classifier()
    release = Release(tmp_path, whole[: len(whole) // 2], format="tflite", model="cut")

    with engine(runtimes="tflite-runtime") as started:
        # It reads on behind the end: what lies there in memory decides how far it comes.
        try:
            answer = started.load(release)
        except EOFError:
            assert started.process.wait(10) == -signal.SIGSEGV
            assert started.blamed() == "cut"
        else:
            assert isinstance(answer, Failed)


def test_a_corrupt_model_that_takes_the_process_along_is_blamed_by_name(tmp_path: Path) -> None:
    # The offset of the root table points 2 GB beyond the file; the old library follows it.
    corrupt = b"\x00\xff\xff\x7f" + tflite_classifier()[4:]
    healthy = Release(tmp_path / "a", tflite_classifier(), format="tflite", model="healthy")
    broken = Release(tmp_path / "b", corrupt, format="tflite", model="broken")

    with engine(runtimes="tflite-runtime") as started:
        with pytest.raises(EOFError):
            started.load(healthy, broken)

        assert started.process.wait(10) == -signal.SIGSEGV
        assert started.blamed() == "broken"


def test_a_model_without_a_runtime_for_it_is_refused_naming_what_was_looked_for(
    tmp_path: Path,
) -> None:
    release = Release(tmp_path, tflite_classifier(), format="tflite")

    with engine(runtimes="onnxruntime") as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    assert answer.reason == "no_runtime"
    assert "ai-edge-litert" in answer.detail and "tflite-runtime" in answer.detail


def test_a_manifest_that_promises_other_tensors_than_the_file_has_is_refused(
    tmp_path: Path,
) -> None:
    release = Release(tmp_path, onnx_classifier(), names=("pixels", "y"))

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    assert answer.reason == "bad_manifest"
    assert "pixels" in answer.detail and "['x']" in answer.detail


def test_weights_outside_the_model_file_are_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(onnx_classifier())
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0
    )
    onnx.save(model, str(tmp_path / "outer.onnx"))
    release = Release(tmp_path, (tmp_path / "outer.onnx").read_bytes())

    with engine() as started:
        answer = started.load(release)

    assert isinstance(answer, Failed)
    assert answer.reason == "bad_artifact"
    assert "external data" in answer.detail


def test_a_model_that_wants_more_memory_than_allowed_is_refused(tmp_path: Path) -> None:
    weights = np.zeros((4, 3), np.float32)
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # A 2 GB constant, made while the model is opened.
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["big"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("Add", ["z", "sum"], ["y"]),
        ],
        "hungry",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([512 * 1024 * 1024], np.int64), "big"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert isinstance(model, onnx.ModelProto)
    release = Release(tmp_path, model.SerializeToString())

    with engine() as started:
        answer = started.load(release, memory_bytes=256 * 1024 * 1024)

    assert isinstance(answer, Failed)
    assert answer.reason == "out_of_memory", answer
