"""Task files for real models, as their makers' own code would prepare and read them."""

import json
from pathlib import Path

from tests import found

# Of the face detectors in MediaPipe: what their graphs say of anchors, scores and overlap.
FACE = """
kind = "detection"
scores = "classificators"
scores_are = "logits"

[input]
kind = "image"
resize = "letterbox"
mean = [127.5]
std = [127.5]

[detection]
boxes = "regressors"
centre_scale = 128
size_scale = 128
points = 6
clip = 80
overlap = 0.3

[detection.anchors]
strides = [8, 16, 16, 16]
interpolated_aspect_ratio = 1
fixed_size = true
"""

MAGIKA = """
top = 3

[input]
kind = "text"
name = "content"
encoding = "bytes"
head = 1024
tail = 1024
block = 4096
strip = true
pad = 256
shortest = 8

[label_map]
randombytes = "unknown"
randomtxt = "txt"
"""

# A drawing is dark ink on white paper; the model wants 16 for ink and 0 for paper.
DIGITS = """
kind = "classification"
top = 2

[input]
kind = "image"
name = "drawing"
channels = "L"
resize = "stretch"
filter = "box"
mean = [255]
std = [-15.9375]
"""


# The same for faces further away: another size, one grid, other names.
FAR_FACE = (
    FACE.replace("= 128", "= 192")
    .replace("[8, 16, 16, 16]", "[4]")
    .replace("interpolated_aspect_ratio = 1\n", "")
    .replace("classificators", "reshaped_classifier_face_4")
    .replace("regressors", "reshaped_regressor_face_4")
)


def write_face(folder: Path) -> dict[str, Path]:
    """Write task and labels of a face detector; return the options of `fleet model push`."""
    return _write(folder, FACE, ["face"])


def write_far_face(folder: Path) -> dict[str, Path]:
    """Write task and labels of the full range face detector."""
    return _write(folder, FAR_FACE, ["face"])


def write_magika(folder: Path) -> dict[str, Path]:
    """Write task and labels of the file type model."""
    config = json.loads((found.magika() / "config.min.json").read_text())
    return _write(folder, MAGIKA, config["target_labels_space"])


def write_digits(folder: Path) -> dict[str, Path]:
    """Write task and labels of the digits of the samples."""
    return _write(folder, DIGITS, list(map(str, range(10))))


def _write(folder: Path, task: str, labels: list[str]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {"--task": folder / "task.toml", "--labels": folder / "labels.txt"}
    files["--task"].write_text(task)
    files["--labels"].write_text("\n".join(labels) + "\n")
    return files
