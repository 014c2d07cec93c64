"""A watched directory: every file is answered, once, or left for the next time."""

import os
import time
from pathlib import Path

from tests.agent.engine.harness import Listeners, Release, engine, eventually
from tests.agent.engine.models import onnx_classifier
from tests.agent.pipelines.harness import answered, frame, records, running


def folder(tmp_path: Path, name: str = "in") -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def config(source: str, more: str = "") -> str:
    return f"""
[[pipeline]]
name = "door"
model = "digits"
{more}
source = {{ directory = "in", settle_s = 0, {source} }}
sink = {{ file = "out.jsonl" }}
"""


def test_files_are_answered_in_their_order_and_deleted(tmp_path: Path, api: str) -> None:
    where = folder(tmp_path)
    for place in range(6):
        (where / f"{place}.raw").write_bytes(frame(place % 3))
        os.utime(where / f"{place}.raw", (1000 + place, 1000 + place))

    with running(api, tmp_path, config('done = "delete"')) as it:
        it.wait_for("door", taken=6, answered=6, dropped={}, failed={})

    found = records(tmp_path / "out.jsonl")
    assert [record["source"] for record in found] == [f"{place}.raw" for place in range(6)]
    assert [answered(record) for record in found] == [0, 1, 2, 0, 1, 2]
    assert {record["model_version"] for record in found} == {"7"}
    assert {record["pipeline"] for record in found} == {"door"}
    assert len({record["id"] for record in found}) == 6
    assert not list(where.iterdir())


def test_a_file_is_read_once_its_writer_has_finished(tmp_path: Path, api: str) -> None:
    where = folder(tmp_path)
    toml = config('done = "delete"').replace("settle_s = 0,", "settle_s = 1.0,")
    whole = frame(2)

    with running(api, tmp_path, toml) as it, (where / "slow.raw").open("wb", 0) as slow:
        for place in range(0, len(whole), 16):
            slow.write(whole[place : place + 16])
            time.sleep(2.4 * 16 / len(whole))
        (where / "hidden.part").write_bytes(frame(1)[:20])
        (where / ".hidden").write_bytes(frame(1)[:20])
        it.wait_for("door", taken=1, answered=1, failed={})

        (where / "hidden.part").write_bytes(frame(1))
        (where / "hidden.part").rename(where / "renamed.raw")
        it.wait_for("door", taken=2, answered=2, failed={})

    assert [answered(record) for record in records(tmp_path / "out.jsonl")] == [2, 1]
    assert [left.name for left in where.iterdir()] == [".hidden"]


def test_files_that_stay_are_answered_once_also_after_a_restart(tmp_path: Path, api: str) -> None:
    where = folder(tmp_path)
    for place in range(3):
        (where / f"{place}.raw").write_bytes(frame(place))

    with running(api, tmp_path, config('done = "leave"')) as it:
        it.wait_for("door", answered=3)
    (where / "1.raw").write_bytes(frame(2))
    with running(api, tmp_path, config('done = "leave"')) as it:
        it.wait_for("door", answered=1)
        time.sleep(1.2)
        assert it.counts["door"]["taken"] == 1

    found = records(tmp_path / "out.jsonl")
    assert sorted((r["source"], answered(r)) for r in found[:3]) == [
        ("0.raw", 0), ("1.raw", 1), ("2.raw", 2),
    ]  # fmt: skip
    assert [(r["source"], answered(r)) for r in found[3:]] == [("1.raw", 2)]


def test_what_the_model_refuses_is_told_and_moved_apart(tmp_path: Path, api: str) -> None:
    where, bad = folder(tmp_path), folder(tmp_path, "bad")
    (where / "a.raw").write_bytes(frame(0)[:-1])
    (where / "b.raw").write_bytes(frame(1))
    (where / "c.txt").write_bytes(b"not asked for")
    os.mkfifo(where / "pipe.raw")
    (where / "link.raw").symlink_to("/etc/passwd")

    toml = config('pattern = "*.raw", done = "delete", failed = "./bad"')
    with running(api, tmp_path, toml) as it:
        it.wait_for("door", taken=2, answered=1, failed={"unfit": 1})
        it.wait_until_said("a.raw: input image: expected a multiple of")

    refused, fine = sorted(records(tmp_path / "out.jsonl"), key=lambda r: r["source"])
    assert refused["error"].startswith("input image: expected a multiple of")
    assert answered(fine) == 1
    assert [left.name for left in bad.iterdir()] == ["a.raw"]
    assert sorted(p.name for p in where.iterdir()) == ["c.txt", "link.raw", "pipe.raw"]


def test_a_file_that_cannot_be_let_go_of_is_answered_once(tmp_path: Path, api: str) -> None:
    where = folder(tmp_path)
    (where / "a.raw").write_bytes(frame(0))

    with running(api, tmp_path, config('done = "./nowhere"')) as it:
        it.wait_for("door", answered=1)
        it.wait_until_said("a.raw stays where it is: No such file or directory")
        time.sleep(1.2)
        assert it.counts["door"]["taken"] == 1


def test_a_directory_that_is_not_there_is_waited_for(tmp_path: Path, api: str) -> None:
    with running(api, tmp_path, config('done = "delete"')) as it:
        it.wait_until_said("cannot read")
        (folder(tmp_path) / "a.raw").write_bytes(frame(0))
        it.wait_for("door", answered=1)


def test_an_engine_that_is_killed_costs_no_file(tmp_path: Path, listeners: Listeners) -> None:
    where = folder(tmp_path)
    release = Release(tmp_path / "release", onnx_classifier(), version=7)
    for place in range(120):
        (where / f"{place:03}.raw").write_bytes(frame(place % 3))
    api = f"unix:{listeners.path}"

    with running(api, tmp_path, config('done = "delete"', "max_per_s = 100")) as it:
        # Nobody serves: the first question waits at the door.
        it.wait_for("door", taken=1, answered=0)
        for part in (30, 70):
            with engine(listeners) as started:
                started.serve(release)
                eventually(lambda part=part: it.counts["door"]["answered"] >= part)
                started.process.kill()
        with engine(listeners) as started:
            started.serve(release)
            it.wait_for("door", taken=120, answered=120, failed={})

    found = records(tmp_path / "out.jsonl")
    assert sorted(r["source"] for r in found) == [f"{place:03}.raw" for place in range(120)]
    assert all(answered(r) == int(r["source"][:3]) % 3 for r in found)
    assert not list(where.iterdir())


def test_a_killed_pipeline_answers_every_file_and_repeats_show_by_their_id(
    tmp_path: Path, api: str
) -> None:
    where = folder(tmp_path)
    for place in range(300):
        (where / f"{place:03}.raw").write_bytes(frame(place % 3))

    for part in (60, 150):
        with running(api, tmp_path, config('done = "delete"', "max_per_s = 300")) as it:
            eventually(lambda part=part: len(list(where.iterdir())) <= 300 - part)
            it.kill()
    with running(api, tmp_path, config('done = "delete"')):
        eventually(lambda: not list(where.iterdir()))

    found = records(tmp_path / "out.jsonl")
    by_id = {record["id"]: record for record in found}
    assert sorted(r["source"] for r in by_id.values()) == [f"{p:03}.raw" for p in range(300)]
    assert len(found) - len(by_id) <= 2  # one for each time it was killed
