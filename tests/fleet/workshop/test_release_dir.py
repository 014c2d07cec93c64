"""A release directory is taken only when every file is what its manifest says."""

import json
import os
import shutil

import pytest

from fleet.workshop.errors import ArtifactError
from fleet.workshop.inspect import compose_release
from tests.fleet.workshop.models import DIGITS, TFLITE
from wire.codec import decode
from wire.ids import digest_of
from wire.manifest import Manifest


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DIGITS, tmp_path / "release")


def compose(folder, **options):
    defaults = {"name": None, "version": None, "labels": None, "golden": None, "task": None}
    return compose_release([folder], **(defaults | options))


def refusal(folder, **options):
    with pytest.raises(ArtifactError) as caught:
        compose(folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def edit(folder, change):
    """Change the parsed manifest in place."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace(folder, file, content):
    """Put other bytes in place of a file and name them in the manifest."""
    (folder / file["name"]).write_bytes(content)
    file["digest"], file["size_bytes"] = digest_of(content), len(content)


def test_a_whole_release_keeps_its_manifest(folder):
    draft = compose(folder)

    stated = (folder / "manifest.json").read_bytes()
    assert draft.manifest == decode(Manifest, stated)
    assert draft.manifest.digest == digest_of(stated)
    assert draft.version_given
    assert {digest_of(path.read_bytes()) for path in draft.files.values()} == set(draft.files)


def test_name_and_version_can_be_replaced(folder):
    draft = compose(folder, name="numbers", version=9)

    assert str(draft.manifest.ref) == "numbers@9"
    assert "model" in refusal(folder, name="../numbers")


def test_what_the_manifest_names_cannot_be_given_again(folder):
    for option in ({"labels": folder / "labels.txt"}, {"task": "tensor"}, {"description": "x"}):
        assert "names its own labels" in refusal(folder, **option)


@pytest.mark.parametrize(
    "name", ["digits-int8.onnx", "digits-int8.tflite", "labels.txt", "golden.npz"]
)
def test_a_file_that_is_missing_cut_or_changed_is_refused(folder, name):
    path = folder / name
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    assert f"got {len(content) - 1} with sha256:" in refusal(folder)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "make the release again" in refusal(folder)
    path.unlink()
    assert "expected a file, got nothing" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../digits-int8.onnx", "/etc/passwd", "..", ".hidden", "a\\b", "sub/file", "a\u0000b"]
)
def test_names_that_leave_the_directory_are_refused(folder, name):
    edit(folder, lambda manifest: manifest["labels"].update(name=name))

    assert "labels.name" in refusal(folder)


def test_links_are_refused_even_to_the_right_bytes(folder, tmp_path):
    for name in ("labels.txt", "manifest.json"):
        path = folder / name
        outside = shutil.move(path, tmp_path / name)
        path.symlink_to(outside)
        assert str(folder) in refusal(folder)
        path.unlink()
        shutil.move(outside, path)


def test_a_pipe_in_place_of_a_file_is_refused_and_does_not_hang(folder):
    (folder / "labels.txt").unlink()
    os.mkfifo(folder / "labels.txt")

    assert "expected a regular file" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["inputs"][0].update(shape=[-1, 9, 9, 1]), "inputs: expected"),
        (lambda v: v["outputs"][0].update(shape=[-1, 11]), "outputs: expected"),
        (lambda v: v["inputs"][0].update(datatype="FP64"), "expected tensors of types"),
        (lambda v: v["requires"].update(onnx_opsets={"": 12}), "requirements: expected"),
        (lambda v: v["requires"].update(onnx_ir=7), "requirements: expected"),
        (lambda v: v["requires"].update(custom_operators=["a::B"]), "requirements: expected"),
        (lambda v: v.update(format="tflite"), "format: expected tflite"),
    ],
)
def test_a_manifest_that_says_other_than_the_file_is_refused(folder, change, message):
    edit(folder, lambda manifest: change(manifest["variants"][0]))

    assert message in refusal(folder)


def test_architectures_are_the_manifests_alone_to_say(folder):
    edit(folder, lambda m: m["variants"][0]["requires"].update(architectures=["aarch64"]))

    assert compose(folder).manifest.variants[0].requires.architectures == ("aarch64",)


def test_a_broken_model_with_the_right_digest_is_refused(folder):
    edit(folder, lambda m: replace(folder, m["variants"][1]["artifact"], TFLITE[:-100]))

    assert "cut or broken" in refusal(folder)


def test_labels_and_golden_samples_are_looked_into(folder):
    edit(folder, lambda m: replace(folder, m["labels"], b"one\ntwo\n"))
    assert "expected 10, one for every class of 'probabilities', got 2" in refusal(folder)

    edit(folder, lambda m: m.pop("labels"))
    edit(folder, lambda m: replace(folder, m["golden"], b"not zip"))
    assert "expected golden samples as .npz" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff" * 10, b" " * 200_000], ids=len
)
def test_a_manifest_that_cannot_be_read_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)

    assert "manifest.json" in refusal(folder)
