"""Captured inputs at the controller: what is taken in, and from whom."""

import base64
import errno
from pathlib import Path
from typing import Any

import pytest

from fleet.core.sample_views import CaptureRequestView
from fleet.core.views import Refusal
from fleet.shell.samples import MAX_SPOILT, Samples
from wire.ids import digest_of
from wire.sample import CaptureReport, Sample, SampleAck, SampleHead

DATA = bytes(range(200))
DAY = 86_400
NOW = 1_800_000_000.0


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return opened(tmp_path)


def opened(folder: Path, max_bytes: int = 10_000, *, asked: bool = True) -> Samples:
    samples = Samples(folder / "samples", max_bytes, 30)
    if asked:
        view = CaptureRequestView(
            id="r-1", device="cam-1", model="digits", kind="random", count=2, asked_at=NOW,
            until=NOW + 60, outcome="waiting",
        )  # fmt: skip
        samples.asked(view)
    return samples


def piece(start: int = 0, end: int = 200, *, device: str = "cam-1", of: bytes = DATA,
          name: str = "s-1", request: str = "r-1", **head: Any) -> Sample:  # fmt: skip
    told = SampleHead.model_validate(
        {
            "sample": name, "request": request, "model": "digits", "version": 1,
            "manifest": digest_of(b"m"), "variant": "int8", "kind": "random", "at": int(NOW),
            "digest": digest_of(of), "size_bytes": len(of), "parts": [], "predicted": [1],
            **head,
        }
    )  # fmt: skip
    body = base64.b64encode(of[start:end]).decode()
    return Sample(device=device, head=told, offset=start, data=body)


def have(ack: SampleAck | None) -> int:
    assert ack is not None and ack.wanted
    return ack.have


def test_pieces_become_the_sample_whatever_comes_twice_or_too_early(samples: Samples) -> None:
    acks = [piece(0, 80), piece(150, 200), piece(0, 80), piece(80, 150), piece(150, 200)]

    got = [have(samples.take(each, NOW)) for each in acks]

    assert got == [80, 80, 80, 150, 200]
    assert samples.data("s-1") == DATA
    assert samples.requests()[0].received == 1


def test_a_label_that_comes_later_is_joined_once(samples: Samples) -> None:
    samples.take(piece(), NOW)

    ack = samples.take(piece(200, 200, label=[3]), NOW)
    samples.take(piece(200, 200, label=[4]), NOW)

    assert ack is not None and ack.labelled
    assert samples.sample("s-1").label == (3,)


def test_a_controller_that_restarts_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    opened(tmp_path).take(piece(0, 80), NOW)

    again = opened(tmp_path, asked=False)

    assert have(again.take(piece(0, 80), NOW)) == 80
    assert have(again.take(piece(80, 200), NOW)) == 200
    assert again.data("s-1") == DATA


@pytest.mark.parametrize(
    "hostile",
    [
        piece(device="cam-2"),
        piece(request="r-2"),
        piece(model="other"),
    ],
    ids=["another device's request", "never asked for", "another model"],
)
def test_what_was_not_asked_of_this_device_leaves_no_trace(
    samples: Samples, tmp_path: Path, hostile: Sample
) -> None:
    ack = samples.take(hostile, NOW)

    assert ack is not None and not ack.wanted
    assert samples.samples(lambda each: True) == []
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["request.json"]


def test_no_more_samples_are_taken_than_were_asked_for(samples: Samples) -> None:
    for number in range(4):
        samples.take(piece(name=f"s-{number}"), NOW)

    assert sorted(each.id for each in samples.samples(lambda each: True)) == ["s-0", "s-1"]


def test_bytes_that_are_not_those_of_the_digest_are_thrown_away_and_then_nothing_is_taken(
    samples: Samples, tmp_path: Path
) -> None:
    forged = piece(digest=digest_of(b"other"))

    acks = [samples.take(forged, NOW) for _ in range(MAX_SPOILT)]
    after = samples.take(piece(name="s-2"), NOW)

    assert [have(ack) for ack in acks] == [0] * MAX_SPOILT
    assert after is not None and not after.wanted
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.part"))
    with pytest.raises(Refusal):
        samples.data("s-1")


@pytest.mark.parametrize("data", ["!!!", base64.b64encode(b"x" * 300).decode()])
def test_a_piece_that_is_no_base64_or_longer_than_its_sample_changes_nothing(
    samples: Samples, data: str
) -> None:
    assert samples.take(piece().model_copy(update={"data": data}), NOW) is None
    assert samples.samples(lambda each: True) == []


def test_a_sample_too_large_is_no_message() -> None:
    with pytest.raises(ValueError, match="size_bytes"):
        piece(size_bytes=5 * 1024 * 1024)


def test_the_budget_of_bytes_holds_until_something_is_deleted(tmp_path: Path) -> None:
    samples = opened(tmp_path, max_bytes=250)
    samples.take(piece(name="s-0"), NOW)

    full = have(samples.take(piece(name="s-1"), NOW))
    samples.delete("s-0")

    assert full == 0
    assert have(samples.take(piece(name="s-1"), NOW)) == 200


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fleet.shell.samples.os.open", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                samples.take(piece(0, 80), NOW)

    assert have(samples.take(piece(0, 80), NOW)) == 80
    assert have(samples.take(piece(80, 200), NOW)) == 200
    assert samples.data("s-1") == DATA
    assert samples.requests()[0].received == 1, "what is sent again counts once"


def test_a_request_goes_with_its_samples_when_its_days_are_over(
    samples: Samples, tmp_path: Path
) -> None:
    samples.take(piece(), NOW)

    samples.prune(NOW + 60 + 29 * DAY)
    kept = len(samples.samples(lambda each: True))
    samples.prune(NOW + 61 + 30 * DAY)

    assert kept == 1
    assert samples.requests() == [] and list((tmp_path / "samples").iterdir()) == []


def test_a_device_that_reports_of_anothers_request_is_told_that_nobody_waits(
    samples: Samples,
) -> None:
    report = CaptureReport(device="cam-2", request="r-1", model="digits", state="over", captured=9)

    assert not samples.reported(report).wanted
    assert samples.requests()[0].captured == 0
