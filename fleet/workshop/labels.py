"""Reads a labels file: one label a line, UTF-8."""

from fleet.workshop.errors import ArtifactError
from fleet.workshop.files import Held

MAX_LABELS_BYTES = 4 * 1024 * 1024


def read_labels(held: Held) -> list[str]:
    """Return the labels.

    Raises:
        ArtifactError: not UTF-8, or an empty line.
    """
    try:
        text = held.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{held.path}: expected labels in UTF-8, got {error.reason} at byte {error.start}; "
            "save it as UTF-8"
        ) from error
    labels = [line.strip() for line in text.rstrip("\r\n").split("\n")]
    if "" in labels:
        raise ArtifactError(
            f"{held.path}: expected a label on every line, got line {labels.index('') + 1} empty; "
            "write one label a line"
        )
    return labels
