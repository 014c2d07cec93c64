import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.shell.outbox import Outbox
from wire.codec import decode
from wire.telemetry import Health, ScoreWindow
from wire.topics import Kind

LARGE = 1024 * 1024


def health(seq: int, **more: int) -> Health:
    values: dict[str, object] = {
        "device": "pi-1", "boot": "b", "seq": seq, "at": 1, "uptime_s": 1, "cpu_percent": 1.0,
        "load_1m": 0.5, "memory_total_bytes": 1, "memory_available_bytes": 1,
        "disk_free_bytes": 1, "agent_cpu_percent": 0.1, "agent_rss_bytes": 1, **more,
    }  # fmt: skip
    return Health.model_validate(values)


def window(seq: int) -> ScoreWindow:
    return ScoreWindow(
        device="pi-1", boot="b", seq=seq, model="digits", version=1,
        manifest="sha256:" + "0" * 64, variant="onnx-int8", start=1, end=2, requests=seq,
    )  # fmt: skip


def sequences(outbox: Outbox, limit: int = 10_000) -> list[int]:
    return [seq for _, seq, _ in outbox.pending(limit)]


def test_items_wait_until_they_are_forgotten(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)

    outbox.enqueue(health(1))
    outbox.enqueue(window(2))
    outbox.enqueue(window(3))

    (first, second) = outbox.pending(2)
    assert first[:2] == (Kind.HEALTH, 1)
    assert decode(Health, first[2]) == health(1)
    assert second[:2] == (Kind.SCORES, 2)
    assert decode(ScoreWindow, second[2]) == window(2)
    assert outbox.waiting == 3

    outbox.forget(2)
    assert sequences(outbox) == [3]
    outbox.forget(3)
    assert (sequences(outbox), outbox.waiting, outbox.acked) == ([], 0, 3)


def test_every_byte_given_to_the_disk_is_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    for seq in range(1, 4):
        outbox.enqueue(window(seq))

    assert outbox.bytes_written == outbox.flash_bytes > 300
    outbox.forget(3)
    assert outbox.bytes_written >= outbox.flash_bytes


def test_a_restart_finds_what_waited_and_never_gives_a_number_out_twice(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    for seq in range(1, 6):
        outbox.enqueue(window(seq))
    outbox.forget(5)
    outbox.close()

    again = Outbox(tmp_path, LARGE)

    assert again.last_seq() == 5
    again.enqueue(window(6))
    assert sequences(again)[-1] == 6
    assert Outbox(tmp_path / "empty", LARGE).last_seq() == 0


def test_acknowledged_segments_leave_the_disk(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 64 * 1024)
    for seq in range(1, 101):
        outbox.enqueue(window(seq))
    before = outbox.flash_bytes

    outbox.forget(99)

    assert outbox.flash_bytes < before / 4
    assert outbox.flash_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sequences(outbox) == [100]


def test_a_full_outbox_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 64 * 1024)

    for seq in range(1, 1001):
        outbox.enqueue(window(seq))
        assert outbox.flash_bytes <= 64 * 1024

    left = sequences(outbox)
    assert left == list(range(left[0], 1001))
    assert outbox.dropped == left[0] - 1 > 100
    assert outbox.last_seq() == 1000


def test_a_smaller_bound_after_a_restart_is_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 128 * 1024)
    for seq in range(1, 1001):
        outbox.enqueue(window(seq))
    outbox.close()

    again = Outbox(tmp_path, 64 * 1024)

    assert again.flash_bytes <= 64 * 1024
    assert again.last_seq() == 1000


@pytest.mark.parametrize("tail", [b'{"seq": 4, "kind": "sco', b"\0" * 200, b"[]\n", b"\xff\n"])
def test_a_torn_tail_costs_only_itself(tmp_path: Path, tail: bytes) -> None:
    outbox = Outbox(tmp_path, LARGE)
    for seq in (1, 2, 3):
        outbox.enqueue(window(seq))
    outbox.close()
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(tail)

    again = Outbox(tmp_path, LARGE)

    assert sequences(again) == [1, 2, 3]
    again.enqueue(window(again.last_seq() + 1))
    assert sequences(Outbox(tmp_path, LARGE)) == [1, 2, 3, 4]


def test_what_was_queued_survives_a_kill(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from agent.shell.outbox import Outbox
from tests.agent.shell.test_outbox import LARGE, window
outbox = Outbox(Path(sys.argv[1]), LARGE)
for seq in range(1, 51):
    outbox.enqueue(window(seq))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)

    assert sequences(Outbox(tmp_path, LARGE)) == list(range(1, 51))


def test_items_are_synced_once_before_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    outbox = Outbox(tmp_path, LARGE)

    for seq in range(1, 11):
        outbox.enqueue(window(seq))
    assert synced == []
    outbox.pending(10)
    outbox.pending(10)
    outbox.enqueue(window(11))
    outbox.pending(20)

    assert len(synced) == 3  # the segment and its name, then the segment


def test_a_full_disk_gives_up_the_oldest_then_the_new_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path, 64 * 1024)
    for seq in range(1, 101):
        outbox.enqueue(window(seq))
    real = os.write

    def torn(fd: int, data: bytes) -> int:
        if len(list(tmp_path.iterdir())) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:10])

    monkeypatch.setattr(os, "write", torn)
    for seq in range(101, 121):
        outbox.enqueue(window(seq))
    monkeypatch.setattr(os, "write", real)
    outbox.enqueue(window(121))

    assert sequences(outbox)[-1] == 121
    assert outbox.dropped + len(sequences(outbox)) == 121
    assert sum("reports are being lost" in r.getMessage() for r in caplog.records) == 1
    assert sequences(Outbox(tmp_path, 64 * 1024))[-1] == 121
