"""Reads a release directory: `manifest.json` and the files it names, beside it."""

from pathlib import Path

from fleet.workshop.draft import ReleaseDraft, changed
from fleet.workshop.errors import ArtifactError
from fleet.workshop.files import Held, hold, read_model
from fleet.workshop.golden import read_golden
from fleet.workshop.labels import read_labels
from fleet.workshop.model_file import listed
from fleet.workshop.task_file import check_task
from wire.codec import MAX_DOCUMENT_BYTES, DecodeError, decode
from wire.manifest import File, Manifest, TensorSpec, Variant

MANIFEST = "manifest.json"


def read_release(folder: Path, *, name: str | None, version: int | None) -> ReleaseDraft:
    """Check every file of a release against its manifest; `name` and `version` replace its own.

    Raises:
        ArtifactError: no manifest, a broken one, or a file that is not what it says.
    """
    manifest = _manifest(folder)
    held = {file.digest: _hold(folder, file) for file in manifest.all_files()}
    for variant in manifest.variants:
        _check_variant(variant, held[variant.artifact.digest])
    classes = None
    if manifest.labels is not None:
        classes = len(read_labels(held[manifest.labels.digest]))
        check_classes(manifest, classes)
    if manifest.golden is not None:
        golden = held[manifest.golden.digest].path
        read_golden(golden, manifest.inputs, manifest.outputs, classes)
    contents = {file.name: held[file.digest].content for file in manifest.files}
    check_task(MANIFEST, manifest, contents)
    return ReleaseDraft(
        manifest=changed(
            manifest, model=name or manifest.model, version=version or manifest.version
        ),
        version_given=True,
        files={digest: file.path for digest, file in held.items()},
    )


def check_classes(manifest: Manifest, labels: int) -> None:
    """Refuse labels that are not as many as the classes.

    Raises:
        ArtifactError: they are not, or the task has none.
    """
    scores = [output for output in manifest.outputs if output.name == manifest.task.scores]
    classes = scores[0].shape[-1] if scores and scores[0].shape else None
    boxes = manifest.task.detection
    if boxes is not None and boxes.classes is not None:
        return
    if boxes is not None and boxes.background and classes is not None and classes > 0:
        classes -= 1
    if classes is None:
        raise ArtifactError(
            f"labels: expected a classification with scores among its outputs, got task "
            f"{manifest.task.kind}, scores {manifest.task.scores!r}; leave the labels out"
        )
    if manifest.stream is not None and classes == 1:
        classes = 2  # one score, from whose threshold on it is the second
    if classes not in (-1, labels):
        raise ArtifactError(
            f"labels: expected {classes}, one for every class of {manifest.task.scores!r}, got "
            f"{labels}; write one label a line"
        )


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{folder}: expected {MANIFEST} in it, got none; name the model files")
    content = hold(path, limit=MAX_DOCUMENT_BYTES).content
    try:
        return decode(Manifest, content)
    except DecodeError as error:
        raise ArtifactError(f"{path}: {error}; write the manifest again") from error


def _hold(folder: Path, file: File) -> Held:
    """Read a file that the manifest names; its name was checked to be without any path."""
    path = folder / file.name
    if path.is_symlink():
        raise ArtifactError(f"{path}: expected a file, got a link; put the file itself there")
    held = hold(path)
    if held.file != file:
        raise ArtifactError(
            f"{path}: expected {file.size_bytes} bytes with digest {file.digest}, got "
            f"{held.file.size_bytes} with {held.file.digest}; make the release again"
        )
    return held


def _check_variant(variant: Variant, held: Held) -> None:
    model = read_model(held)
    if model.format != variant.format:
        raise _differs(held, "format", variant.format, model.format)
    for kind, stated, read in (
        ("inputs", variant.inputs, model.inputs),
        ("outputs", variant.outputs, model.outputs),
    ):
        if _nameless(stated) != _nameless(read):
            raise _differs(held, kind, listed(stated), listed(read))
    # A model file does not know what machines and runtimes it is for; its memory is an estimate.
    unknown: dict[str, object] = {"architectures": (), "runtimes": None, "memory_bytes": None}
    stated_needs = variant.requires.model_copy(update=unknown)
    read_needs = model.requires.model_copy(update=unknown)
    if read_needs != stated_needs:
        raise _differs(held, "requirements", stated_needs, read_needs)


def _differs(held: Held, what: str, expected: object, got: object) -> ArtifactError:
    return ArtifactError(
        f"{held.path}: {what}: expected {expected} as in the manifest, got {got}; "
        "make the release again"
    )


def _nameless(specs: tuple[TensorSpec, ...]) -> list[tuple[object, ...]]:
    return [(spec.datatype, spec.shape, spec.quantization) for spec in specs]
