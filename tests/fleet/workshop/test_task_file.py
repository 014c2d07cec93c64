"""A task file is read whole or refused in one line, before anything reaches a device."""

import io
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.workshop.draft import ReleaseDraft
from fleet.workshop.errors import ArtifactError
from fleet.workshop.inspect import compose_release
from tests import found, tasks
from wire.codec import decode, encode
from wire.manifest import Manifest
from wire.task import Task

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "samples/digits-1/digits-int8.onnx"


def compose(model: Path, options: dict[str, Path]) -> ReleaseDraft:
    return compose_release(
        [model],
        name="x",
        version=None,
        labels=options.get("--labels"),
        golden=None,
        task=str(options["--task"]),
    )


def faces(folder: Path, *changes: tuple[str, str]) -> ReleaseDraft:
    """Push the face detector with a task in which some words are replaced."""
    return compose(found.face_model("short_range"), changed(tasks.write_face(folder), *changes))


def changed(options: dict[str, Path], *changes: tuple[str, str]) -> dict[str, Path]:
    text = options["--task"].read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    options["--task"].write_text(text)
    return options


def refusal(folder: Path, *changes: tuple[str, str]) -> str:
    with pytest.raises(ArtifactError) as caught:
        faces(folder, *changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_task_travels_with_the_release_and_comes_back_the_same(tmp_path: Path) -> None:
    draft = faces(tmp_path)

    task = draft.manifest.task
    assert (task.kind, task.scores, task.scores_are) == ("detection", "classificators", "logits")
    assert task.detection is not None and task.detection.anchors is not None
    assert task.detection.anchors.strides == (8, 16, 16, 16)
    assert decode(Manifest, encode(draft.manifest)) == draft.manifest


def test_what_the_file_leaves_out_of_scores_is_read_from_the_model(tmp_path: Path) -> None:
    task = compose(found.magika() / "model.onnx", tasks.write_magika(tmp_path)).manifest.task

    assert (task.kind, task.scores) == ("classification", "target_label")
    assert task.scores_are == "probabilities"


def test_anchors_and_vocabularies_become_files_of_the_release(tmp_path: Path) -> None:
    np.save(tmp_path / "anchors.npy", np.full((896, 2), 0.5, np.float32))
    grid = "strides = [8, 16, 16, 16]\ninterpolated_aspect_ratio = 1\nfixed_size = true"

    draft = faces(tmp_path, (grid, 'file = "anchors.npy"'))

    assert [file.name for file in draft.manifest.files] == ["anchors.npy"]
    assert tmp_path / "anchors.npy" in draft.files.values()


def test_a_release_directory_carries_its_task_along(tmp_path: Path) -> None:
    np.save(tmp_path / "anchors.npy", np.full((896, 2), 0.5, np.float32))
    grid = "strides = [8, 16, 16, 16]\ninterpolated_aspect_ratio = 1\nfixed_size = true"
    draft = faces(tmp_path, (grid, 'file = "anchors.npy"'))
    folder = tmp_path / "release"
    folder.mkdir()
    for path in draft.files.values():
        shutil.copy(path, folder / path.name)
    (folder / "manifest.json").write_bytes(encode(draft.manifest))

    again = compose_release([folder], name=None, version=None, labels=None, golden=None, task=None)

    assert again.manifest == draft.manifest


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("clip = 80", "clop = 80", r"expected one of boxes, form, .* under detection, got 'clop'"),
        ('resize = "letterbox"', 'resise = "crop"', "under input, got 'resise'"),
        ("[detection]", "colour = 1\n[detection]", "under input, got 'colour'"),
        ('kind = "detection"', 'kind = "magic"', "kind: Input should be 'classification'"),
        ('kind = "detection"', 'kind = "tensor"', "kind tensor: expected task.detection"),
        ("clip = 80", "clip = -80", "detection.clip: .* greater than 0"),
        ("mean = [127.5]", "mean = [1, 2]", "task.input.mean: expected 1 or 3 numbers"),
        ("std = [127.5]", "std = [0]", "task.input.std: expected numbers other than 0"),
        ("std = [127.5]", 'std = [1]\nchannels = "L"', "expected 1 channels for L in NHWC, got 3"),
        ("std = [127.5]", 'std = [1]\nlayout = "NCHW"', "expected 3 channels for RGB in NCHW"),
        ("std = [127.5]", "std = [1]\nwidth = 64", "task.input.width: expected 128 as input, got"),
        ("std = [127.5]", 'std = [1]\ntensor = "image"', r"feeds \['image'\]: expected .*'input'"),
        ('"classificators"', '"scores"', r"task.scores: expected one of \['regressors', 'class"),
        ('"regressors"', '"boxes"', "task.detection.boxes: expected one of .*, got 'boxes'"),
        ('"regressors"', '"classificators"', r"shape \[batch, anchors, 16\] with 6 points"),
        ("points = 6", "points = 5", r"shape \[batch, anchors, 14\] with 5 points, got regressors"),
        ("[8, 16, 16, 16]", "[8, 16]", "expected 896 as regressors has, the strides make 640"),
        ("[8, 16, 16, 16]", "[]", "expected either file or strides"),
        ("fixed_size = true", 'file = "a.npy"', "expected either file or strides"),
        ('kind = "image"', 'kind = "text"', "under input, got 'resize'"),
        ('kind = "image"\n', "", "input: Unable to extract tag"),
        ("clip = 80", 'form = "corners"', "expected centre where there are anchors"),
        ("clip = 80", "clip = ", "expected TOML"),
        ("clip = 80", 'classes = "regressors"', "task.scores: expected an output of 2 dim"),
    ],
)
def test_nonsense_is_refused_with_what_was_expected(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = refusal(tmp_path, (old, new))

    assert re.search(words, text), text
    assert "task.toml" in text


def test_labels_must_be_as_many_as_the_kinds_of_objects(tmp_path: Path) -> None:
    options = tasks.write_face(tmp_path)
    options["--labels"].write_text("face\nhand\n")

    with pytest.raises(ArtifactError, match="labels: expected 1, one for every class"):
        compose(found.face_model("short_range"), options)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"anchors",
        npy(np.zeros((895, 4), np.float32)),
        npy(np.zeros((896, 3), np.float32)),
        npy(np.zeros((896, 4), np.int32)),
        npy(np.full((896, 4), np.nan, np.float32)),
        npy(np.array([{}] * 896, dtype=object)),
        npy(np.zeros(896, np.float32)),
    ],
)
def test_a_file_that_holds_no_anchors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "anchors.npy").write_bytes(content)
    grid = "strides = [8, 16, 16, 16]\ninterpolated_aspect_ratio = 1\nfixed_size = true"

    text = refusal(tmp_path, (grid, 'file = "anchors.npy"'))

    assert text.startswith("anchors.npy: expected ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    grid = "strides = [8, 16, 16, 16]\ninterpolated_aspect_ratio = 1\nfixed_size = true"

    assert "anchors.npy: expected a file, got nothing" in refusal(
        tmp_path, (grid, 'file = "anchors.npy"')
    )


TOKENS = """
kind = "classification"
[input]
kind = "text"
encoding = "wordpiece"
vocabulary = "vocab.txt"
length = 2048
unknown = "[UNK]"
"""


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        (b"a\nb\n", r"task.input.unknown: expected a line of vocab.txt, got '\[UNK\]'"),
        (b"\xff\n", "vocab.txt: expected UTF-8"),
    ],
)
def test_a_vocabulary_must_hold_what_the_task_names(
    tmp_path: Path, vocabulary: bytes, words: str
) -> None:
    options = tasks.write_magika(tmp_path)
    options["--task"].write_text(TOKENS)
    (tmp_path / "vocab.txt").write_bytes(vocabulary)

    with pytest.raises(ArtifactError, match=words):
        compose(found.magika() / "model.onnx", options)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ('[input]\nkind = "text"\nhead = 100\n', "100 bytes in head and tail: expected"),
        ('[input]\nkind = "text"\nencoding = "words"\n', "vocabulary: expected a file"),
        ('[input]\nkind = "text"\nmask = "mask"\n', "feeds .*'mask'.*: expected all"),
        ('[input]\nkind = "table"\n[[input.columns]]\nname = "a"\n', "1 features: expected an"),
        ('[input]\nkind = "table"\n[[input.columns]]\nnome = "a"\n', "got 'nome'"),
        ('[input]\nkind = "table"\n[[input.columns]]\nname = "a"\nkind = "category"\n',
         "column a: expected different categories"),
        ('[input]\nkind = "table"\n[[input.columns]]\nname = "a"\nstd = 0.0\n', "std other than 0"),
        ('[input]\nkind = "image"\n', "expected a picture of shape NHWC"),
        ("top = 0\n", "top: .* greater than or equal to 1"),
        ('kind = "tensor"\ntop = 3\n', "threshold and label_map: expected a task with classes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, task: str, words: str) -> None:
    options = tasks.write_magika(tmp_path)
    options["--task"].write_text(task)

    with pytest.raises(ArtifactError, match=words):
        compose(found.magika() / "model.onnx", {"--task": options["--task"]})


def test_every_task_in_the_documents_is_one() -> None:
    page = (ROOT / "docs/tasks.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)

    read = [Task.model_validate(tomllib.loads(example)) for example in examples]

    assert len(read) >= 6
    assert {task.kind for task in read} == {"classification", "detection"}
    assert {task.input.kind for task in read if task.input} == {"image", "text", "table"}
    dumped = [task.model_dump(exclude_unset=True, mode="json") for task in read]
    assert dumped == [tomllib.loads(example) for example in examples]
