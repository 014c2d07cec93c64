"""Models that listen, as they are pushed."""

from pathlib import Path

import pytest

from fleet.workshop.draft import ReleaseDraft
from fleet.workshop.errors import ArtifactError
from fleet.workshop.inspect import compose_release
from tests.agent.engine.speech import VAD, WAKE_WORD

STREAM = """
[stream]
rate_hz = 16000
frame = 512
context = 64
state = [{ output = "stateN", input = "state" }]
constants = { sr = 16000 }
"""
WAKE_WORD_STREAM = """
[stream]
rate_hz = 16000
frame = 3
state = "internal"
features = { extractor = "pymicro-features", version = "2" }
"""


def push(
    folder: Path, model: Path, task: str, labels: tuple[str, ...] = ("no", "yes")
) -> ReleaseDraft:
    (folder / "task.toml").write_text(task)
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    return compose_release(
        [model], name="ear", version=1, labels=folder / "labels.txt" if labels else None,
        golden=None, task=str(folder / "task.toml"),
    )  # fmt: skip


def test_a_speech_model_is_pushed_with_its_stream(tmp_path: Path) -> None:
    manifest = push(tmp_path, VAD, 'kind = "classification"\n' + STREAM).manifest

    assert manifest.stream is not None
    assert (manifest.stream.window, manifest.stream.constants) == (576, {"sr": 16000})
    # Of its two outputs one is state.
    assert (manifest.task.kind, manifest.task.scores) == ("classification", "output")


def test_a_wake_word_is_pushed_with_its_stream(tmp_path: Path) -> None:
    manifest = push(tmp_path, WAKE_WORD, 'kind = "classification"\n' + WAKE_WORD_STREAM).manifest

    assert manifest.stream is not None and manifest.stream.state == "internal"
    assert manifest.task.scores == "dense_1"


def test_what_listens_may_answer_without_classes(tmp_path: Path) -> None:
    manifest = push(tmp_path, VAD, 'kind = "tensor"\n' + STREAM, labels=()).manifest

    assert manifest.stream is not None
    assert (manifest.task.kind, manifest.labels) == ("tensor", None)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (STREAM, ("one",), "labels: expected 2, one for every class"),
        (STREAM + "hops = 3\n", ("no", "yes"), "expected one of name, tensor, .* got 'hops'"),
        (STREAM.replace("512", "0"), ("no", "yes"), "stream: frame: .* got '0'"),
        (STREAM.replace("sr =", "rate ="), ("no", "yes"), "to feed each of"),
        (STREAM.replace("stateN", "output"), ("no", "yes"), r"stream.state: output: expected FP32"),
        (WAKE_WORD_STREAM, ("no", "yes"), "to feed each of"),
        ("stream = 3\n", ("no", "yes"), "stream: document: "),
    ],
)
def test_a_stream_that_does_not_fit_is_refused_at_the_push(
    tmp_path: Path, task: str, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        push(tmp_path, VAD, 'kind = "classification"\n' + task, labels)
