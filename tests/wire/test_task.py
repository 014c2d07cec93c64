"""A task that does not fit its model is refused wherever its manifest is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from wire.codec import DecodeError, decode, encode
from wire.manifest import Manifest

SAMPLE = Path(__file__).parents[2] / "samples/digits-1/manifest.json"
IMAGE = {"kind": "image", "channels": "L"}


def manifest(**task: Any) -> bytes:
    fields = json.loads(SAMPLE.read_bytes())
    fields["task"] |= task
    return json.dumps(fields).encode()


def test_a_task_without_the_new_fields_is_written_as_it_always_was() -> None:
    task = json.loads(encode(decode(Manifest, SAMPLE.read_bytes())))["task"]

    assert task == json.loads(SAMPLE.read_bytes())["task"]


def test_a_declared_input_comes_through_the_wire() -> None:
    read = decode(Manifest, manifest(input=IMAGE, top=3, label_map={"7": "seven"}))

    assert decode(Manifest, encode(read)) == read
    assert read.task.input is not None
    assert (read.task.input.kind, read.task.input.name) == ("image", "image")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"input": {"kind": "image"}}, "expected 3 channels for RGB"),
        ({"input": IMAGE | {"tensor": "other"}}, "feeds ['other']"),
        ({"input": IMAGE | {"width": 9}}, "task.input.width: expected 8"),
        ({"input": {"kind": "smell"}}, "input"),
        ({"input": {"kind": "text"}}, "8, 8, 1]"),
        ({"input": {"kind": "text", "encoding": "words", "vocabulary": "v"}}, "expected v among"),
        ({"kind": "detection"}, "expected task.detection"),
        ({"kind": "detection", "detection": {"boxes": "probabilities"}}, "detection.boxes"),
        ({"label_map": {"7": "x" * 300}}, "label_map"),
        ({"top": 10**9}, "top"),
    ],
)
def test_a_manifest_whose_task_does_not_fit_is_no_manifest(
    task: dict[str, Any], words: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(Manifest, manifest(**task))

    assert words in str(caught.value)
