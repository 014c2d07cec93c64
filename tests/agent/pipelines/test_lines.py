"""JSON lines in a file: bounded, whole, and patient with a full disk."""

import json
import resource
import threading
from pathlib import Path

import pytest

from agent.pipelines.buffer import Stopping
from agent.pipelines.lines import FileSink
from agent.pipelines.plan import FileSink as Plan


def line(number: int) -> bytes:
    return json.dumps({"n": number, "pad": "x" * 70}).encode() + b"\n"


def numbers(*paths: Path) -> list[int]:
    return [json.loads(each)["n"] for path in paths for each in path.read_text().splitlines()]


def test_the_oldest_lines_go_when_there_is_no_room_for_more(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = FileSink("door", Plan(str(path), 1000, 2), threading.Event())

    for number in range(100):
        sink.put(line(number))
    sink.close()

    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.1", "out.2"]
    kept = numbers(tmp_path / "out.2", tmp_path / "out.1", path)
    assert kept == list(range(100))[-len(kept) :]
    assert all(900 < (tmp_path / name).stat().st_size <= 1000 for name in ("out.1", "out.2"))


def test_without_old_files_there_is_one(tmp_path: Path) -> None:
    sink = FileSink("door", Plan(str(tmp_path / "out"), 1000, 0), threading.Event())

    for number in range(30):
        sink.put(line(number))

    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert numbers(tmp_path / "out")[-1] == 29


@pytest.mark.parametrize("broken", [b'{"n": 7, "pa', b'{"n": 7, "pa' + b"x" * 200_000, b""])
def test_a_line_that_a_power_loss_cut_is_taken_away(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(line(1) + line(2) + broken)

    FileSink("door", Plan(str(path), 10**6, 2), threading.Event()).put(line(3))

    assert numbers(path) == [1, 2, 3]


def test_a_file_that_is_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = FileSink("door", Plan(str(path), 10**6, 2), threading.Event())
    sink.put(line(1))

    path.rename(tmp_path / "taken")
    sink.put(line(2))

    assert (numbers(tmp_path / "taken"), numbers(path)) == ([1], [2])


def test_a_full_disk_is_waited_for_and_leaves_no_half_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "out"
    stop = threading.Event()
    sink = FileSink("door", Plan(str(path), 10**6, 2), stop)
    sink.put(line(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = threading.Thread(target=sink.put, args=(line(2),))

    # A limit stands in for the disk: the kernel writes what fits and refuses the rest.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line(1)) + 10, before[1]))
    try:
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert path.read_bytes() == line(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.join(10)

    assert numbers(path) == [1, 2]
    assert [m for m in caplog.messages if m.startswith(f"pipeline door: cannot write {path}: ")]


def test_a_directory_that_is_not_there_is_waited_for_until_the_end(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()

    with pytest.raises(Stopping):
        FileSink("door", Plan(str(tmp_path / "usb" / "out"), 10**6, 2), stop).put(line(1))

    assert not list(tmp_path.iterdir())
