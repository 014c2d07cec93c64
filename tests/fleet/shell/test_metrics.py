"""Pages of metrics: nobody waits for statistics, and what fails there leaves the rest as it is."""

import threading
import time

import pytest

from fleet.core.books import Release
from fleet.core.metrics import Snapshot
from fleet.core.report import Frame, gather, report
from fleet.core.report_views import ReportView
from fleet.shell import metrics
from fleet.shell.metrics import Metrics, Sources
from tests.fleet.core.test_metrics import counted, device, releases
from tests.fleet.records import MemoryRecords
from tests.fleet.reports import DAY, NOW
from tests.fleet.test_controller import wait_for

KNOWN = releases()[:1]
ACCURACY = b'farflung_model_accuracy_ratio{kind="labelled",model="model-0",version="1"} 0.9'


def snapshot() -> Snapshot:
    return Snapshot(
        at=NOW, started_at=NOW - 9, version="1", broker_connected=True, queue_items=0,
        devices=(device(0, KNOWN),), rollouts=(),
        releases=tuple(Release(each.digest, each, NOW) for each in KNOWN),
    )  # fmt: skip


def day_before(model: str, at: float) -> ReportView:
    frame = Frame.over(model, None, None, NOW - DAY, NOW, NOW)
    records = MemoryRecords(list(counted(0, KNOWN)))
    known = [(each, each.digest) for each in KNOWN]
    return report(frame, gather(frame, records, known, {}, course=False))


def pages(look: object, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setattr(metrics, "CACHE_S", 0.0)
    monkeypatch.setattr(metrics, "STATISTICS_S", 0.0)
    monkeypatch.setattr(metrics, "FIRST_S", 0.05)
    return Metrics(Sources(snapshot, list, look, lambda id: []))  # type: ignore[arg-type]


def test_a_page_comes_while_statistics_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def slowly(model: str, at: float) -> ReportView:
        done.wait(20)
        return day_before(model, at)

    told = pages(slowly, monkeypatch)
    began = time.monotonic()
    early = [told.page("").body for _ in range(3)]
    took = time.monotonic() - began
    done.set()

    assert took < 10
    assert all(ACCURACY not in page and b"farflung_devices" in page for page in early)
    wait_for(lambda: ACCURACY in told.page("").body, "accuracy")


def test_what_fails_leaves_accuracy_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def once(model: str, at: float) -> ReportView:
        calls.append(model)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return day_before(model, at)

    told = pages(once, monkeypatch)
    wait_for(lambda: ACCURACY in told.page("").body, "accuracy")
    wait_for(lambda: (told.page(""), len(calls) > 2)[1], "another look")

    assert ACCURACY in told.page("").body
    assert "No space left on device" in caplog.text
