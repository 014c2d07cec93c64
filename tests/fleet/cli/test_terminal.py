"""The same commands before a real (pseudo) terminal: bars, live screens, colours, Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet.core.views import RolloutRequest
from fleet.shell.api import RunningApi
from tests.fleet.cli.test_model import write_model
from tests.fleet.memory import MemoryController

GREEN, RED_BOLD = "\x1b[32m", "\x1b[1;31m"
LIMIT_S = 20.0


class Terminal:
    """A `fleet` process that believes a person is watching."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI")}
        ours, theirs = pty.openpty()
        self._ours = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fleet", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**inherited, "TERM": "xterm-256color", "COLUMNS": "160", **environment},
        )
        os.close(theirs)
        self.text = ""

    @property
    def words(self) -> str:
        """What was printed, without colours and cursor moves."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)

    def read_until(self, wanted: str | None) -> None:
        """Read until `wanted` was printed, or, for None, until the process has ended."""
        deadline = time.monotonic() + LIMIT_S
        while wanted is None or wanted not in self.words:
            assert time.monotonic() < deadline, self.words[-2000:]
            if not select.select([self._ours], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                assert wanted is None, self.words[-2000:]
                return
            self.text += data.decode(errors="replace")

    def finish(self) -> int:
        self.read_until(None)
        code = self.process.wait(LIMIT_S)
        os.close(self._ours)
        return code


def test_words_are_tinted_for_people_and_plain_on_demand(api: RunningApi) -> None:
    tinted = Terminal("--controller", api.url, "device", "list")
    plain = Terminal("--controller", api.url, "device", "list", "--no-color")

    assert (tinted.finish(), plain.finish()) == (0, 0)
    assert f"{GREEN}online" in tinted.text
    assert f"{RED_BOLD}offline" in tinted.text
    assert "\x1b[" not in plain.text
    assert "cam-1   online" in plain.text


def test_a_push_shows_a_bar(api: RunningApi, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.onnx")

    terminal = Terminal("--controller", api.url, "model", "push", str(path))

    assert terminal.finish() == 0
    assert "pushing" in terminal.text and "━" in terminal.text
    assert "tiny@1 pushed: " in terminal.text


def test_a_watch_redraws_the_screen_until_the_end(
    api: RunningApi, controller: MemoryController
) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2"))

    terminal = Terminal("--controller", api.url, "rollout", "status", "r-1", "--watch")

    assert terminal.finish() == 0
    for word in ("fetching", "probation", "completed"):
        assert word in terminal.text
    assert "━" in terminal.text


@pytest.mark.parametrize(
    ("arguments", "wanted", "code"),
    [
        (("top",), "devices online", 0),
        (("device", "cmd", "cam-1", "sleep"), "", 130),
    ],
)
def test_ctrl_c_ends_in_words(
    api: RunningApi, arguments: tuple[str, ...], wanted: str, code: int
) -> None:
    terminal = Terminal("--controller", api.url, *arguments)
    terminal.read_until(wanted)
    time.sleep(1.5)

    terminal.process.send_signal(signal.SIGINT)

    assert terminal.finish() == code
    assert "Traceback" not in terminal.text
    assert ("interrupted" in terminal.text) == (code == 130)


def test_top_bears_a_controller_that_goes_away(api: RunningApi) -> None:
    terminal = Terminal("--controller", api.url, "top")
    terminal.read_until("devices online")

    api.stop()

    terminal.read_until("trying again")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 0
