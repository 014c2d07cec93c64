"""`fleet model` over the API: whole screens."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import MemoryController
from tests.fleet.samples import sample_manifest
from wire.ids import digest_of
from wire.manifest import Budget


def write_model(path: Path, weight: float = 1.0) -> Path:
    """Write a real ONNX model: ten scores from four numbers."""
    weights = numpy_helper.from_array(np.full((4, 10), weight, np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numbers", "weights"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def test_list_shows_the_newest_first(run: Fleet) -> None:
    result = run("model", "list")

    assert result.stdout == (
        "RELEASE   VARIANTS   SIZE  PUSHED   DESCRIPTION\n"
        "digits@2  int8-onnx  50 B  5 s ago  handwritten digits\n"
        "digits@1  int8-onnx  50 B  5 s ago  handwritten digits\n"
    )
    assert run("model", "list", "other").stdout == "no releases\n"


def test_show_tells_what_the_manifest_holds(run: Fleet) -> None:
    manifest = sample_manifest(2)

    result = run("model", "show", "digits")

    assert result.stdout == (
        "digits@2\n"
        f"  digest      {manifest.digest}\n"
        "  about       handwritten digits\n"
        "  pushed      5 s ago\n"
        "  metric      accuracy 0.987\n"
        "  task        tensor\n"
        "  input       image: UINT8 (?, 28, 28)\n"
        "  output      scores: FP32 (?, 10)\n"
        "  VARIANT    FORMAT  SIZE  REQUIRES    ARTIFACT\n"
        f"  int8-onnx  onnx    50 B  ai.onnx 17  {manifest.variants[0].artifact.digest}\n"
    )
    assert run("model", "show", "digits@2").stdout == result.stdout


@pytest.mark.parametrize(
    ("release", "code", "error"),
    [
        ("digits@9", 1, "error: digits@9: no such release"),
        ("other", 1, "error: release: no model is called 'other'"),
        ("digits@x", 2, "error: release: expected NAME@VERSION such as detector@7, got"),
    ],
)
def test_show_of_what_is_not_there_leads_to_the_list(
    run: Fleet, release: str, code: int, error: str
) -> None:
    result = run("model", "show", release)

    assert result.exit_code == code
    assert result.stderr.startswith(error)
    assert result.stderr.endswith("next: fleet model list\n")


def test_push_reads_the_file_and_takes_the_next_version(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "tiny.onnx")

    result = run("model", "push", str(path))

    release = controller.release("tiny", 1)
    assert result.exit_code == 0
    assert result.stdout.startswith("tiny@1 pushed: ")
    assert result.stdout.endswith(f", {release.digest}\n")
    assert result.stderr.splitlines() == [
        f"sent tiny.onnx, {path.stat().st_size} B",
        "next: fleet rollout start tiny@1",
    ]
    assert release.manifest is not None
    assert [tensor.name for tensor in release.manifest.inputs] == ["numbers"]
    assert controller.blobs[digest_of(path.read_bytes())] == path.read_bytes()


def test_pushing_the_same_again_is_already_there(run: Fleet, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.onnx")
    run("model", "push", str(path))

    again = run("model", "push", str(path))

    assert again.exit_code == 0
    assert again.stdout.startswith("tiny@1 already there: ")
    assert "sent" not in again.stderr


def test_other_bytes_become_the_next_version_and_never_replace_one(
    run: Fleet, tmp_path: Path
) -> None:
    run("model", "push", str(write_model(tmp_path / "tiny.onnx")))
    other = str(write_model(tmp_path / "tiny.onnx", weight=2.0))

    taken = run("model", "push", other, "--version", "1")
    fresh = run("model", "push", other)

    assert taken.exit_code == 1
    assert taken.stderr.splitlines()[-2].startswith("error: tiny@1: ")
    assert taken.stderr.splitlines()[-1] == "next: fleet model push --version 2"
    assert fresh.stdout.startswith("tiny@2 pushed: ")


def test_push_with_json_prints_the_release_and_nothing_else(run: Fleet, tmp_path: Path) -> None:
    result = run("model", "push", str(write_model(tmp_path / "tiny.onnx")), "--json")

    assert json.loads(result.stdout)["model"] == "tiny"
    assert result.stderr == ""


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12"])
def test_what_is_not_a_model_is_refused_before_anything_is_sent(
    run: Fleet, controller: MemoryController, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    before = dict(controller.blobs)

    result = run("model", "push", str(path))

    assert result.exit_code == 1
    assert "broken.onnx" in result.stderr.splitlines()[0]
    assert result.stderr.endswith("next: fleet model push --help\n")
    assert "Traceback" not in result.stderr
    assert controller.blobs == before


def test_a_full_disk_at_the_controller_is_told(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    controller.disk_full = True

    result = run("model", "push", str(write_model(tmp_path / "tiny.onnx")))

    assert result.exit_code == 1
    assert "the controller's disk is full; nothing was kept" in result.stderr


def test_export_writes_the_whole_bundle_and_says_what_to_do_with_it(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    out = tmp_path / "digits.ffb"

    result = run("model", "export", "digits@2", "--out", str(out))

    assert result.stdout == f"digits@2 -> {out}, 976.6 KiB\n"
    assert "next, on the device: farflung-agent import --config agent.toml digits.ffb\n" in (
        result.stderr
    )
    data = out.read_bytes()
    assert data.startswith(b"bundle of sha256:") and data.endswith(b"end")
    assert controller.bundles == [(None, False)]
    assert list(tmp_path.iterdir()) == [out]


def test_export_for_one_device_to_be_installed_asks_for_just_that(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    out = tmp_path / "stick.ffb"

    result = run(
        "model", "export", "digits@1", "--out", str(out), "--for", "cam-7", "--install", "--json"
    )

    said = json.loads(result.stdout)
    assert said == {
        "release": "digits@1",
        "path": str(out),
        "size_bytes": out.stat().st_size,
        "device": "cam-7",
        "install": True,
    }
    assert controller.bundles == [("cam-7", True)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits@9"], "error: digits@9: no such release"),
        (["digits@1", "--for", "Cam 7"], "error: bundle: expected 1 to 40 characters"),
        (["digits@1", "--out", "/nowhere/x.ffb"], "error: export: cannot write /nowhere/x.ffb"),
    ],
)
def test_what_cannot_be_exported_is_told_and_nothing_is_left(
    run: Fleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run("model", "export", *arguments)

    assert result.exit_code == 1
    assert expected in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_off_leaves_the_earlier_file_as_it_was(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    out = tmp_path / "digits.ffb"
    out.write_bytes(b"the earlier one")
    controller.disk_full = True

    result = run("model", "export", "digits@2", "--out", str(out))

    assert result.exit_code == 1
    assert "a broken connection" in result.stderr
    assert out.read_bytes() == b"the earlier one"
    assert list(tmp_path.iterdir()) == [out]


def test_push_names_sources_and_says_how_to_fill_them(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    source = "https://cache.example/models/{digest}"

    result = run("model", "push", str(write_model(tmp_path / "tiny.onnx")), "--source", source)

    manifest = controller.kept["tiny", 1].manifest
    assert manifest is not None and manifest.sources == (source,)
    assert "fleet model export tiny@1; tar xf tiny-1.ffb -C DIRECTORY\n" in result.stderr


def test_a_source_that_devices_would_not_follow_is_refused(run: Fleet, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.onnx")

    result = run("model", "push", str(model), "--source", "http://cache.example/{digest}")

    assert result.exit_code == 1
    assert "expected https://HOST/PATH/{digest}, got 'http://cache.example" in result.stderr


def test_push_sets_a_budget_and_show_tells_it(
    run: Fleet, controller: MemoryController, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "tiny.onnx")

    run("model", "push", str(model), "--budget-ms", "2.5", "--budget-mib", "12")
    shown = run("model", "show", "tiny@1")

    manifest = controller.kept["tiny", 1].manifest
    assert manifest is not None
    assert manifest.budget == Budget(invoke_ms=2.5, memory_bytes=12 * 1024 * 1024)
    assert "2.5 ms a run, 12" in shown.stdout
    assert "of memory" in shown.stdout


TASK = """
[input]
kind = "table"

[[input.columns]]
name = "size"

[[input.columns]]
name = "fuel"
kind = "category"
categories = ["petrol", "diesel", "electric"]
"""


def test_a_task_is_pushed_with_its_model_and_shown(run: Fleet, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.onnx")
    (tmp_path / "task.toml").write_text(TASK)

    pushed = run("model", "push", str(model), "--task", str(tmp_path / "task.toml"))

    assert pushed.exit_code == 0, pushed.stderr
    shown = run("model", "show", "tiny").stdout
    assert "task        classification, logits in scores; apps send table as row\n" in shown


@pytest.mark.parametrize(
    ("task", "code", "error"),
    [
        ("magic", 2, "expected classification, tensor or a .toml file, got 'magic'"),
        ("nowhere.toml", 2, "File 'nowhere.toml' does not exist"),
        (
            TASK.replace('"diesel", ', ""),
            1,
            "3 features: expected an input of shape [batch, 3], got",
        ),
        (TASK.replace('kind = "table"', 'kind = "tables"'), 1, "input: Input tag 'tables'"),
    ],
)
def test_a_task_that_is_none_for_the_model_is_not_pushed(
    run: Fleet, tmp_path: Path, task: str, code: int, error: str
) -> None:
    model = write_model(tmp_path / "tiny.onnx")
    if code == 1:
        (tmp_path / "task.toml").write_text(task)
        task = str(tmp_path / "task.toml")

    refused = run("model", "push", str(model), "--task", task)

    assert refused.exit_code == code
    assert error in refused.stderr
    assert "tiny" not in run("model", "list").stdout
