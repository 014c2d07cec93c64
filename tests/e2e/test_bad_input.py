"""What people get wrong: each has one clear line, the next step, and an exit code of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import free_port
from tests.e2e.harness import SAMPLES, Fleet
from tests.e2e.models import write_divider, write_external

DIGITS = SAMPLES / "digits-1" / "digits-int8.onnx"


def test_a_file_that_is_no_whole_model_is_not_pushed(default_fleet: Fleet, tmp_path: Path) -> None:
    letter = tmp_path / "letter.onnx"
    letter.write_text("Dear model,\n" * 20)
    cut_onnx = tmp_path / "cut.onnx"
    cut_onnx.write_bytes(DIGITS.read_bytes()[:9000])
    cut_tflite = tmp_path / "cut.tflite"
    cut_tflite.write_bytes(DIGITS.with_suffix(".tflite").read_bytes()[:9000])
    external = write_external(tmp_path / "external.onnx")
    missing = tmp_path / "missing.onnx"

    said = {
        file.name: default_fleet.cli("model", "push", str(file), code=1).splitlines()
        for file in (letter, cut_onnx, cut_tflite, external, missing)
    }

    for name, (error, step) in said.items():
        assert error.startswith("error: ") and name in error
        assert step == "next: fleet model push --help"
    assert "external data" in said["external.onnx"][0]
    assert default_fleet.client.releases() == []


def test_a_name_and_version_stand_for_the_same_bytes_for_ever(
    default_fleet: Fleet, tmp_path: Path
) -> None:
    safe = write_divider(tmp_path / "safe.onnx", careful=True)
    other = write_divider(tmp_path / "other.onnx", careful=False)
    name = ("--name", "ratio", "--version", "1")
    first = default_fleet.cli("model", "push", str(safe), *name)

    again = default_fleet.cli("model", "push", str(safe), *name)
    refused = default_fleet.cli("model", "push", str(other), *name, code=1).splitlines()

    assert "ratio@1 pushed" in first and "ratio@1 already there" in again
    assert refused[-2:] == [
        "error: ratio@1 exists with other bytes",
        "next: push it as version 2",
    ]


def test_what_is_not_there_is_named_and_so_is_what_is_nearest(default_fleet: Fleet) -> None:
    default_fleet.join("cam-1")
    default_fleet.push(SAMPLES / "digits-1")
    wrong = {
        "device show cam-l": "error: no device 'cam-l'; nearest is cam-1",
        "device cmd front-door ping": "error: no device 'front-door'",
        "device cmd cam-1 reboot": "error: verb: expected one of ping, restart-engine, ",
        "rollout start digits@7": "error: no release digits@7; nearest is digits@1",
        "rollout start digits": "error: release: expected NAME@VERSION such as detector@7, ",
        "rollout start digits@1 --to device=cam-2": "error: no device 'cam-2'; nearest is cam-1",
        "rollout status r-9": "error: no rollout 'r-9'",
    }

    said = {text: default_fleet.cli(*text.split(), code=1).splitlines() for text in wrong}

    for text, error in wrong.items():
        assert said[text][0].startswith(error)
        assert len(said[text]) == 2 and said[text][1].startswith("next: fleet ")
    assert default_fleet.client.rollouts() == []


@pytest.mark.parametrize("command", [["device", "list"], ["model", "push", str(DIGITS)], ["top"]])
def test_a_controller_that_is_not_there_is_one_line(command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    code, said = run("fleet", "--controller", url, *command)

    assert code == 1
    assert said == [
        f"error: controller: expected an answer at {url}, got connection refused",
        "next: fleet serve",
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("[broker]\nuser = 'me'", "[broker] user: unknown key; the nearest is username in"),
        ("data-dir = 'data'", "data-dir: unknown key; the nearest is data_dir at the top of"),
        ("device = 'Front Door'", "device: expected 1 to 40 characters of a-z, 0-9 and inner"),
        ("device = ", "not TOML: "),
    ],
)
def test_a_mistake_in_the_agents_configuration_is_one_line(
    tmp_path: Path, line: str, error: str
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(line + "\n")

    code, said = run("agent", "--config", str(config))

    assert code == 1
    assert len(said) == 1
    assert said[0].startswith(f"farflung-agent: {config}: {error}")


def run(*arguments: str) -> tuple[int, list[str]]:
    """Run one of our programs; return its exit code and the lines on its stderr."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr.splitlines()
