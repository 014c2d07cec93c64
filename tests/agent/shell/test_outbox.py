import base64
import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.shell.outbox.outbox import DAY_S, LEAST_FIRST, Outbox
from agent.shell.outbox.segments import SPARE_BYTES
from wire.codec import encode
from wire.packing import unpack
from wire.telemetry import Batch, DeviceEvent, Health, Histogram, Item, ScoreWindow

LARGE = 1024 * 1024
SMALL = 64 * 1024


def health(seq: int, **more: int) -> Health:
    values: dict[str, object] = {
        "device": "pi-1", "boot": "b", "seq": seq, "at": seq, "uptime_s": 1, "cpu_percent": 1.0,
        "load_1m": 0.5, "memory_total_bytes": 1, "memory_available_bytes": 1,
        "disk_free_bytes": 1, "agent_cpu_percent": 0.1, "agent_rss_bytes": 1, **more,
    }  # fmt: skip
    return Health.model_validate(values)


def window(seq: int, boot: str = "b", version: int = 1) -> ScoreWindow:
    return ScoreWindow(
        device="pi-1", boot=boot, seq=seq, model="digits", version=version,
        manifest="sha256:" + "0" * 64, variant="onnx-int8", start=seq, end=seq + 1, requests=seq,
        latency=Histogram(bins={300 + seq % 7: seq}), predicted={seq % 10: seq},
    )  # fmt: skip


def event(seq: int, kind: str = "crash", **counts: int) -> DeviceEvent:
    return DeviceEvent(device="pi-1", boot="b", seq=seq, at=seq, kind=kind, counts=counts)


def fill(outbox: Outbox, count: int, first: int = 1) -> None:
    """Queue windows and, as every second item, health reports."""
    for seq in range(first, first + count):
        outbox.enqueue(window(seq) if seq % 2 else health(seq))


def drained(outbox: Outbox) -> list[Batch]:
    """Take everything out, acknowledged batch by batch."""
    batches = []
    while (outgoing := outbox.batch()) is not None:
        batches.append(unpack(outgoing.body))
        outbox.forget(outgoing.last)
    return batches


def items(outbox: Outbox) -> list[Item]:
    return [item for batch in drained(outbox) for item in batch.items()]


def sequences(outbox: Outbox) -> list[int]:
    return [item.seq for item in items(outbox)]


def requests_of(found: list[Item]) -> int:
    return sum(item.requests for item in found if isinstance(item, ScoreWindow))


def check_intervals(found: list[Item]) -> None:
    """See that no number is stood for twice."""
    before = 0
    for item in found:
        first = getattr(item, "first", None) or item.seq
        assert before < first <= item.seq
        before = item.seq


# ---- in and out


def test_items_wait_until_they_are_forgotten(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    outbox.enqueue(health(1))
    outbox.enqueue(window(2))
    outbox.enqueue(event(3))

    outgoing = outbox.batch()

    assert outgoing is not None
    batch = unpack(outgoing.body)
    assert (batch.device, batch.complete, outgoing.last) == ("pi-1", True, 3)
    assert batch.items() == [health(1), window(2), event(3)]
    assert outbox.waiting == 3
    outbox.forget(2)
    assert outbox.waiting == 1
    outbox.forget(3)
    assert (outbox.batch(), outbox.waiting, outbox.acked) == (None, 0, 3)


def test_what_was_never_sent_is_not_forgotten_whatever_is_acknowledged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    outbox.enqueue(window(1))
    outbox.batch()
    outbox.enqueue(window(2))

    outbox.forget(1000)

    assert (outbox.acked, outbox.waiting) == (1, 1)


def test_a_backlog_goes_in_batches_oldest_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    fill(outbox, 300)

    batches = drained(outbox)

    assert len(batches) > 2
    assert all(batch.complete for batch in batches)
    assert [item.seq for batch in batches for item in batch.items()] == list(range(1, 301))


def test_of_a_backlog_the_newest_health_may_go_ahead_and_moves_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    fill(outbox, 300)

    ahead = outbox.newest_health()
    outbox.forget(300)

    assert ahead is not None
    batch = unpack(ahead.body)
    assert (batch.complete, [item.seq for item in batch.items()]) == (False, [300])
    assert outbox.waiting == 300
    assert sequences(outbox)[-1] == 300, "it comes once more, in its turn"


def test_without_a_backlog_nothing_goes_ahead(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    fill(outbox, 4)

    assert outbox.newest_health() is None


def test_every_byte_given_to_the_disk_is_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    fill(outbox, 4)

    assert outbox.bytes_written == outbox.flash_bytes + SPARE_BYTES > SPARE_BYTES + 300
    outbox.batch()
    outbox.forget(3)
    assert outbox.bytes_written >= outbox.flash_bytes


def test_a_restart_finds_what_waited_and_never_gives_a_number_out_twice(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    fill(outbox, 5)
    outbox.batch()
    outbox.forget(5)
    outbox.close()

    again = Outbox(tmp_path, LARGE)

    assert again.last_seq() == 5
    again.enqueue(window(6))
    assert sequences(again)[-1] == 6
    assert Outbox(tmp_path / "empty", LARGE).last_seq() == 0


def test_acknowledged_segments_leave_the_disk(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    fill(outbox, 100)
    before = outbox.flash_bytes
    while outbox.acked < 99:
        outgoing = outbox.batch()
        assert outgoing is not None
        outbox.forget(min(outgoing.last, 99))

    assert outbox.flash_bytes < before / 4
    assert outbox.flash_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    assert sequences(outbox) == [100]


# ---- room


def test_before_anything_is_dropped_what_nobody_saw_is_merged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    for seq in range(1, 2001):
        outbox.enqueue(window(seq) if seq % 2 else health(seq))
        assert outbox.flash_bytes <= SMALL

    merged, dropped = outbox.merged, outbox.dropped
    found = items(outbox)

    assert (dropped, outbox.untold) == (0, {})
    assert merged == 2000 - len(found) > 1000
    assert requests_of(found) == sum(range(1, 2001, 2))
    latency = Histogram()
    for item in found:
        if isinstance(item, ScoreWindow):
            latency = latency.merge(item.latency)
    assert latency.count == sum(range(1, 2001, 2))
    assert found[-2:] == [window(1999), health(2000)], "the newest are whole"
    check_intervals(found)


def test_a_merged_window_stands_for_all_between_and_spans_their_time(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    fill(outbox, 1000)

    first, second = sorted(items(outbox)[:2], key=lambda item: isinstance(item, Health))

    assert isinstance(first, ScoreWindow)
    assert isinstance(second, Health)
    assert (first.start, first.end) == (1, first.seq + 1)
    assert first.requests == sum(range(1, first.seq + 1, 2))
    assert second.at == second.seq >= first.seq - 1, "the latest stands for all"
    assert {first.first, second.first} == {1, None}


def test_what_was_sent_is_never_merged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    fill(outbox, 40)
    outgoing = outbox.batch()
    assert outgoing is not None
    fill(outbox, 2000, first=41)

    found = items(Outbox(tmp_path, SMALL))

    assert [item.seq for item in found][: outgoing.last] == list(range(1, outgoing.last + 1))
    assert all(getattr(item, "first", None) is None for item in found[: outgoing.last])
    assert requests_of(found) == sum(range(1, 2041, 2))
    check_intervals(found)


def test_releases_and_runs_are_not_added_to_each_other(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    for seq in range(1, 1001):
        outbox.enqueue(window(seq, boot="ab"[seq // 500 % 2], version=1 + seq % 2))

    found = [item for item in items(outbox) if isinstance(item, ScoreWindow)]

    totals: dict[tuple[str, int], int] = {}
    for each in found:
        key = (each.boot, each.version)
        totals[key] = totals.get(key, 0) + each.requests
    expected: dict[tuple[str, int], int] = {}
    for seq in range(1, 1001):
        key = ("ab"[seq // 500 % 2], 1 + seq % 2)
        expected[key] = expected.get(key, 0) + seq
    assert totals == expected
    check_intervals(found)  # type: ignore[arg-type]


def unmergeable(outbox: Outbox, count: int) -> None:
    """Queue windows of as many releases, health and, now and then, events."""
    for seq in range(1, count + 1):
        if seq % 10 == 0:
            outbox.enqueue(event(seq))
        else:
            outbox.enqueue(window(seq, version=seq) if seq % 2 else health(seq))


def test_the_least_important_is_dropped_first_and_all_is_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    unmergeable(outbox, 1500)

    untold, dropped, merged = outbox.untold, outbox.dropped, outbox.merged
    found = items(outbox)

    kinds = {DeviceEvent: 0, ScoreWindow: 0, Health: 0}
    for item in found:
        kinds[type(item)] += 1
    assert kinds[DeviceEvent] == 150, "no event is dropped while others can go"
    assert untold["windows"] == 750 - kinds[ScoreWindow] > 50
    assert untold["requests"] == sum(range(1, 1501, 2)) - requests_of(found)
    assert untold["health"] + untold["windows"] == dropped
    assert kinds[Health] + untold["health"] + merged == 600
    check_intervals(found)


def test_what_was_dropped_is_told_once_whatever_comes_between(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    unmergeable(outbox, 1500)
    untold = outbox.untold
    assert untold["windows"] > 0

    again = Outbox(tmp_path, SMALL)
    assert again.untold == untold
    again.enqueue(event(1501, "dropped", **untold))
    assert again.untold.get("windows", 0) < untold["windows"]
    left = again.untold

    assert Outbox(tmp_path, SMALL).untold == left


def test_what_others_may_have_seen_is_counted_apart_when_it_goes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SMALL)
    seq = 0
    while outbox.flash_bytes < SMALL * 0.9:
        seq += 1
        outbox.enqueue(window(seq, version=seq))
    for _ in range(3):
        outgoing = outbox.batch()
        assert outgoing is not None
        outbox.forget(outgoing.last - 90)
    seen = outbox.published
    for more in range(seq + 1, seq + 501):
        outbox.enqueue(event(more))

    assert seen > 10
    assert outbox.untold["windows_sent"] > 0
    assert outbox.untold["windows_sent"] + outbox.untold.get("windows", 0) == outbox.dropped


def test_a_smaller_bound_after_a_restart_is_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 256 * 1024)
    fill(outbox, 1000)
    outbox.close()

    again = Outbox(tmp_path, SMALL)

    assert again.flash_bytes <= SMALL
    assert again.last_seq() == 1000
    assert requests_of(items(again)) == sum(range(1, 1001, 2))


def test_what_waits_too_long_is_dropped_and_no_set_clock_hastens_that(tmp_path: Path) -> None:
    now = [0.0]
    outbox = Outbox(tmp_path, SMALL, 2 * DAY_S, mono=lambda: now[0])
    fill(outbox, 99)
    now[0] = 1.5 * DAY_S
    outbox.enqueue(health(100))
    outbox.close()
    now[0] = 7.0  # the machine was started again

    again = Outbox(tmp_path, SMALL, 2 * DAY_S, mono=lambda: now[0])
    fill(again, 20, first=101)
    young = again.dropped
    now[0] += DAY_S
    fill(again, 30, first=121)

    assert young == 0
    assert again.untold["windows"] + again.untold["health"] == again.dropped >= 80
    assert sequences(again)[-30:] == list(range(121, 151))


def test_a_window_too_long_for_any_message_is_lost_and_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, LARGE)
    counts = {key * 7: key for key in range(60_000)}

    outbox.enqueue(window(1).model_copy(update={"predicted": counts}))
    outbox.enqueue(window(2))

    assert outbox.untold == {"windows": 1, "requests": 1}
    assert sequences(outbox) == [2]


# ---- how runs end


def test_an_unclean_end_is_owed_an_event_until_there_is_one(tmp_path: Path) -> None:
    first = Outbox(tmp_path, LARGE, started=1000)
    assert (first.starts, first.owed_since) == (1, None)
    first.enqueue(health(1))
    first.enqueue(window(2))  # ends at 3

    second = Outbox(tmp_path, LARGE, started=2000)
    assert (second.starts, second.owed_since) == (2, 3)
    second.enqueue(health(3))  # ends uncleanly before it told

    third = Outbox(tmp_path, LARGE, started=3000)
    assert third.owed_since == 3
    third.enqueue(event(4, "gap"))
    assert third.owed_since is None

    fourth = Outbox(tmp_path, LARGE, started=4000)
    assert fourth.owed_since == 3000, "it had no window: all since its start is missing"
    fourth.enqueue(event(5, "gap"))
    fourth.close()

    fifth = Outbox(tmp_path, LARGE, started=5000)
    assert (fifth.starts, fifth.owed_since) == (5, None)


def test_a_clean_end_long_ago_does_not_stand_for_a_later_one(tmp_path: Path) -> None:
    Outbox(tmp_path, LARGE, started=1000).close()
    Outbox(tmp_path, LARGE, started=2000).enqueue(health(1))

    assert Outbox(tmp_path, LARGE, started=3000).owed_since == 2000


@pytest.mark.parametrize("tail", [b'{"seq": 4, "kind": "win', b"\0" * 200, b"[]\n", b"\xff\n"])
def test_a_torn_tail_costs_only_itself(tmp_path: Path, tail: bytes) -> None:
    outbox = Outbox(tmp_path, LARGE)
    for seq in (1, 2, 3):
        outbox.enqueue(window(seq))
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as file:
        file.write(tail)

    again = Outbox(tmp_path, LARGE)

    again.enqueue(window(again.last_seq() + 1))
    assert sequences(Outbox(tmp_path, LARGE)) == [1, 2, 3, 4]


@pytest.mark.parametrize("body", ["", "AAAA", "!", "e30="])
def test_an_item_that_the_disk_garbled_is_lost_alone(tmp_path: Path, body: str) -> None:
    outbox = Outbox(tmp_path, LARGE)
    for seq in (1, 2, 3):
        outbox.enqueue(window(seq))
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    start = lines[2].index('"body":"') + 8
    lines[2] = lines[2][:start] + body + '"}\n'
    path.write_text("".join(lines))

    again = Outbox(tmp_path, LARGE)

    assert sequences(again) == [1, 3]
    assert again.untold == {"windows": 1}


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


def test_the_disk_is_made_to_write_once_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    outbox = Outbox(tmp_path, LARGE)
    outbox.enqueue(window(1))
    begun = len(synced)
    for seq in range(2, 11):
        outbox.enqueue(window(seq))

    outbox.batch()
    sent = len(synced)
    outbox.batch()
    outbox.enqueue(window(11))

    assert begun == 2, "the segment and its name, once a run"
    assert sent == len(synced) == 3


# ---- a full disk


def full(monkeypatch: pytest.MonkeyPatch, write: Callable[[int, bytes], int]) -> None:
    monkeypatch.setattr(os, "write", write)


def test_a_full_disk_gives_up_the_oldest_then_the_new_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path, SMALL)
    fill(outbox, 100)
    real = os.write

    def torn(fd: int, data: bytes) -> int:
        if len(list(tmp_path.iterdir())) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:10])

    full(monkeypatch, torn)
    fill(outbox, 20, first=101)
    full(monkeypatch, real)
    outbox.enqueue(window(121))

    assert outbox.untold["windows"] + outbox.untold["health"] == outbox.dropped
    dropped = outbox.dropped
    assert sum("reports are being lost" in r.getMessage() for r in caplog.records) == 1
    again = Outbox(tmp_path, SMALL)
    assert again.untold == outbox.untold
    found = sequences(again)
    assert found[-1] == 121
    assert dropped + len(found) == 121


def test_merging_on_a_full_disk_never_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    outbox = Outbox(tmp_path, SMALL)
    real = os.write
    calls = [0]

    def sometimes(fd: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] % 23 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    full(monkeypatch, sometimes)
    fill(outbox, 1500)
    full(monkeypatch, real)
    lost = dict(outbox.untold)

    found = items(outbox)

    assert requests_of(found) + lost.get("requests", 0) == sum(range(1, 1501, 2))
    check_intervals(found)


def test_every_kind_has_its_place_in_the_order() -> None:
    assert LEAST_FIRST == ("health", "window", "event")


# ---- the directory of agents before this one


def as_before(item: Health | ScoreWindow) -> str:
    kind = "health" if isinstance(item, Health) else "scores"
    body = base64.b64encode(encode(item, deflate=True)).decode()
    return json.dumps({"seq": item.seq, "kind": kind, "body": body}) + "\n"


def test_what_an_earlier_agent_left_goes_out_and_its_numbers_go_on(tmp_path: Path) -> None:
    left = [window(seq) if seq % 2 else health(seq) for seq in range(7, 27)]
    for part in (left[:12], left[12:]):
        path = tmp_path / f"{part[0].seq:020d}.jsonl"
        path.write_text("".join(as_before(item) for item in part) + '{"seq": 99, "kin')

    outbox = Outbox(tmp_path, LARGE)
    outbox.enqueue(window(27))

    assert (outbox.last_seq(), outbox.acked, outbox.owed_since) == (27, 6, None)
    assert items(outbox) == [*left, window(27)]


def test_what_an_earlier_agent_may_have_sent_is_not_merged(tmp_path: Path) -> None:
    left = [window(seq) for seq in range(1, 101)]
    (tmp_path / f"{1:020d}.jsonl").write_text("".join(as_before(item) for item in left))

    outbox = Outbox(tmp_path, SMALL)
    fill(outbox, 1000, first=101)

    found = items(outbox)
    assert [item.seq for item in found[:100]] == list(range(1, 101))
    assert outbox.merged > 500
    assert requests_of(found) == sum(range(1, 101)) + sum(range(101, 1101, 2))


# ---- the spare room


def test_on_a_full_disk_what_waits_can_still_be_sent_and_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path, SMALL)
    fill(outbox, 60)
    capacity = sum(path.stat().st_size for path in tmp_path.iterdir())
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if sum(path.stat().st_size for path in tmp_path.iterdir()) + len(data) > capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    full(monkeypatch, write)
    first = outbox.batch()
    assert first is not None
    outbox.forget(first.last)
    fill(outbox, 6, first=61)

    assert [*unpack(first.body).items(), *items(outbox)][-6:] == [
        window(seq) if seq % 2 else health(seq) for seq in range(61, 67)
    ]
    assert outbox.dropped == 0
