"""`fleet demo` from its first words to the last process gone, as a newcomer runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fleet.demo.world import find_samples

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("demo"), pytest.mark.timeout(240)]

LIMIT_S = 150.0


class Run:
    """One run of the demo without a terminal, in a place for temporary files of its own."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.place = place
        self._output = place.with_name(place.name + ".out")
        # Whatever the demo starts inherits this, and so can be told from everything else.
        self._mark = f"{place}"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fleet", "demo", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": self._mark},
            )

    @property
    def text(self) -> str:
        return self._output.read_text()

    def until(self, words: str, limit_s: float = LIMIT_S) -> str:
        """Return what follows `words` on their line, once they were said."""
        deadline = time.monotonic() + limit_s
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)
        return self.text.partition(words)[2].partition("\n")[0]

    def end(self, number: int | None = None) -> int:
        """Return the exit code, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def leftovers(self) -> list[str]:
        """Return what is left of it: processes and files."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TMPDIR") == self._mark:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found + [str(path) for path in self.place.iterdir()]


Demo = Callable[..., Run]


@pytest.fixture
def demo() -> Iterator[Demo]:
    # Sockets have short paths: the directories that pytest makes are too deep.
    home = Path(tempfile.mkdtemp(prefix="ff"))
    runs: list[Run] = []

    def start(*arguments: str) -> Run:
        place = home / str(len(runs))
        place.mkdir()
        runs.append(Run(place, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.end(signal.SIGTERM)
    shutil.rmtree(home)


def test_the_whole_loop_ends_well_and_leaves_nothing_behind(demo: Demo) -> None:
    started = time.monotonic()
    run = demo("--seed", "5")
    run.until("farflung demo: ", limit_s=10)
    first_words_s = time.monotonic() - started

    code = run.end()

    text = run.text
    assert code == 0, text
    assert first_words_s < 5, "two seconds on a machine of its own"
    assert [line for line in text.splitlines() if re.match(r"\d\. ", line)] == [
        "1. A controller, devices, and an app on each of them",
        "2. A release, to one device that loses power halfway",
        "3. The same release, to every device",
        "4. A better release, on probation",
        "5. A worse release, refused",
    ]
    assert "none is shown twice, so none counts twice as evidence" in " ".join(text.split())
    killed = re.search(r"At (\d+)% its agent was ended with kill -9", text)
    assert killed and 20 <= int(killed[1]) <= 80
    resumed = re.search(r"resuming, (\d+) of (\d+) chunks on disk", text)
    assert resumed and 0 < int(resumed[1]) < int(resumed[2])
    for release, status in (("digits@1", "completed"), ("digits@2", "completed")):
        assert re.search(rf"{release} {status}: 5 committed", text), text
    verdicts = re.findall(r"cam-\d  (\d+) worse, (\d+) better of \d+ labelled, E = (\S+)", text)
    assert verdicts
    assert all(int(worse) > int(better) and float(e) >= 20 for worse, better, e in verdicts)
    label, ours, theirs = re.findall(r"(?:the label|digits@[23] says) +(\d)", text)
    assert label == ours != theirs
    assert "Every device serves digits@2" in text
    final = text.partition("Every device serves digits@2")[2]
    assert len(re.findall(r"^cam-\d .* digits@2 +\d+ ", final, re.MULTILINE)) == 5
    assert "\x1b" not in text
    assert run.leftovers() == []


def test_what_was_kept_can_be_used_until_it_is_interrupted(demo: Demo) -> None:
    run = demo("--keep", "--devices", "2", "--broker", "mosquitto")
    run.until("Everything runs until Ctrl-C.")
    words = run.text.partition("Try it\n")[2].partition("Everything")[0].replace("\\\n", "")
    curl, push = words.strip().splitlines()
    yours = run.place / "yours.onnx"
    shutil.copy(find_samples() / "digits-2/digits-int8.onnx", yours)

    answered = subprocess.run(curl.split(), capture_output=True, check=True, timeout=30)
    pushed = subprocess.run(
        push.split(), cwd=run.place, capture_output=True, check=True, timeout=60, text=True
    )
    yours.unlink()

    assert json.loads(answered.stdout)["model_version"] == "2"
    assert pushed.stdout.startswith("yours@1 pushed: onnx-int8")
    assert len(run.leftovers()) > 5
    assert run.end(signal.SIGINT) == 0
    assert run.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", ["1. A controller", "none counts twice as evidence"])
def test_an_interruption_at_any_time_leaves_nothing_behind(
    demo: Demo, number: int, words: str
) -> None:
    run = demo("--devices", "2")
    run.until(words)

    code = run.end(number)

    assert code == 130
    assert "Traceback" not in run.text
    assert run.leftovers() == []


def test_a_broker_that_is_none_is_told_in_one_line(demo: Demo) -> None:
    run = demo("--broker", "rabbit")

    code = run.end()

    assert code == 1
    assert run.text.strip().splitlines()[-2:] == [
        "error: controller: expected it to run, it ended with 2: --broker: expected nats, "
        "mosquitto or mqtt://USER@HOST:PORT, got 'rabbit'",
        "next: fleet serve --help",
    ]
    assert run.leftovers() == []
