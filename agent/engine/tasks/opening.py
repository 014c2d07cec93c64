"""From a release's manifest and files to what reads for its model and tells of its answers."""

from pathlib import Path
from typing import Protocol

from agent.engine.runtimes import CannotRunError
from agent.engine.tasks import Reader
from agent.engine.tasks.anchors import grid, read_anchors
from agent.engine.tasks.classes import Classifier
from agent.engine.tasks.desk import Desk
from agent.engine.tasks.detection import Detector
from agent.engine.tasks.plain import PlainTeller
from wire.manifest import Manifest, TensorSpec, Variant
from wire.task import ImageInput, TableInput, TextInput
from wire.twin import Reason

MAX_VOCABULARY_BYTES = 16 * 1024 * 1024


class FindFile(Protocol):
    """Tells where the bytes of a digest lie."""

    def __call__(self, digest: str) -> str:
        """Return the path.

        Raises:
            CannotRunError: there is none.
        """
        ...


def open_detector(
    manifest: Manifest, variant: Variant, labels: list[str], find: FindFile
) -> Detector | None:
    """Return what makes detections of the outputs, None for another task.

    Raises:
        CannotRunError: the anchors are not those of the model, or classes have no labels.
    """
    task = manifest.task
    how = task.detection
    if how is None:
        return None
    outputs = _edges(manifest.outputs, variant.outputs)
    anchors = None
    if how.anchors is not None and how.anchors.file is not None:
        try:
            anchors = read_anchors(_path(manifest, how.anchors.file, find))
        except (OSError, ValueError) as error:
            raise CannotRunError(
                Reason.BAD_MANIFEST, f"anchors {how.anchors.file}: {error}"
            ) from error
    elif how.anchors is not None:
        assert isinstance(task.input, ImageInput)
        spec = task.fed(manifest.inputs)["tensor"]
        anchors = grid(how.anchors, *task.input.size(spec))
    boxes = next(spec for spec in outputs if spec.name == how.boxes)
    if anchors is not None and boxes.shape and boxes.shape[1] not in (-1, len(anchors)):
        raise CannotRunError(
            Reason.BAD_MANIFEST,
            f"anchors: expected {boxes.shape[1]} as {boxes.name} has, got {len(anchors)}",
        )
    detector = Detector(task, outputs, anchors, labels)
    if detector.classes < 1:
        raise CannotRunError(
            Reason.BAD_MANIFEST, "task.detection: expected labels, since no output tells how many "
            "classes there are"
        )  # fmt: skip
    return detector


def open_desk(
    manifest: Manifest,
    variant: Variant,
    *,
    scores: int | None,
    labels: list[str],
    detector: Detector | None,
    find: FindFile,
) -> Desk | None:
    """Return the desk of a task that apps may send their own things to, None for another.

    Raises:
        CannotRunError: a library or a file is missing.
    """
    task = manifest.task
    if task.input is None:
        return None
    outputs = _edges(manifest.outputs, variant.outputs)
    reader = _reader(manifest, variant, find)
    if detector is not None:
        if not isinstance(task.input, ImageInput):
            raise CannotRunError(
                Reason.BAD_MANIFEST, f"task: expected pictures to detect in, got {task.input.kind}"
            )
        return Desk(reader, detector)
    if scores is not None:
        return Desk(reader, Classifier(task, scores, outputs[scores], labels))
    return Desk(reader, PlainTeller(outputs))


def _reader(manifest: Manifest, variant: Variant, find: FindFile) -> Reader:
    task = manifest.task
    by_part = task.fed(_edges(manifest.inputs, variant.inputs))
    match task.input:
        case ImageInput():
            from agent.engine.tasks.image import ImageReader

            return ImageReader(task.input, by_part["tensor"])
        case TableInput():
            from agent.engine.tasks.tabular import TableReader

            return TableReader(task.input, by_part["tensor"])
        case TextInput():
            from agent.engine.tasks.text import open_text

            parts = {spec.name: part for part, spec in by_part.items()}
            order = [parts[spec.name] for spec in manifest.inputs]
            name = task.input.vocabulary
            vocabulary = None if name is None else _read_text(_path(manifest, name, find), name)
            return open_text(task.input, by_part, order, vocabulary)
    raise AssertionError("a desk without an input")


def _edges(public: tuple[TensorSpec, ...], inner: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """Return the manifest's tensors with the quantization of the variant's, where it has one."""
    return [
        mine.model_copy(update={"quantization": theirs.quantization or mine.quantization})
        for mine, theirs in zip(public, inner, strict=True)
    ]


def _path(manifest: Manifest, name: str, find: FindFile) -> str:
    return find(next(file.digest for file in manifest.files if file.name == name))


def _read_text(path: str, name: str) -> str:
    try:
        size = Path(path).stat().st_size
        if size > MAX_VOCABULARY_BYTES:
            raise ValueError(f"expected at most {MAX_VOCABULARY_BYTES} bytes, got {size}")
        return Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CannotRunError(Reason.BAD_MANIFEST, f"{name}: {error}") from error
