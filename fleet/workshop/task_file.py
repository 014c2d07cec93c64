"""Reads a task file: what apps may send, how it becomes tensors, and what the outputs mean."""

import io
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ValidationError

from fleet.workshop.errors import ArtifactError
from fleet.workshop.files import Held, hold
from wire.codec import first_error
from wire.manifest import Manifest
from wire.stream import Stream
from wire.task import Task, TextInput

MAX_TASK_BYTES = 64 * 1024


def read_task(path: Path, guess: Task) -> tuple[Task, Stream | None, list[Held]]:
    """Return the task and the stream that a TOML file declares, and the files that it names.

    What the file leaves out about scores is taken from `guess`, where the kind is the same.

    Raises:
        ArtifactError: no TOML, a key that no task has, or a value that is not allowed.
    """
    held = hold(path, limit=MAX_TASK_BYTES)
    try:
        fields = tomllib.loads(held.content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: expected TOML: {error}; correct it") from error
    stream = _read_stream(path, fields.pop("stream", None))
    fields.setdefault("kind", "detection" if "detection" in fields else guess.kind)
    _check_keys(path, "", Task, fields)
    if fields["kind"] == guess.kind:
        fields = {"scores": guess.scores, "scores_are": guess.scores_are} | fields
    try:
        task = Task.model_validate(fields)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_error(error)}; correct it") from error
    return task, stream, [hold(path.parent / name) for name in dict.fromkeys(task.files())]


def _read_stream(path: Path, fields: Any) -> Stream | None:
    if fields is None:
        return None
    _check_keys(path, "stream.", Stream, fields)
    try:
        return Stream.model_validate(fields)
    except ValidationError as error:
        raise ArtifactError(f"{path}: stream: {first_error(error)}; correct it") from error


def check_task(where: str, manifest: Manifest, held: dict[str, bytes]) -> None:
    """Compare a task with the content of the files that it names; `held` is by name.

    Raises:
        ArtifactError: a file is not what the task says.
    """
    task = manifest.task
    if isinstance(task.input, TextInput) and task.input.vocabulary is not None:
        _check_vocabulary(where, task.input, held[task.input.vocabulary])
    boxes = task.detection
    if boxes is not None and boxes.classes is not None and manifest.labels is None:
        raise ArtifactError(
            f"{where}: task.detection.classes: expected labels, since only they tell how many "
            "classes there are; push with --labels"
        )
    if boxes is not None and boxes.anchors is not None and boxes.anchors.file is not None:
        name = boxes.anchors.file
        shape = next(each for each in manifest.outputs if each.name == boxes.boxes).shape
        _check_anchors(name, held[name], shape[1] if shape else -1)


def _check_keys(path: Path, where: str, kind: type[BaseModel], fields: Any) -> None:
    """Refuse a key that nobody would read: it is most likely mistyped."""
    if not isinstance(fields, dict):
        return
    for key, value in fields.items():
        if key not in kind.model_fields:
            raise ArtifactError(
                f"{path}: expected one of {', '.join(kind.model_fields)} under "
                f"{where.rstrip('.') or 'the task'}, got {key!r}; correct it"
            )
        parts = _parts(kind.model_fields[key].annotation)
        if len(parts) > 1 and isinstance(value, dict):
            # Of several kinds the one that the table names.
            named = value.get("kind")
            parts = [part for part in parts if part.model_fields["kind"].default == named]
        for part in parts:
            for each in value if isinstance(value, list) else [value]:
                _check_keys(path, f"{where}{key}.", part, each)


def _parts(annotation: Any) -> list[type[BaseModel]]:
    """Return the kinds of tables that a field's annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for each in get_args(annotation) for part in _parts(each)]


def _check_vocabulary(where: str, given: TextInput, content: bytes) -> None:
    name = given.vocabulary
    try:
        tokens = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name}: expected UTF-8: {error}; save it as UTF-8") from error
    for what, token in (("first", given.first), ("last", given.last), ("unknown", given.unknown)):
        if token is not None and token not in tokens:
            raise ArtifactError(
                f"{where}: task.input.{what}: expected a line of {name}, got {token!r}; correct it"
            )
    if given.pad >= len(tokens):
        raise ArtifactError(
            f"{where}: task.input.pad: expected a line of {name} from 0 to {len(tokens) - 1}, got "
            f"{given.pad}; correct it"
        )


def _check_anchors(name: str, content: bytes, made: int) -> None:
    try:
        anchors = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(
            f"{name}: expected anchors as NumPy .npy: {error}; save them with numpy.save"
        ) from error
    shape: tuple[int, ...] = getattr(anchors, "shape", ())
    wrong = len(shape) != 2 or shape[1] not in (2, 4) or made not in (-1, shape[0])
    if wrong or anchors.dtype.kind != "f" or not np.isfinite(anchors).all():
        raise ArtifactError(
            f"{name}: expected finite floats of shape ({made}, 2 or 4) as the boxes have, got "
            f"{getattr(anchors, 'dtype', 'no array')} of {shape}; save them with numpy.save"
        )
