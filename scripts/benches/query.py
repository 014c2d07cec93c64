"""A report over a thousand devices and a month: from the request to the last byte of its answer.

A real `fleet serve` answers `GET /v1/models/digits/report` by a label, over its HTTP API: accuracy
of all kinds with intervals, latency, drift, classes, cohorts and days. Cold is the first question
to a controller that has just started, with its database out of the page cache; warm is the next.
The yardstick reads the same rows with sqlite3 alone, and makes nothing of them.
"""

import os
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx

from fleet.core.report_views import ReportView
from fleet.shell.telemetry import DAY_S
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from scripts.benches._month import baseline, fill
from tests.e2e.harness import SAMPLES, Fleet
from wire.manifest import Manifest

BARS = [Bar("seconds", at_most=1)]
DEVICES, DAYS, LABEL = 1000, 30, "site"
ROUNDS = 5
"""Cold ones, each followed by a warm one."""


def measure(quick: bool) -> Result:
    """Measure how long a report over a fleet's month takes, by a label."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-query-") as work,
        Fleet(Path(work), "nats") as it,
    ):
        it.push(SAMPLES / "digits-1")
        view = it.client.release("digits", 1)
        assert view.manifest is not None
        told = {**view.manifest.model_dump(), "version": 2, "baseline": baseline(),
                "calibration": ((0.0, 0.0), (1.0, 1.0))}  # fmt: skip
        manifest = Manifest.model_validate(told)
        it.client.add_release(manifest)
        it.controller.stop()
        data = Path(work) / "fleet"
        # A day's sums are as large whatever they were made of; to fill in whole days is quicker.
        fill(data, manifest, DEVICES, DAYS, hours=24 if quick else 6)
        result = Result(runs={"cold_s": [], "warm_s": [], "bare_scan_s": []})
        for number in range(3 if quick else ROUNDS):
            _round(it, data, manifest, result)
            cold, warm = result.runs["cold_s"][-1], result.runs["warm_s"][-1]
            note(f"round {number + 1}: {cold:.2f} s cold, {warm:.2f} s warm")
    medians = {name: median(values) for name, values in result.runs.items()}
    size = result.runs.pop("size_mib")[-1]
    result.figures = {
        "seconds": max(medians["cold_s"], medians["warm_s"]),
        "cold_s": medians["cold_s"],
        "warm_s": medians["warm_s"],
        "bare_scan_s": medians["bare_scan_s"],
        "ratio_to_bare_scan": medians["warm_s"] / medians["bare_scan_s"],
        "devices": DEVICES,
        "days": DAYS,
        "database_mib": size,
    }
    return result


def _round(it: Fleet, data: Path, manifest: Manifest, result: Result) -> None:
    path = data / "telemetry.db"
    _out_of_cache(path)
    it.controller.start()
    it.wait_until_connected()
    _out_of_cache(path)
    url = f"{it.url}/v1/models/digits/report"
    params = {"version": "2", "since": f"{DAYS - 1}d", "by": LABEL}
    for name in ("cold_s", "warm_s"):
        began = time.perf_counter()
        answer = httpx.get(url, params=params, timeout=120)
        result.runs[name].append(time.perf_counter() - began)
        _check(answer)
    began = time.perf_counter()
    rows = _bare_scan(path, manifest)
    result.runs["bare_scan_s"].append(time.perf_counter() - began)
    if rows < DEVICES * (DAYS - 1):
        raise CannotMeasureError(f"expected a row of each device and day, got {rows}")
    result.runs.setdefault("size_mib", []).append(path.stat().st_size / 2**20)
    it.controller.stop()


def _check(answer: httpx.Response) -> None:
    """See that it is the whole report, of all devices, kinds and days."""
    answer.raise_for_status()
    [release] = ReportView.model_validate_json(answer.content).releases
    whole = (
        release.devices == DEVICES
        and all(each.low is not None for each in release.accuracy)
        and release.latency.p99_ms is not None
        and len(release.drift) > 1
        and len(release.steps) >= DAYS - 1
        and all(step.accuracy for step in release.steps)
        and sum(each.devices for each in release.cohorts) == DEVICES
    )
    if not whole:
        raise CannotMeasureError("the report lacks something; is it of the windows that were made?")


def _bare_scan(path: Path, manifest: Manifest) -> int:
    """Read the rows that the report rests on, once; return how many there are of devices."""
    now = int(time.time())
    since = now - now % DAY_S - (DAYS - 1) * DAY_S
    connection = sqlite3.connect(path)
    try:
        days = connection.execute(
            "SELECT device, variant, start, requests, labelled, correct, estimate_samples,"
            " estimate_sum_p, golden_samples FROM days WHERE manifest = ? AND start >= ?",
            (manifest.digest, since),
        ).fetchall()
        for label in ("", LABEL):
            connection.execute(
                "SELECT * FROM group_days WHERE manifest = ? AND label = ? AND start >= ?",
                (manifest.digest, label, since),
            ).fetchall()
    finally:
        connection.close()
    return len(days)


def _out_of_cache(path: Path) -> None:
    """Have the kernel forget what it has read of the database."""
    for each in (path, path.with_name(path.name + "-wal")):
        if each.exists():
            with each.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    raise SystemExit(main("query", BARS, measure))
