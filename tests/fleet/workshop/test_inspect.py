"""Model files become a release without anybody typing what the files know."""

import numpy as np
import pytest

from fleet.workshop.errors import ArtifactError
from fleet.workshop.inspect import compose_release
from tests.fleet.workshop.models import (
    DIGITS,
    ONNX,
    TFLITE,
    dense,
    graph_of,
    model_of,
    value,
    written,
)
from wire.ids import digest_of
from wire.manifest import Task


def compose(*paths, **options):
    defaults = {"name": None, "version": None, "labels": None, "golden": None, "task": None}
    return compose_release(list(paths), **(defaults | options))


def refusal(*paths, **options):
    with pytest.raises(ArtifactError) as caught:
        compose(*paths, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def lines(path, *labels):
    path.write_text("".join(f"{label}\n" for label in labels))
    return path


def golden(path, **arrays):
    """Five samples for `dense`, with some arrays replaced; None leaves one out."""
    all_arrays = {
        "input_0": np.ones((5, 4), np.float32),
        "output_0": np.full((5, 3), 0.5, np.float32),
    } | arrays
    np.savez(path, **{name: array for name, array in all_arrays.items() if array is not None})
    return path


@pytest.fixture
def model(tmp_path):
    return written(tmp_path / "Dense Net_v2.onnx", dense())


def test_two_files_become_two_variants_of_one_release():
    draft = compose(
        DIGITS / "digits-int8.onnx",
        DIGITS / "digits-int8.tflite",
        name="digits",
        labels=DIGITS / "labels.txt",
        golden=DIGITS / "golden.npz",
        description="ten digits",
    )

    manifest = draft.manifest
    assert str(manifest.ref) == "digits@1"
    assert not draft.version_given
    assert manifest.description == "ten digits"
    assert [variant.name for variant in manifest.variants] == ["onnx-int8", "tflite-int8"]
    assert manifest.variants[0].artifact.digest == digest_of(ONNX)
    assert manifest.variants[1].artifact.digest == digest_of(TFLITE)
    assert manifest.task == Task(
        kind="classification", scores="probabilities", scores_are="probabilities"
    )
    assert manifest.labels.name == "labels.txt"
    assert draft.files == {file.digest: DIGITS / file.name for file in manifest.all_files()}


def test_a_version_can_be_given_or_follow(model):
    given = compose(model, version=4)
    later = compose(model).with_version(7)

    assert (given.manifest.version, given.version_given) == (4, True)
    assert (later.manifest.version, later.version_given) == (7, True)
    with pytest.raises(ArtifactError, match="version"):
        later.with_version(0)


def test_the_name_comes_from_the_file_unless_given(model, tmp_path):
    assert compose(model).manifest.model == "dense-net-v2"
    assert compose(model, name="detector").manifest.model == "detector"
    assert "give one with --name" in refusal(written(tmp_path / "模型.onnx", dense()))
    assert "got 'Not Valid'" in refusal(model, name="Not Valid")


def test_a_name_as_long_as_a_file_may_be_is_cut(tmp_path):
    path = written(tmp_path / ("a" * 39 + "-bcd.onnx"), dense())

    assert compose(path).manifest.model == "a" * 39


@pytest.mark.parametrize(
    ("proto", "options", "expected"),
    [
        (dense(), {}, Task(kind="classification", scores="y", scores_are="probabilities")),
        (dense(softmax=False), {}, Task(kind="classification", scores="y", scores_are="logits")),
        (dense(classes=1), {}, Task()),
        (dense(), {"task": "tensor"}, Task()),
        (dense(batch=1), {}, Task(kind="classification", scores="y", scores_are="probabilities")),
    ],
    ids=["softmax", "logits", "one number", "asked for tensors", "batch of one"],
)
def test_the_task_follows_from_the_output(tmp_path, proto, options, expected):
    assert compose(written(tmp_path / "m.onnx", proto), **options).manifest.task == expected


def two_outputs():
    proto = dense(softmax=True)
    proto.graph.output.append(value("logits", ["n", 3]))
    return proto


def test_of_two_outputs_none_is_taken_for_scores(tmp_path):
    path = written(tmp_path / "m.onnx", two_outputs())

    assert compose(path).manifest.task == Task()
    assert "expected one output of shape (batch, classes)" in refusal(path, task="classification")


def test_labels_must_be_as_many_as_the_classes(model, tmp_path):
    right = lines(tmp_path / "right.txt", "cat", "dog", "neither")
    wrong = lines(tmp_path / "wrong.txt", "cat", "dog")

    assert compose(model, labels=right).manifest.labels.size_bytes == 16
    assert "expected 3, one for every class of 'y', got 2" in refusal(model, labels=wrong)
    assert "leave the labels out" in refusal(model, labels=right, task="tensor")


def test_labels_pick_the_output_they_fit(tmp_path):
    proto = dense(classes=3)
    proto.graph.output.append(value("x", ["n", 4]))
    path = written(tmp_path / "m.onnx", proto)

    task = compose(path, labels=lines(tmp_path / "l.txt", "a", "b", "c")).manifest.task

    assert task.scores == "y"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "got line 2 empty"),
        (b"cat\ndog\n\xff\xfe\n", "expected labels in UTF-8"),
        (b"", "got zero bytes"),
    ],
    ids=["blank", "binary", "empty"],
)
def test_labels_that_are_none_are_refused(model, tmp_path, content, message):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)

    assert message in refusal(model, labels=path)


def test_labels_from_other_systems_are_read(model, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nneither\r\n")

    assert compose(model, labels=path).manifest.labels.name == "labels.txt"


def test_golden_samples_without_a_measured_tolerance_get_one_by_precision(model, tmp_path):
    float_variant = compose(model, golden=golden(tmp_path / "g.npz")).manifest.variants[0]
    int8_variant = compose(
        DIGITS / "digits-int8.onnx", golden=DIGITS / "golden.npz"
    ).manifest.variants[0]

    assert (float_variant.golden_tolerance, float_variant.golden_flips) == (0.0005, 0)
    assert int8_variant.golden_tolerance == pytest.approx(0.1, abs=0.001)
    assert int8_variant.golden_flips == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"output_0": None}, "expected the arrays input_0, output_0 and perhaps label"),
        ({"extra": np.zeros(5)}, "got extra, input_0, output_0"),
        ({"input_0": np.ones((5, 4))}, "expected float32 as 'x' has, got float64"),
        ({"input_0": np.ones((5, 3), np.float32)}, "expected shape (5, 4)"),
        ({"input_0": np.ones((5, 4, 1), np.float32)}, "expected shape (5, 4)"),
        ({"output_0": np.ones((4, 3), np.float32)}, "expected shape (5, 3)"),
        ({"output_0": np.full((5, 3), np.nan, np.float32)}, "expected finite numbers"),
        ({"input_0": np.ones((0, 4), np.float32)}, "expected at least one sample"),
        ({"input_0": np.float32(1)}, "expected at least one sample"),
        ({"input_0": np.array([{}], dtype=object)}, "without objects"),
        ({"label": np.zeros(5, np.int32)}, "label: expected int64 of shape (5)"),
        ({"label": np.zeros(4, np.int64)}, "label: expected int64 of shape (5)"),
        ({"label": np.array([0, 1, 2, 3, 0])}, "expected classes 0 to 2, got 0 to 3"),
        ({"label": np.array([0, -1, 2, 1, 0])}, "expected classes 0 to 2, got -1 to 2"),
    ],
)
def test_golden_samples_must_be_the_models(model, tmp_path, arrays, message):
    labels = lines(tmp_path / "labels.txt", "a", "b", "c")

    assert message in refusal(model, golden=golden(tmp_path / "g.npz", **arrays), labels=labels)


def test_a_cut_or_foreign_golden_file_is_refused(model, tmp_path):
    content = golden(tmp_path / "g.npz").read_bytes()
    cut = tmp_path / "cut.npz"

    for length in range(1, len(content), 7):
        cut.write_bytes(content[:length])
        assert "expected golden samples as .npz" in refusal(model, golden=cut)


def test_golden_samples_that_unpack_to_gigabytes_are_refused(model, tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, input_0=np.zeros((5_000_000, 4), np.float32))

    assert "bytes unpacked" in refusal(model, golden=path)


def test_variants_must_take_and_answer_the_same(tmp_path):
    one = written(tmp_path / "one.onnx", dense(classes=3))
    other = written(tmp_path / "other.onnx", dense(classes=4))

    text = refusal(one, other)

    assert "other.onnx: outputs: expected y FP32[-1, 3] as in one.onnx, got y FP32[-1, 4]" in text


def test_variants_of_one_kind_get_names_of_their_own(tmp_path):
    weights = np.ones((4, 3), np.float32)
    paths = [
        written(tmp_path / f"{scale}.onnx", dense(weights=weights * scale)) for scale in (1, 2, 3)
    ]

    names = [variant.name for variant in compose(*paths).manifest.variants]

    assert names == ["onnx-float32", "onnx-float32.2", "onnx-float32.3"]


def test_the_same_file_twice_is_refused(model):
    assert "got one twice" in refusal(model, model)


def test_apps_see_the_cleaner_of_two_names(tmp_path):
    ugly, clean = (dense(weights=np.full((4, 3), scale, np.float32)) for scale in (1, 2))
    ugly.graph.input[0].name = ugly.graph.node[0].input[0] = "model/input:0"
    paths = [written(tmp_path / "ugly.onnx", ugly), written(tmp_path / "clean.onnx", clean)]

    manifest = compose(*paths).manifest

    assert manifest.inputs[0].name == "x"
    assert manifest.variants[0].inputs[0].name == "model/input:0"


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "page.onnx").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "page.tflite").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "model.pt").write_bytes(b"PK")
    (tmp_path / "nothing").mkdir()

    assert "got zero bytes" in refusal(tmp_path / "empty.onnx")
    assert "expected a whole ONNX model" in refusal(tmp_path / "page.onnx")
    assert "expected a TensorFlow Lite model" in refusal(tmp_path / "page.tflite")
    assert "expected a model as .onnx or .tflite" in refusal(tmp_path / "model.pt")
    assert "expected a file, got nothing" in refusal(tmp_path / "missing.onnx")
    assert "expected manifest.json in it" in refusal(tmp_path / "nothing")
    assert "expected a regular file" in refusal(tmp_path / "nothing", tmp_path / "page.onnx")


def test_a_tflite_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(TFLITE)

    assert compose(path).manifest.variants[0].format == "tflite"


def test_a_file_larger_than_the_formats_allow_is_refused_unread(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)

    assert "expected at most 2147483647 bytes, got 2147483648" in refusal(path)


def test_what_a_manifest_cannot_name_is_refused(tmp_path):
    path = written(
        tmp_path / "m.onnx",
        model_of(graph_of([onnx_identity("x" * 201)], [value("x" * 201, [1])], [value("y", [1])])),
    )

    assert "a manifest cannot name it" in refusal(path)


def onnx_identity(name):
    from onnx import helper

    return helper.make_node("Identity", [name], ["y"])
