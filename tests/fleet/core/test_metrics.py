"""The controller's page is as long for a large fleet as for a small one."""

from collections.abc import Iterator
from dataclasses import replace

from fleet.core.books import Release
from fleet.core.census import Device
from fleet.core.metrics import Snapshot, device_families, fleet_families
from fleet.core.report import Frame, gather, report
from fleet.core.report_views import ReportView
from fleet.core.scores import Totals
from tests.fleet.records import MemoryRecords
from tests.fleet.reports import DAY, NOW, pushed
from wire.manifest import Manifest
from wire.metrics import Buckets, Family
from wire.telemetry import Health, Histogram, ScoreWindow
from wire.twin import Capabilities, DeploymentReport, Phase, Reported, Serving

MODELS = 20
EVERY_BIN = Histogram(bins=dict.fromkeys(range(0, 2001, 100), 1))


def releases() -> list[Manifest]:
    return [pushed().model_copy(update={"model": f"model-{n}"}) for n in range(MODELS)]


def device(number: int, known: list[Manifest]) -> Device:
    id = f"cam-{number}"
    serving = tuple(
        Serving(model=each.model, version=1, manifest=each.digest, variant="int8-onnx",
                runtime="onnxruntime", since=NOW) for each in known
    )  # fmt: skip
    phases = list(Phase)
    deployments = tuple(
        DeploymentReport(model=each.model, version=1, rollout="r-1", manifest=each.digest,
                         phase=phases[number % len(phases)], since=NOW) for each in known
    )  # fmt: skip
    reported = Reported(
        device=id, desired_revision=1, agent=f"farflung 0.{number}", boot=f"b-{number}",
        labels={f"label-{number}": str(number), "site": f"site-{number}"},
        capabilities=Capabilities(), serving=serving, deployments=deployments,
    )  # fmt: skip
    health = Health(
        device=id, boot="b", seq=1, at=NOW, uptime_s=1, cpu_percent=1, load_1m=1,
        memory_total_bytes=9, memory_available_bytes=number, disk_free_bytes=number,
        agent_cpu_percent=1, agent_rss_bytes=1,
    )  # fmt: skip
    return Device(id, reported, health, ((f"n-{number}", NOW, NOW),), NOW, NOW)


def counted(number: int, known: list[Manifest]) -> Iterator[ScoreWindow]:
    for each in known:
        yield ScoreWindow(
            device=f"cam-{number}", boot="b", seq=number + 1, model=each.model, version=1,
            manifest=each.digest, variant="int8-onnx", start=NOW - 60, end=NOW - DAY // 2,
            requests=100, labelled=10, correct=9, latency=EVERY_BIN,
            predicted={number: 100}, confidence=dict.fromkeys(range(20), 5),
            confusion={f"{number},{number}": 10}, drift={0: (5, 5, 5, 5, 0, 0)},
            outcomes={f"outcome-{number}": 1},
        )  # fmt: skip


def page(devices: int) -> list[Family]:
    known = releases()
    fleet = tuple(device(number, known) for number in range(devices))
    snapshot = Snapshot(
        at=NOW, started_at=NOW - 9, version="1", broker_connected=True, queue_items=0,
        devices=fleet, rollouts=(),
        releases=tuple(Release(each.digest, each, NOW) for each in known),
    )  # fmt: skip
    windows = [window for number in range(20) for window in counted(number, known)]
    totals = (
        replace(each, device=one.id, predicted={number: 100}, outcomes={f"outcome-{number}": 1})
        for number, one in enumerate(fleet)
        for each in map(Totals.single, windows[:MODELS])
    )
    return list(fleet_families(snapshot, totals, reports(known, windows)))


def reports(known: list[Manifest], windows: list[ScoreWindow]) -> list[ReportView]:
    by_model: dict[str, list[ScoreWindow]] = {}
    for window in windows:
        by_model.setdefault(window.model, []).append(window)
    found = []
    for manifest in known:
        frame = Frame.over(manifest.model, None, None, NOW - DAY, NOW, NOW)
        records = MemoryRecords(by_model[manifest.model])
        material = gather(frame, records, [(manifest, manifest.digest)], {}, course=False)
        found.append(report(frame, material))
    return found


def series(families: list[Family]) -> int:
    found = 0
    for family in families:
        for _, value in family.samples:
            found += 1 if not isinstance(value, Buckets) else len(value.bounds) + 1
    return found


def test_a_thousand_devices_with_twenty_models_have_a_page_that_is_bounded() -> None:
    some, many = page(50), page(1000)

    assert series(many) == series(some) < 4000
    told = {part for family in many for labels, _ in family.samples for part in labels}
    assert not any(part.startswith(("cam-", "site-", "outcome-")) for part in told)
    accuracy = [family for family in many if family.metric.name == "farflung_model_accuracy_ratio"]
    assert len(accuracy[0].samples) == MODELS


def test_a_device_has_a_page_of_its_own_that_is_as_small() -> None:
    known = releases()
    totals = map(Totals.single, counted(7, known))

    families = list(device_families(device(7, known), totals, NOW))

    assert series(families) < 2000
