"""From model files, or a release directory, to a release: what the files know is read from them."""

import re
from pathlib import Path

import numpy as np

from fleet.workshop.draft import ReleaseDraft, checked_manifest
from fleet.workshop.errors import ArtifactError
from fleet.workshop.files import Held, hold, read_model
from fleet.workshop.golden import MAX_GOLDEN_BYTES, Arrays, read_golden
from fleet.workshop.labels import MAX_LABELS_BYTES, read_labels
from fleet.workshop.model_file import ModelFile, listed
from fleet.workshop.release_dir import check_classes, read_release
from fleet.workshop.task_file import check_task, read_task
from wire.manifest import TensorSpec
from wire.stream import Stream
from wire.task import Task

__all__ = ["ReleaseDraft", "compose_release"]

KINDS = ("classification", "tensor")
"""What a task may be called where no file declares it."""

_INTEGERS = ("int4", "uint4", "int8", "uint8", "int16")
_TOLERANCE = 0.001
_INTEGER_TOLERANCE = 0.1
"""Golden tolerance as a share of the largest golden answer, where nobody measured one."""
_INTEGER_FLIPS = 0.05
"""Share of golden samples whose class may change: 8-bit kernels differ between processors."""

_CLEAN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def compose_release(
    paths: list[Path],
    *,
    name: str | None,
    version: int | None,
    labels: Path | None,
    golden: Path | None,
    task: str | None,
    description: str = "",
) -> ReleaseDraft:
    """Read one release directory, or one or more model files that are variants of one release.

    The name is by default that of the first file. The task is a classification when labels are
    given, or when the only output has a batch of two or more scores; else the outputs are
    tensors without a meaning. `task` is a kind, or the path of a file that declares more. Devices
    take the first variant they can run.

    Raises:
        ArtifactError: a file is missing, broken, or does not agree with the others.
    """
    if len(paths) == 1 and paths[0].is_dir():
        if labels or golden or task or description:
            raise ArtifactError(
                f"{paths[0]}: a release directory names its own labels, golden samples, task and "
                "description; change its manifest.json, or push the model files themselves"
            )
        return read_release(paths[0], name=name, version=version)
    if not paths:
        raise ArtifactError("expected a model file or a release directory, got none; name one")
    held = [hold(path) for path in paths]
    models = [read_model(each) for each in held]
    _check_agreement(held, models)
    return _compose(
        held,
        models,
        name=name or _name_from(paths[0]),
        version=version,
        labels=hold(labels, limit=MAX_LABELS_BYTES) if labels else None,
        golden=hold(golden, limit=MAX_GOLDEN_BYTES) if golden else None,
        task=task,
        description=description,
    )


def _compose(
    held: list[Held],
    models: list[ModelFile],
    *,
    name: str,
    version: int | None,
    labels: Held | None,
    golden: Held | None,
    task: str | None,
    description: str,
) -> ReleaseDraft:
    inputs = _public([model.inputs for model in models])
    outputs = _public([model.outputs for model in models])
    classes = len(read_labels(labels)) if labels else None
    arrays = read_golden(golden.path, inputs, outputs, classes) if golden else None
    declared, stream, beside = _declared(task, models, outputs, classes)
    try:
        declared.check(inputs, outputs, {each.file.name for each in beside})
    except ValueError as error:
        raise ArtifactError(f"{task}: {error}; correct it and push again") from error
    manifest = checked_manifest(
        {
            "model": name,
            "version": 1 if version is None else version,
            "description": description,
            "task": declared,
            "stream": stream,
            "inputs": inputs,
            "outputs": outputs,
            "variants": [
                _variant(variant, file, model, arrays)
                for variant, file, model in zip(_variant_names(models), held, models, strict=True)
            ],
            "labels": labels.file if labels else None,
            "golden": golden.file if golden else None,
            "files": [each.file for each in beside],
        }
    )
    if classes is not None:
        check_classes(manifest, classes)
    check_task(task or "task", manifest, {each.file.name: each.content for each in beside})
    extras = [each for each in (labels, golden, *beside) if each is not None]
    return ReleaseDraft(
        manifest=manifest,
        version_given=version is not None,
        files={each.file.digest: each.path for each in (*held, *extras)},
    )


def _name_from(path: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40].rstrip("-")
    if not name:
        raise ArtifactError(
            f"{path}: expected a name to take a model name from, got none in "
            "a-z and 0-9; give one with --name"
        )
    return name


def _check_agreement(held: list[Held], models: list[ModelFile]) -> None:
    """Refuse files that cannot stand for one another."""
    if len({each.file.digest for each in held}) != len(held):
        raise ArtifactError("expected different files as variants, got one twice; name it once")
    for other, model in zip(held[1:], models[1:], strict=True):
        for kind, mine, theirs in (
            ("inputs", models[0].inputs, model.inputs),
            ("outputs", models[0].outputs, model.outputs),
        ):
            if len(mine) != len(theirs) or not all(map(_alike, mine, theirs)):
                raise ArtifactError(
                    f"{other.path}: {kind}: expected {listed(mine)} as in {held[0].path.name}, got "
                    f"{listed(theirs)}; variants of one release take and answer the same: push it "
                    "under another name"
                )


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return (
        one.datatype == other.datatype
        and len(one.shape) == len(other.shape)
        and all(a == b or -1 in (a, b) for a, b in zip(one.shape, other.shape, strict=True))
    )


def _public(variants: list[tuple[TensorSpec, ...]]) -> list[TensorSpec]:
    """Return the first variant's tensors under names that are pleasant to type, if any has."""
    names = [
        next(filter(_CLEAN_NAME.fullmatch, (spec.name for spec in place)), place[0].name)
        for place in zip(*variants, strict=True)
    ]
    if len(set(names)) != len(names):
        return list(variants[0])
    return [
        spec.model_copy(update={"name": name})
        for spec, name in zip(variants[0], names, strict=True)
    ]


def _declared(
    asked: str | None, models: list[ModelFile], outputs: list[TensorSpec], classes: int | None
) -> tuple[Task, Stream | None, list[Held]]:
    """Return the task, the stream and the files that they need."""
    if asked is None or asked in KINDS:
        return _task(asked, models, outputs, classes), None, []
    try:
        guess = _task(None, models, outputs, classes)
    except ArtifactError:
        # The file may know which output it is, or that there are no classes.
        guess = Task()
    task, stream, held = read_task(Path(asked), guess)
    if stream is not None and task.kind == "classification" and task.scores is None:
        states = {carry.output for carry in stream.carries}
        visible = [output.name for output in outputs if output.name not in states]
        task = task.model_copy(update={"scores": visible[0] if visible else None})
    return task, stream, held


def _task(
    asked: str | None, models: list[ModelFile], outputs: list[TensorSpec], classes: int | None
) -> Task:
    scores = [
        place
        for place, output in enumerate(outputs)
        if len(output.shape) == 2 and output.shape[1] >= 2 and output.datatype != "BYTES"
    ]
    if asked == "tensor" or (
        asked is None and classes is None and not (scores and len(outputs) == 1)
    ):
        return Task()
    if len(scores) > 1:
        scores = [place for place in scores if outputs[place].shape[1] == classes]
    if len(scores) != 1:
        raise ArtifactError(
            "classification: expected one output of shape (batch, classes), with as many classes "
            f"as labels, got {listed(outputs)}; push with --task tensor and without labels"
        )
    place = scores[0]
    softmax = any(model.outputs[place].name in model.probabilities for model in models)
    return Task(
        kind="classification",
        scores=outputs[place].name,
        scores_are="probabilities" if softmax else "logits",
    )


def _variant_names(models: list[ModelFile]) -> list[str]:
    names: list[str] = []
    for model in models:
        name = f"{model.format}-{model.precision}"
        same = sum(other == name or other.startswith(f"{name}.") for other in names)
        names.append(f"{name}.{same + 1}" if same else name)
    return names


def _variant(name: str, held: Held, model: ModelFile, golden: Arrays | None) -> dict[str, object]:
    return {
        "name": name,
        "format": model.format,
        "artifact": held.file,
        "requires": model.requires,
        "inputs": model.inputs,
        "outputs": model.outputs,
        **_leeway(model, golden),
    }


def _leeway(model: ModelFile, golden: Arrays | None) -> dict[str, float]:
    """Return how far a device's answers may be from the golden ones."""
    if golden is None:
        return {}
    answers = [np.abs(a.astype(np.float64)) for name, a in golden.items() if name[:7] == "output_"]
    largest = max(float(answer.max(initial=0.0)) for answer in answers) or 1.0
    integers = model.precision in _INTEGERS
    share = _INTEGER_TOLERANCE if integers else _TOLERANCE
    return {
        "golden_tolerance": float(f"{share * largest:.3g}"),
        "golden_flips": int(_INTEGER_FLIPS * len(golden["input_0"])) if integers else 0,
    }
