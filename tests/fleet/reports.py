"""A small fleet's telemetry for tests of reports, with numbers that can be checked by hand."""

from typing import Any

from fleet.core.report import Frame, gather, report
from fleet.core.report_views import ReleaseReportView, ReportView
from tests.fleet.records import MemoryRecords
from tests.fleet.samples import sample_manifest
from wire.manifest import Baseline, Budget, FeatureBaseline, Manifest
from wire.telemetry import Histogram, ScoreWindow

DAY = 86_400
NOW = 20_000 * DAY
"""4 October 2024, midnight."""
SINCE = NOW - 30 * DAY
LABELS = ("cat", "dog", "owl")


def pushed(version: int = 1, parent: str | None = None, **changes: Any) -> Manifest:
    """Return a release with a limit, a calibration set of 400 samples and a baseline."""
    told = {
        "parent": parent,
        "calibration": ((0.0, 0.0), (1.0, 1.0)),
        "budget": Budget(latency_ms=20.0),
        "baseline": Baseline(
            samples=400,
            features=(
                FeatureBaseline(name="brightness", edges=(0, 1, 2, 3, 4), counts=(100,) * 4),
                FeatureBaseline(name="contrast", edges=(0, 1, 2), counts=(200, 200)),
            ),
            predicted=(200, 100, 100),
        ),
        **changes,
    }
    return Manifest.model_validate({**sample_manifest(version).model_dump(), **told})


def latency(*values_us: float) -> Histogram:
    bins: dict[int, int] = {}
    for value in values_us:
        place = Histogram.bin_of(value)
        bins[place] = bins.get(place, 0) + 1
    return Histogram(bins=bins)


def window(device: str = "cam-1", days_ago: float = 1, version: int = 1, **counts: Any
           ) -> ScoreWindow:  # fmt: skip
    """Return what a device did in one minute some days ago."""
    end = NOW - int(days_ago * DAY) + 3600
    told = {"seq": 1, "boot": "b", "variant": "int8-onnx", "start": end - 60, "end": end, **counts}
    return ScoreWindow.model_validate(
        {
            "device": device,
            "model": "digits",
            "version": version,
            "manifest": pushed(version).digest,
            **told,
        }
    )


def made(
    *windows: ScoreWindow,
    releases: tuple[Manifest, ...] = (pushed(),),
    by: str | None = None,
    version: int | None = 1,
    labels: dict[str, dict[str, str]] | None = None,
    since: int = SINCE,
    until: int = NOW,
    min_devices: int = 1,
) -> ReportView:
    """Return the report on these windows."""
    frame = Frame.over("digits", version, by, since, until, NOW, min_devices)
    records = MemoryRecords(list(windows), labels or {})
    known = [(each, each.digest) for each in releases]
    names = {each.version: LABELS for each in releases}
    return report(frame, gather(frame, records, known, names))


def one(*windows: ScoreWindow, **changes: Any) -> ReleaseReportView:
    """Return the only release of the report on these windows."""
    [release] = made(*windows, **changes).releases
    return release
