"""Metrics as text for a Prometheus, put together at most once in a few seconds.

However often it is asked, the controller's loop only hands over what it knows; counting and
writing are done on the thread of whoever asks.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet.core.metrics import Snapshot, device_families, fleet_families, judged
from fleet.core.report_views import ReportView
from fleet.core.scores import Totals
from fleet.core.views import Refusal
from wire.metrics import Buckets, Family

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_log = logging.getLogger(__name__)

CACHE_S = 2.0
STATISTICS_S = 30.0
"""How long accuracy and drift stand at least: they are of a whole day."""

REST = 20
"""And so many times as long as it took to look at them."""

FIRST_S = 5.0
"""The first page waits so long for them, no other does."""


@dataclass(frozen=True, slots=True)
class Page:
    """Text in the format that was asked for."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from; each may be asked from any thread."""

    snapshot: Callable[[], Snapshot]
    totals: Callable[[], list[Totals]]
    """Of every release, over everything ever counted."""
    report: Callable[[str, float], ReportView]
    """On a model, of the day before a time."""
    device_totals: Callable[[str], list[Totals]]


class Metrics:
    """The pages of metrics of one controller."""

    def __init__(self, sources: Sources) -> None:
        """Nothing is asked yet."""
        self._sources = sources
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._taken_at = float("-inf")
        self._families: list[Family] | None = None
        self._reports: list[ReportView] | None = None
        """None: nobody has looked yet."""
        self._judge_at = float("-inf")
        self._judge: threading.Thread | None = None

    def page(self, accept: str, device: str | None = None) -> Page:
        """Return the page of the fleet, or of one device.

        Raises:
            Refusal: 404, no such device.
        """
        with self._lock:
            snapshot = self._look()
            if device is None:
                if self._families is None:
                    self._families = list(
                        fleet_families(snapshot, self._sources.totals(), self._judged(snapshot))
                    )
                families = self._families
        if device is not None:
            families = self._of_device(snapshot, device)
        return _written(families, accept, process=device is None)

    def _look(self) -> Snapshot:
        now = time.monotonic()
        if self._snapshot is None or now - self._taken_at >= CACHE_S:
            self._snapshot = self._sources.snapshot()
            self._taken_at = now
            self._families = None
        return self._snapshot

    def _judged(self, snapshot: Snapshot) -> list[ReportView]:
        """Return accuracy and drift as they were looked at last; that is done beside the pages."""
        idle = self._judge is None or not self._judge.is_alive()
        if idle and time.monotonic() >= self._judge_at:
            self._judge = threading.Thread(
                target=self._look_at, args=(snapshot,), name="metrics", daemon=True
            )
            self._judge.start()
        if self._reports is None and self._judge is not None:
            self._judge.join(FIRST_S)
        return self._reports or []

    def _look_at(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        try:
            models = dict.fromkeys(model for model, _ in judged(snapshot))
            self._reports = [self._sources.report(model, snapshot.at) for model in models]
        except Exception as error:
            # A full disk, or the end of the controller: the next look may fare better.
            _log.warning("metrics: accuracy and drift stay as they were: %s", error)
        now = time.monotonic()
        self._judge_at = now + max(STATISTICS_S, REST * (now - began))

    def _of_device(self, snapshot: Snapshot, id: str) -> list[Family]:
        for device in snapshot.devices:
            if device.id == id:
                totals = self._sources.device_totals(id)
                return list(device_families(device, totals, snapshot.at))
        raise Refusal(404, f"no device {id[:80]!r}", "fleet device list")


class _Collector:
    """Ours, as prometheus_client wants them."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for family in self._families:
            metric = family.metric
            if not family.samples:
                continue
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, value in family.samples:
                    assert isinstance(value, Buckets)
                    bounds = [(_bound(bound), n) for bound, n in value.bounds]
                    histogram.add_metric(labels, bounds, value.sum)
                yield histogram
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            simple = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in family.samples:
                assert not isinstance(value, Buckets)
                simple.add_metric(labels, value)
            yield simple


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)


def _written(families: Iterable[Family], accept: str, *, process: bool) -> Page:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    if process:
        ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return Page(encode(registry), content_type)
