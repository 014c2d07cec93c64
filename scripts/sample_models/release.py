"""From weights to a release directory, with everything in it measured."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet.workshop.model_file import ModelFile
from fleet.workshop.onnx_file import read_onnx
from fleet.workshop.reference import (
    TWENTIETHS,
    calibration_table,
    feature_baseline,
    quantile_edges,
)
from fleet.workshop.tflite_file import read_tflite
from sample_models import onnx_form, tflite_form
from sample_models.digits import CLASSES, Digits
from sample_models.network import Weights
from sample_models.runtimes import RUNTIMES, Answers, onnx_answers
from wire.codec import encode
from wire.ids import digest_of
from wire.manifest import (
    Baseline,
    File,
    Format,
    Manifest,
    Variant,
)
from wire.task import Task

MODEL = "digits"
GOLDEN_EACH = 3
CALIBRATION_IMAGES = 128
BINS = 8
"""Bins of equal count for features of the input: 27 to 30 samples each."""

TOLERANCE_MARGIN = 1.5
"""Golden tolerance over the worst difference measured, for kernels that were not."""

_READERS: dict[Format, Callable[[str, bytes], ModelFile]] = {
    "onnx": read_onnx,
    "tflite": read_tflite,
}


@dataclass(frozen=True)
class Trained:
    """One version's weights, the data its makers had, and the story of it."""

    version: int
    weights: Weights
    train: Digits
    validation: Digits
    about: str

    @property
    def parent(self) -> str | None:
        """The release it was fine-tuned from."""
        return f"{MODEL}@{self.version - 1}" if self.version > 1 else None


def write(trained: Trained, held_out: Digits, folder: Path) -> Manifest:
    """Quantize, measure and write one release; return its manifest."""
    reference = onnx_form.float_model(trained.weights).SerializeToString(deterministic=True)
    seen = trained.train.first(CALIBRATION_IMAGES).images
    models: dict[Format, bytes] = {
        "onnx": onnx_form.int8_model(trained.weights, seen),
        "tflite": tflite_form.int8_model(trained.weights, seen),
    }
    golden = trained.validation.few_of_each(GOLDEN_EACH)
    expected = onnx_answers(reference, golden.images)
    own = onnx_answers(models["onnx"], trained.validation.images)

    folder.mkdir(parents=True, exist_ok=True)
    variants = tuple(
        _variant(format, model, golden, expected, folder) for format, model in models.items()
    )
    manifest = Manifest(
        model=MODEL,
        version=trained.version,
        description=(
            f"{trained.about} image: float32 (batch, 8, 8, 1), one channel, 0 (paper) to 16 (ink); "
            "probabilities: float32 (batch, 10), the digits 0 to 9."
        ),
        parent=trained.parent,
        task=Task(kind="classification", scores="probabilities", scores_are="probabilities"),
        inputs=variants[0].inputs,
        outputs=variants[0].outputs,
        variants=variants,
        labels=_file(folder, "labels.txt", "".join(f"{n}\n" for n in range(CLASSES)).encode()),
        golden=_file(folder, "golden.npz", _golden(golden, expected)),
        calibration=_calibration(own, trained.validation.labels),
        baseline=_baseline(trained.validation, own),
        metrics={
            "validation_accuracy": _accuracy(own, trained.validation),
            "validation_samples": len(trained.validation),
            "held_out_samples": len(held_out),
            "held_out_accuracy_float": _accuracy(
                onnx_answers(reference, held_out.images), held_out
            ),
            **{
                f"held_out_accuracy_{format}_int8": min(
                    _accuracy(run(model, held_out.images), held_out)
                    for run in RUNTIMES[format].values()
                )
                for format, model in models.items()
            },
        },
    )
    (folder / "manifest.json").write_bytes(encode(manifest))
    return manifest


def _variant(
    format: Format, model: bytes, golden: Digits, expected: Answers, folder: Path
) -> Variant:
    answers = [run(model, golden.images) for run in RUNTIMES[format].values()]
    worst = max(float(np.abs(answer - expected).max()) for answer in answers)
    tolerance = math.ceil(worst * TOLERANCE_MARGIN * 100) / 100
    name = f"digits-int8.{format}"
    read = _READERS[format](name, model)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    return Variant(
        name=f"{format}-int8",
        format=format,
        artifact=_file(folder, name, model),
        requires=read.requires,
        inputs=read.inputs,
        outputs=read.outputs,
        golden_tolerance=tolerance,
        # Within the tolerance, a sample changes its class only if its lead is under twice that.
        golden_flips=int((first - second < 2 * tolerance).sum()),
    )


def _file(folder: Path, name: str, content: bytes) -> File:
    (folder / name).write_bytes(content)
    return File(name=name, digest=digest_of(content), size_bytes=len(content))


def _golden(golden: Digits, expected: Answers) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, input_0=golden.images, output_0=expected, label=golden.labels)
    return content.getvalue()


def _accuracy(answers: Answers, digits: Digits) -> float:
    return round(float((answers.argmax(axis=1) == digits.labels).mean()), 4)


def _calibration(answers: Answers, labels: NDArray[np.int64]) -> tuple[tuple[float, float], ...]:
    return calibration_table(
        answers.max(axis=1).astype(np.float64), answers.argmax(axis=1) == labels
    )


def _baseline(digits: Digits, answers: Answers) -> Baseline:
    ink = digits.images.astype(np.float64)
    mean, deviation = ink.mean(axis=(1, 2, 3)), ink.std(axis=(1, 2, 3))
    return Baseline(
        samples=len(digits),
        features=(
            feature_baseline("image.mean", mean, quantile_edges(mean, BINS)),
            feature_baseline("image.std", deviation, quantile_edges(deviation, BINS)),
            feature_baseline("confidence", answers.max(axis=1).astype(np.float64), TWENTIETHS),
        ),
        predicted=tuple(np.bincount(answers.argmax(axis=1), minlength=CLASSES).tolist()),
    )
