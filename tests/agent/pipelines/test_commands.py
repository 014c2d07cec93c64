"""Commands at both ends: real processes that print frames, end, hang and read slowly."""

import json
import os
import time
from pathlib import Path
from typing import Any

from tests.agent.engine.harness import eventually
from tests.agent.pipelines.harness import (
    FRAMES,
    ROWS,
    SIZE,
    answered,
    ear,
    records,
    running,
    script,
)


def test_frames_of_a_size_are_answered_and_a_slow_model_makes_the_command_wait(
    tmp_path: Path, api: str
) -> None:
    body = FRAMES + "for n in range(300): out.write(frames[n % 3])\ntime.sleep(600)\n"

    with running(api, tmp_path, ear(script(tmp_path, "mic", body), SIZE)) as it:
        it.wait_for("ear", taken=300, answered=300, dropped={}, failed={}, restarts=0)

    found = records(tmp_path / "out.jsonl")
    assert [answered(record) for record in found] == [0, 1, 2] * 100
    assert len({record["id"] for record in found}) == 300


def test_lines_of_json_are_answered(tmp_path: Path, api: str) -> None:
    lines = [json.dumps(row) for row in ROWS] + ["not json", "[1, NaN]", json.dumps(ROWS[2])]
    body = f"for line in {lines!r}: print(line, end='\\r\\n')\ntime.sleep(600)\n"
    toml = ear(script(tmp_path, "sensor", body), '"lines"', 'input = "json"')

    with running(api, tmp_path, toml) as it:
        it.wait_for("ear", taken=6, answered=4, failed={"unfit": 2})

    found = records(tmp_path / "out.jsonl")
    assert [answered(record) for record in found if "outputs" in record] == [0, 1, 2, 2]
    errors = [record["error"] for record in found if "error" in record]
    assert errors[0].startswith("expected a JSON list of numbers: Expecting value")
    assert errors[1] == "expected a JSON list of numbers: NaN is no number"


def test_a_command_that_ends_is_started_again_and_says_why(tmp_path: Path, api: str) -> None:
    body = FRAMES + (
        "out.write(struct.pack('>I', len(frames[1])) + frames[1] + b'cut')\n"
        "sys.exit('the camera is gone')\n"
    )

    with running(api, tmp_path, ear(script(tmp_path, "cam", body), '"length"')) as it:
        it.wait_for("ear", answered=3, restarts=2, failed={})
        it.wait_until_said("ended with code 1: the camera is gone; starting it again")
    assert len([line for line in it.said if "starting it again" in line]) == 1


def test_a_command_that_is_not_there_is_tried_again(tmp_path: Path, api: str) -> None:
    missing = json.dumps([str(tmp_path / "camera")])

    with running(api, tmp_path, ear(missing, '"lines"', 'input = "json"')) as it:
        it.wait_until_said("camera: No such file or directory; starting it again")
        (tmp_path / "camera").write_text(f"#!/bin/sh\necho '{json.dumps(ROWS[1])}'\nsleep 600\n")
        (tmp_path / "camera").chmod(0o755)
        it.wait_for("ear", answered=1)


def test_frames_that_cannot_be_cut_restart_the_command(tmp_path: Path, api: str) -> None:
    body = "out.write(b'\\xff' * 1000)\ntime.sleep(600)\n"

    with running(api, tmp_path, ear(script(tmp_path, "cam", body), '"length"')) as it:
        it.wait_until_said("expected a frame of at most")
        eventually(lambda: it.counts["ear"]["restarts"] >= 1)


def test_everything_ends_within_seconds_whatever_the_commands_do(tmp_path: Path, api: str) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    shell = json.dumps(["sh", "-c", "trap '' TERM; sleep 601 & sleep 602 & wait"])
    stuck = script(tmp_path, "stuck", deaf + "time.sleep(600)\n")
    toml = ear(shell, '"lines"', sink=f"{{ command = {stuck} }}")
    flood = script(tmp_path, "flood", deaf + FRAMES + "while True: out.write(frames[0])\n")
    toml += ear(flood, SIZE, sink=f"{{ command = {stuck} }}").replace('"ear"', '"flood"')

    with running(api, tmp_path, toml) as it:
        # Nobody reads the answers, so nothing is taken any more: all along the line they wait.
        eventually(lambda: it.counts.get("flood", {}).get("answered", 0) > 100)
        eventually(lambda: unchanged(it))
        assert len(it.commands()) == 6

        began = time.monotonic()
        assert it.stop() == 0
        # The commands sleep for ten minutes.
        assert time.monotonic() - began < 30


def unchanged(it: Any) -> bool:
    before = dict(it.counts)
    time.sleep(1.2)
    return before == it.counts


def test_answers_reach_a_command_that_reads_them_and_one_that_dies_is_replaced(
    tmp_path: Path, api: str
) -> None:
    body = FRAMES + "for n in range(30): out.write(frames[n % 3]); time.sleep(0.02)\ntime.sleep(600)\n"  # fmt: skip # noqa: E501
    reader = f"""
        for n, line in enumerate(sys.stdin):
            with open({str(tmp_path / "heard")!r}, "a") as file:
                file.write(line)
            if n == 9:
                sys.exit("enough")
    """
    sink = f"{{ command = {script(tmp_path, 'reader', reader)} }}"

    with running(api, tmp_path, ear(script(tmp_path, "mic", body), SIZE, sink=sink)) as it:
        counts = it.wait_for("ear", taken=30, answered=30)
        it.wait_until_said("ended with code 1: enough")
        assert counts["restarts"] >= 1
        assert os.getsid(it.commands()[0].pid) == it.process.pid

    heard = records(tmp_path / "heard")
    assert len(heard) >= 20
    assert {answered(record) for record in heard} == {0, 1, 2}


def test_a_model_that_is_not_served_is_waited_for(tmp_path: Path, api: str) -> None:
    toml = ear(script(tmp_path, "mic", FRAMES + "out.write(frames[0])\ntime.sleep(600)\n"), SIZE)

    with running(api, tmp_path, toml.replace('"digits"', '"words"')) as it:
        it.wait_until_said("model 'words' is not served; expected one of ['digits']; trying again")
        eventually(lambda: it.counts["ear"]["retries"] >= 2)
    assert it.counts["ear"] == {**it.counts["ear"], "taken": 1, "answered": 0, "failed": {}}
