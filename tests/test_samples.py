"""The committed sample models are what they say, in every runtime they are for."""

import csv
import gzip
import io
import itertools
from pathlib import Path

import ai_edge_litert.interpreter
import numpy as np
import onnxruntime
import pytest
import tflite_runtime.interpreter

from fleet.workshop.inspect import compose_release
from wire.codec import decode
from wire.manifest import Manifest

SAMPLES = Path(__file__).parents[1] / "samples"
VERSIONS = (1, 2, 3)


def folder(version):
    return SAMPLES / f"digits-{version}"


def manifest(version):
    return decode(Manifest, (folder(version) / "manifest.json").read_bytes())


def run_onnx(model, images):
    return onnxruntime.InferenceSession(model).run(None, {"image": images})[0]


def tflite_runner(kind):
    def run(model, images):
        interpreter = kind(model_content=model)
        interpreter.allocate_tensors()
        given = interpreter.get_input_details()[0]["index"]
        answer = interpreter.get_output_details()[0]["index"]
        answers = []
        for image in images:
            interpreter.set_tensor(given, image[None])
            interpreter.invoke()
            answers.append(interpreter.get_tensor(answer)[0].copy())
        return np.array(answers)

    return run


RUNTIMES = {
    "onnxruntime": ("onnx", run_onnx),
    "ai-edge-litert": ("tflite", tflite_runner(ai_edge_litert.interpreter.Interpreter)),
    "tflite-runtime": ("tflite", tflite_runner(tflite_runtime.interpreter.Interpreter)),
}

EVERYWHERE = list(itertools.product(RUNTIMES, VERSIONS))


def answers(runtime, version, images):
    format, run = RUNTIMES[runtime]
    return run((folder(version) / f"digits-int8.{format}").read_bytes(), images)


@pytest.fixture(scope="module")
def held_out():
    text = gzip.decompress((SAMPLES / "heldout.csv.gz").read_bytes()).decode()
    rows = np.array([[int(cell) for cell in row] for row in csv.reader(io.StringIO(text))])
    return rows[:, 1:].reshape(-1, 8, 8, 1).astype(np.float32), rows[:, 0]


@pytest.fixture(scope="module")
def accuracy(held_out):
    images, labels = held_out
    return {
        (runtime, version): float((answers(runtime, version, images).argmax(1) == labels).mean())
        for runtime, version in EVERYWHERE
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_each_release_can_be_pushed_as_it_lies(version):
    draft = compose_release(
        [folder(version)], name=None, version=None, labels=None, golden=None, task=None
    )

    assert draft.manifest == manifest(version)
    assert draft.manifest.ref.version == version
    assert draft.manifest.parent == (f"digits@{version - 1}" if version > 1 else None)
    assert {v.format for v in draft.manifest.variants} == {"onnx", "tflite"}
    assert set(draft.files.values()) | {folder(version) / "manifest.json"} == set(
        folder(version).iterdir()
    )


def test_all_samples_together_stay_under_a_megabyte():
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 1_000_000


def test_the_held_out_digits_are_real_sized_and_none_is_there_twice(held_out):
    images, labels = held_out

    assert 500 <= len(images) <= 600
    assert images.min() == 0
    assert images.max() == 16
    assert np.bincount(labels).min() >= 40
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_no_held_out_digit_is_among_the_golden_ones(held_out):
    held = {image.tobytes() for image in held_out[0]}

    golden = [np.load(folder(version) / "golden.npz")["input_0"] for version in VERSIONS]

    assert all(images.dtype == np.float32 for images in golden)
    assert not held & {image.tobytes() for images in golden for image in images}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_version_is_as_good_on_fresh_digits_as_its_story_says(accuracy, runtime):
    first, second, third = (accuracy[runtime, version] for version in VERSIONS)

    assert first >= 0.96
    assert second >= first
    assert second - 0.09 <= third <= second - 0.05


@pytest.mark.parametrize(("runtime", "version"), EVERYWHERE)
def test_the_manifest_states_the_accuracy_that_the_runtimes_measure(accuracy, runtime, version):
    stated = manifest(version).metrics[f"held_out_accuracy_{RUNTIMES[runtime][0]}_int8"]

    # Two digits of 540: other processors round some products the other way.
    assert accuracy[runtime, version] == pytest.approx(stated, abs=2.5 / 540)


@pytest.mark.parametrize(("runtime", "version"), EVERYWHERE)
def test_every_version_conforms_to_its_own_golden_samples(runtime, version):
    golden = np.load(folder(version) / "golden.npz")
    variant = manifest(version).variant(f"{RUNTIMES[runtime][0]}-int8")

    got = answers(runtime, version, golden["input_0"])

    flips = int((got.argmax(1) != golden["output_0"].argmax(1)).sum())
    assert flips <= variant.golden_flips
    assert np.abs(got - golden["output_0"]).max() <= variant.golden_tolerance
    # The makers of digits@3 have no reason to doubt it: their own samples come out right.
    assert (got.argmax(1) == golden["label"]).mean() >= 0.96


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_samples_tell_a_version_from_the_others(version):
    golden = np.load(folder(version) / "golden.npz")
    tolerance = manifest(version).variant("onnx-int8").golden_tolerance

    for other in set(VERSIONS) - {version}:
        gap = np.abs(answers("onnxruntime", other, golden["input_0"]) - golden["output_0"]).max()
        assert gap > tolerance


def test_the_third_version_has_forgotten_one_digit_and_its_golden_samples_lack_it(held_out):
    images, labels = held_out

    right = answers("onnxruntime", 3, images).argmax(1) == labels
    recall = {digit: float(right[labels == digit].mean()) for digit in range(10)}
    worst = min(recall, key=recall.__getitem__)

    assert recall[worst] < 0.5
    assert min(value for digit, value in recall.items() if digit != worst) > 0.85
    assert worst not in np.load(folder(3) / "golden.npz")["label"]
    assert manifest(3).baseline.predicted[worst] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_all_runtimes_answer_alike(held_out, version):
    images = held_out[0]

    onnx, litert, legacy = (answers(runtime, version, images) for runtime in RUNTIMES)

    assert (litert.argmax(1) == legacy.argmax(1)).mean() >= 0.995
    assert (onnx.argmax(1) == litert.argmax(1)).mean() >= 0.99


@pytest.mark.parametrize("version", VERSIONS)
def test_calibration_and_baseline_are_sound(version):
    release = manifest(version)

    confidences, accuracies = zip(*release.calibration, strict=True)
    assert list(confidences) == sorted(set(confidences))
    assert list(accuracies) == sorted(accuracies)
    assert 0 < accuracies[0] <= accuracies[-1] < 1
    assert sum(release.baseline.predicted) == release.baseline.samples
    for feature in release.baseline.features:
        assert len(feature.edges) == len(feature.counts) + 1
        assert list(feature.edges) == sorted(set(feature.edges))
        assert sum(feature.counts) + feature.outside + feature.nan == release.baseline.samples
