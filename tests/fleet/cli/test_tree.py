"""How the command line behaves as a whole: help, typos, failures, exit codes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.__main__ import COMMANDS, fleet
from fleet.cli.group import LazyGroup
from fleet.core.views import HealthView
from tests.brokers import free_port
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import MemoryController

HEAVY = ("pydantic", "httpx", "rich", "starlette", "uvicorn", "sqlalchemy", "numpy", "onnx")


def test_help_is_quick_since_it_imports_no_command() -> None:
    program = (
        "import sys; from fleet.__main__ import fleet\n"
        "try: fleet.main(['--help'])\n"
        f"except SystemExit: sys.stderr.write(' '.join(set(sys.modules) & set({HEAVY})))"
    )

    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stderr == b""
    assert time.monotonic() - started < 10.0, "half a second on a machine of its own"
    for name in COMMANDS:
        assert f"\n  {name} ".encode() in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_help_of_each_command_is_what_the_tree_says(name: str) -> None:
    assert isinstance(fleet, LazyGroup)

    result = CliRunner().invoke(fleet, [name, "--help"])

    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: fleet {name}" if name else "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["modle", "list"], "error: no such command 'modle'; did you mean 'model'?"),
        (["rollout", "stat"], "error: no such command 'stat'; did you mean 'start'?"),
        (["device", "xyzzy"], "error: no such command 'xyzzy'"),
        (["--jsn", "top"], "error: No such option '--jsn'"),
        (["model", "show"], "error: Missing argument 'NAME[@VERSION]'"),
        (["rollout", "status", "--timeout", "5s"], "error: --timeout goes with --watch"),
        (
            ["rollout", "start", "a@1", "--no-probation", "--probation-pairs", "9"],
            "error: --no-probation and --probation-pairs exclude each other",
        ),
        (
            ["rollout", "start", "a@1", "--probation-deadline", "soon"],
            "error: Invalid value for '--probation-deadline': expected a duration such as 90s,"
            " 15m, 2h or 1d, got 'soon'",
        ),
    ],
)
def test_a_slip_of_the_hand_is_usage_and_names_the_way_on(
    arguments: list[str], expected: str
) -> None:
    result = CliRunner().invoke(fleet, arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    first, last = result.stderr.splitlines()
    assert first.startswith(expected)
    assert last.startswith("next: fleet") and last.endswith("--help")


def test_fleet_alone_shows_what_there_is() -> None:
    result = CliRunner().invoke(fleet, [])

    assert result.exit_code == 2
    assert "Commands:" in result.stderr


def test_a_controller_that_is_not_there_is_named_with_the_way_to_start_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    result = CliRunner().invoke(fleet, ["--controller", url, "device", "list"])

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"error: controller: expected an answer at {url}, got connection refused\n"
        "next: fleet serve\n"
    )


@pytest.mark.parametrize("url", ["127.0.0.1:8700", "ftp://127.0.0.1", "http://127.0.0.1:99999999"])
def test_a_url_that_is_none_is_usage(url: str) -> None:
    result = CliRunner().invoke(fleet, ["--controller", url, "device", "list"])

    assert result.exit_code == 2
    assert "expected a URL such as http://127.0.0.1:8700" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_options_of_all_commands_may_stand_behind_the_command(run: Fleet) -> None:
    before, behind = run("--json", "device", "list"), run("device", "list", "--json")

    assert before.stdout == behind.stdout
    assert [device["id"] for device in json.loads(behind.stdout)] == ["cam-1", "cam-2", "cam-3"]


def test_a_fault_of_ours_is_one_line(run: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.cli.views.device_list", lambda *_: 1 / 0)

    result = run("device", "list")

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: a fault of ours: ZeroDivisionError: division by zero",
        "next: the same with FARFLUNG_DEBUG=1 shows where; please report it",
    ]


def test_a_fault_shows_its_traceback_on_demand(monkeypatch: pytest.MonkeyPatch, run: Fleet) -> None:
    monkeypatch.setattr("fleet.cli.views.device_list", lambda *_: 1 / 0)
    monkeypatch.setenv("FARFLUNG_DEBUG", "1")

    with pytest.raises(AssertionError):  # the runner's own check: an exception came through
        run("device", "list")


def test_a_failing_controller_is_told_in_one_line(run: Fleet, controller: MemoryController) -> None:
    def broken() -> HealthView:
        raise RuntimeError("boom")

    controller.health = broken  # type: ignore[method-assign]

    result = run("top", "--once")

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: GET /v1/health: the controller failed with RuntimeError",
        "next: look into the log of the controller (fleet serve)",
    ]


def test_a_reader_that_leaves_early_is_no_fault(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m fleet --help | head -c 1",
        shell=True,
        capture_output=True,
        check=False,
    )

    assert done.stdout == b"U"
    assert b"Traceback" not in done.stderr
