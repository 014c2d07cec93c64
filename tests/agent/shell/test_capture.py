"""What was captured waits on the device's disk, bounded, and goes only while it consents."""

import json
import os
import time
from pathlib import Path

import pytest

from agent.shell.capture import Captures, Message
from wire.codec import decode, encode
from wire.command import CaptureOrder
from wire.ids import digest_of
from wire.sample import CaptureReport, Sample, SampleAck
from wire.topics import Kind

NOW = float(int(time.time()))
"""Files have the time of the machine."""
DAY = 86_400
DATA = bytes(range(256)) * 8


def opened(folder: Path, consents: tuple[str, ...] = ("digits",), **more: int) -> Captures:
    told = {"max_bytes": 100_000, "days": 7, "message_bytes": 4096 + 344, **more}
    return Captures(folder / "capture", "cam-1", consents, **told)


def asked(captures: Captures, count: int = 5) -> None:
    order = CaptureOrder(model="digits", kind="random", count=count, until=int(NOW) + 3600)
    captures.start("r-1", order)


def captured(folder: Path, name: str = "s-1", data: bytes = DATA, **changes: object) -> Path:
    """Write what an engine would."""
    head = {
        "sample": name, "request": "r-1", "model": "digits", "version": 1,
        "manifest": digest_of(b"m"), "variant": "int8", "kind": "random", "at": int(NOW),
        "digest": digest_of(data), "size_bytes": len(data), "parts": [], "predicted": [1],
        **changes,
    }  # fmt: skip
    path = folder / "capture" / "r-1" / f"{name}.sample"
    path.write_bytes(json.dumps(head).encode() + b"\n" + data)
    os.utime(path, (NOW, NOW))
    return path


def pieces(messages: list[Message]) -> list[Sample]:
    return [decode(Sample, body) for kind, body in messages if kind is Kind.SAMPLE]


def report(messages: list[Message]) -> CaptureReport:
    (body,) = [body for kind, body in messages if kind is Kind.CAPTURE]
    return decode(CaptureReport, body)


def ack(have: int | None = None, sample: str = "s-1", **more: bool) -> bytes:
    told = {} if have is None else {"sample": sample, "have": have}
    return encode(SampleAck(device="cam-1", request="r-1", **told, **more))


def sent(captures: Captures, messages: list[Message]) -> tuple[bytes, list[Sample]]:
    """Acknowledge every piece until nothing more comes; return the bytes."""
    got, seen = b"", pieces(messages)
    queue = list(seen)
    while queue:
        each = queue.pop(0)
        if each.offset == len(got):
            got += each.piece()
        have = len(got) if each.data else each.head.size_bytes  # a label alone
        more, _ = captures.heard(ack(have, labelled=each.head.label is not None), 1.0)
        queue += pieces(more)
        seen += pieces(more)
    return got, seen


def test_a_sample_goes_in_pieces_and_leaves_the_disk_once_it_came(tmp_path: Path) -> None:
    captures = opened(tmp_path)
    asked(captures)
    path = captured(tmp_path)

    got, seen = sent(captures, captures.look(NOW, 0.0))

    assert got == DATA and len(seen) > 2
    assert not path.exists()
    assert path.with_suffix(".head").exists(), "its label may still come"


def test_an_agent_that_restarts_in_the_middle_goes_on_where_the_controller_is(
    tmp_path: Path,
) -> None:
    first = opened(tmp_path)
    asked(first)
    captured(tmp_path)
    first.look(NOW, 0.0)
    first.heard(ack(768), 1.0)

    again = opened(tmp_path)
    start = again.look(NOW, 0.0)
    more, _ = again.heard(ack(1536), 1.0)

    assert pieces(start)[0].offset == 0
    assert report(start).captured == 1
    assert pieces(more)[0].offset == 1536
    assert [each.count for each in again.for_engine()] == [4]


def test_without_consent_nothing_goes_and_what_waited_is_deleted(tmp_path: Path) -> None:
    first = opened(tmp_path)
    asked(first)
    captured(tmp_path, "s-1")
    captured(tmp_path, "s-2")
    first.look(NOW, 0.0)

    shy = opened(tmp_path, consents=())
    gone = list(shy.withdraw())
    messages = shy.look(NOW, 0.0)

    assert gone == [("digits", "r-1", 2)]
    assert not list((tmp_path / "capture").rglob("*.sample"))
    assert pieces(messages) == [] and list(shy.for_engine()) == []
    assert (report(messages).state, report(messages).deleted) == ("withdrawn", 2)


def test_even_before_it_is_withdrawn_nothing_goes_without_consent(tmp_path: Path) -> None:
    first = opened(tmp_path)
    asked(first)
    captured(tmp_path)

    assert pieces(opened(tmp_path, consents=("other",)).look(NOW, 0.0)) == []


def test_the_budget_of_bytes_holds(tmp_path: Path) -> None:
    captures = opened(tmp_path, max_bytes=5000)
    asked(captures)
    for number in range(4):
        captured(tmp_path, f"s-{number}")

    told = report(captures.look(NOW, 0.0))

    left = list((tmp_path / "capture").rglob("*.sample"))
    assert sum(path.stat().st_size for path in left) <= 5000
    assert (told.captured, told.deleted) == (4, 4 - len(left))


def test_what_was_not_sent_in_time_is_deleted_and_told(tmp_path: Path) -> None:
    captures = opened(tmp_path, days=2)
    asked(captures)
    path = captured(tmp_path)

    captures.look(NOW + DAY, 0.0)
    kept = path.exists()
    told = report(captures.look(NOW + 2 * DAY + 1, 1000.0))

    assert kept and not path.exists()
    assert (told.state, told.captured, told.deleted) == ("over", 1, 1)


@pytest.mark.parametrize("late", [False, True], ids=["with its sample", "after it"])
def test_labels_travel_with_samples_or_after_them(tmp_path: Path, late: bool) -> None:
    captures = opened(tmp_path)
    asked(captures)
    path = captured(tmp_path)
    if late:
        sent(captures, captures.look(NOW, 0.0))
    path.with_suffix(".label").write_text("[7]")

    _, seen = sent(captures, captures.look(NOW, 1000.0))

    assert seen[-1].head.label == (7,)
    assert not path.exists() and not path.with_suffix(".head").exists()


@pytest.mark.parametrize(
    "changes",
    [{"digest": digest_of(b"other")}, {"request": "r-2"}, {"model": "other"}, {"sample": "s-9"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_file_that_is_no_sample_of_this_order_is_deleted_unsent(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    captures = opened(tmp_path)
    asked(captures)
    path = captured(tmp_path, **changes)

    messages = captures.look(NOW, 0.0)

    assert pieces(messages) == [] and not path.exists()
    assert report(messages).captured == 0


def test_when_nobody_waits_any_more_all_of_it_is_deleted(tmp_path: Path) -> None:
    captures = opened(tmp_path)
    asked(captures)
    captured(tmp_path)
    captures.look(NOW, 0.0)

    _, engines = captures.heard(ack(wanted=False), 1.0)

    assert [each.count for each in engines] == [0]
    assert captures.idle and not (tmp_path / "capture").exists()
