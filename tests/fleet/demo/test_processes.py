"""Processes of the demo: watched while they run, gone when it is over."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from fleet.core.errors import FleetError
from fleet.demo import processes
from fleet.demo.processes import KEEP_LOGS, Child, last_words, stop

PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def child_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Child:
    """Start a module of one file."""
    (tmp_path / "our_program.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Child("the program", "our_program", log=tmp_path / "log")


def first_line(child: Child) -> str:
    deadline = time.monotonic() + 20
    while "\n" not in child.said():
        assert time.monotonic() < deadline, "the program said nothing"
        time.sleep(0.02)
    return child.said().splitlines()[0]


def test_a_deaf_process_goes_with_all_that_descend_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.5)
    parent = child_of(tmp_path, monkeypatch, PARENT)
    grandchild = psutil.Process(int(first_line(parent)))

    stop([parent])

    assert not psutil.pid_exists(parent.pid)
    # Whoever adopts orphans here may take its time to bury them.
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_an_end_nobody_asked_for_is_told_in_the_program_s_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_of(tmp_path, monkeypatch, "raise SystemExit('error: no disk')")
    child.wait()

    with pytest.raises(FleetError, match="program: expected it to run, it ended with 1: no disk"):
        child.check()


def test_a_process_that_was_killed_on_purpose_may_be_away_until_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_of(tmp_path, monkeypatch, "import time; print(1, flush=True); time.sleep(600)")
    first = child.pid

    child.kill()
    child.check()
    child.restart()
    child.check()

    assert child.pid != first
    stop([child])
    with pytest.raises(FleetError):
        child.check()


def test_children_are_out_of_reach_of_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os; print(os.getsid(0) == os.getpid(), os.isatty(0), flush=True)"
    child = child_of(tmp_path, monkeypatch, program)

    assert first_line(child) == "True False"
    stop([child])


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "INFO up\nerror: broker: no mosquitto\nnext: apt-get install mosquitto\n",
            ("broker: no mosquitto", "apt-get install mosquitto"),
        ),
        ("next: fleet top\nINFO one\nINFO two\n\n", ("INFO two", KEEP_LOGS)),
        ("", ("it said nothing", KEEP_LOGS)),
    ],
)
def test_last_words_are_the_error_and_the_way_out_if_there_are_any(
    log: str, expected: tuple[str, str]
) -> None:
    assert last_words(log) == expected


def test_modules_are_run_by_the_python_that_runs_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_of(tmp_path, monkeypatch, "import sys; print(sys.executable, flush=True)")

    assert first_line(child) == sys.executable
    stop([child])
