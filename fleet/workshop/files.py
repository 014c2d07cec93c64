"""Opens the files of a release: plain names, regular files, bounded sizes."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fleet.workshop.errors import ArtifactError
from fleet.workshop.model_file import MAX_MODEL_BYTES, ModelFile
from fleet.workshop.onnx_file import read_onnx
from fleet.workshop.tflite_file import IDENTIFIER, read_tflite
from wire.codec import first_error
from wire.ids import check_plain_name, digest_of
from wire.manifest import File


@dataclass(frozen=True, slots=True)
class Held:
    """A file, what it holds, and what a manifest calls it."""

    path: Path
    content: bytes
    file: File


def hold(path: Path, *, limit: int = MAX_MODEL_BYTES) -> Held:
    """Read a whole file.

    Raises:
        ArtifactError: it is not there, not a regular file, empty, too large or unreadable, or its
            name could be taken for a path.
    """
    try:
        name = check_plain_name(path.name)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}; rename the file") from error
    try:
        if not path.exists():
            raise ArtifactError(f"{path}: expected a file, got nothing; check the path")
        if not path.is_file():
            raise ArtifactError(f"{path}: expected a regular file, got something else; name a file")
        size = path.stat().st_size
        if size == 0:
            raise ArtifactError(f"{path}: expected content, got zero bytes; write the file again")
        if size > limit:
            raise ArtifactError(
                f"{path}: expected at most {limit} bytes, got {size}; push something smaller"
            )
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    return Held(path, content, File(name=name, digest=digest_of(content), size_bytes=len(content)))


def read_model(held: Held) -> ModelFile:
    """Read a model of either format, told apart by content, then by name.

    Raises:
        ArtifactError: it is neither, or broken.
    """
    try:
        return _read(held)
    except ValidationError as error:
        raise ArtifactError(
            f"{held.path}: {first_error(error)}; a manifest cannot name it: export the model again"
        ) from error


def _read(held: Held) -> ModelFile:
    suffix = held.path.suffix.lower()
    if held.content[4:8] == IDENTIFIER or suffix == ".tflite":
        return read_tflite(held.file.name, held.content)
    if suffix == ".onnx":
        return read_onnx(held.file.name, held.content)
    raise ArtifactError(
        f"{held.path}: expected a model as .onnx or .tflite, or a release directory, got "
        f"{suffix or 'a name without suffix'}; convert it to one of them"
    )
