"""A month of a fleet's telemetry in a controller's data directory, through its own stores.

The windows are made up: of each of a few kinds of devices some, which are then used in turn.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.core.census import Device
from fleet.shell.store import Store
from fleet.shell.telemetry import DAY_S, HOUR_S, MERGE_ITEMS, Entry, Message, Telemetry
from scripts.benches._common import note
from wire.manifest import Baseline, FeatureBaseline, Manifest
from wire.packing import pack
from wire.telemetry import MILLION, Batch, Estimate, Golden, Histogram, ScoreWindow
from wire.twin import Reported

CLASSES, FEATURES, BINS = 10, 8, 10
SITES = 10
KINDS, OF_A_KIND = 25, 8
TOGETHER = 100
"""Devices whose day is committed at once."""

_RANDOM = np.random.default_rng(5)


def baseline() -> Baseline:
    """Return what the release is compared with."""
    features = tuple(
        FeatureBaseline(
            name=f"image[{number}]",
            edges=tuple(float(edge) for edge in range(BINS + 1)),
            counts=(200,) * BINS,
        )
        for number in range(FEATURES)
    )
    return Baseline(samples=2000, features=features, predicted=(200,) * CLASSES)


def device_id(number: int) -> str:
    """Return the name of the device with this number."""
    return f"cam-{number:04}"


def labels_of(device: str) -> dict[str, str]:
    """Return the labels of a device: its site."""
    return {"site": f"site-{int(device.removeprefix('cam-')) % SITES}"}


def fill(data: Path, manifest: Manifest, devices: int, days: int, hours: int) -> None:
    """Write `days` of telemetry up to now: a window of each device for every `hours` hours."""
    _know_devices(data / "fleet.db", manifest, devices)
    store = Telemetry(data / "telemetry.db", labels_of)
    pool = [list(_windows(manifest, kind, hours)) for kind in range(KINDS)]
    draw, now = random.Random(5), int(time.time())
    first = now - now % DAY_S - (days - 1) * DAY_S
    began = time.monotonic()
    try:
        for day in range(days):
            start = first + day * DAY_S
            until = min(now, start + DAY_S)
            for number in range(0, devices, TOGETHER):
                some = range(number, min(devices, number + TOGETHER))
                store.commit(
                    _day_of(device_id(each), start, until, hours, day, pool[each % KINDS], draw)
                    for each in some
                    if until - start >= hours * HOUR_S
                )
                while store.pending() >= MERGE_ITEMS:
                    store.merge(float(start))
            while store.merge(float(start)):
                pass
            if day % 5 == 4:
                note(f"filled {day + 1} of {days} days, {time.monotonic() - began:.0f} s")
        while store.prune(float(now)):
            pass
    finally:
        store.close()


def _know_devices(path: Path, manifest: Manifest, devices: int) -> None:
    store = Store(path)
    ids = [device_id(number) for number in range(devices)]
    reports = (
        Reported(device=id, desired_revision=0, agent="bench", boot="b", labels=labels_of(id))
        for id in ids
    )
    now = time.time()
    known = [Device(each.device, each, last_seen=now, present_at=now) for each in reports]
    try:
        store.save_devices(known)
    finally:
        store.close()


def _day_of(  # noqa: PLR0917
    device: str, start: int, until: int, hours: int, day: int,
    pool: list[dict[str, Any]], draw: random.Random,
) -> Message:  # fmt: skip
    ends = range(start + hours * HOUR_S - 1, until, hours * HOUR_S)
    windows = tuple(
        ScoreWindow.model_construct(
            **draw.choice(pool), device=device, boot="b", seq=day * 24 + place + 1,
            start=end - hours * HOUR_S + 1, end=end,
        )
        for place, end in enumerate(ends)
    )  # fmt: skip
    batch = Batch.model_construct(device=device, windows=windows, health=(), events=())
    entries = tuple(Entry(window, window.end) for window in windows)
    return Message(device, float(windows[-1].end), pack(batch), entries)


def _windows(manifest: Manifest, kind: int, hours: int) -> Iterator[dict[str, Any]]:
    """Yield what a device of this kind may count in so many hours, at 100 requests a minute."""
    accuracy = 0.90 + 0.08 * kind / KINDS
    speed = 8000 * (1 + kind / KINDS)
    common = {
        "model": manifest.model,
        "version": manifest.version,
        "manifest": manifest.digest,
        "variant": manifest.variants[kind % len(manifest.variants)].name,
    }
    for _ in range(OF_A_KIND):
        requests = int(_RANDOM.poisson(6000 * hours))
        labelled = requests // 100
        confidence = _counts(requests, np.linspace(0.2, 4, 20) ** 3)
        scores = _counts(labelled, np.linspace(0.2, 4, 20) ** 3)
        correct = int(_RANDOM.binomial(labelled, accuracy))
        wrong = _counts(labelled - correct, np.ones(CLASSES))
        right = _counts(correct, np.ones(CLASSES))
        latency = np.sort(_RANDOM.lognormal(np.log(speed), 0.3, 200))
        bins: dict[int, int] = {}
        for value in latency:
            place = Histogram.bin_of(float(value))
            bins[place] = bins.get(place, 0) + requests // 200
        confusion = {f"{c},{c}": n for c, n in right.items()}
        confusion |= {f"{c},{(c + 3) % CLASSES}": n for c, n in wrong.items()}
        spread = round(0.08 * requests * MILLION)
        yield common | {
            "requests": requests,
            "errors": int(_RANDOM.poisson(2)),
            "latency": Histogram(bins=bins),
            "predicted": _counts(requests, np.ones(CLASSES)),
            "confidence": confidence,
            "confidence_sum": sum((2 * c + 1) * n for c, n in confidence.items()) * MILLION // 40,
            "labelled": labelled,
            "correct": correct,
            "confusion": confusion,
            "calibration": {
                c: (n, round((c + 0.5) / 20 * n * MILLION), round(accuracy * n))
                for c, n in scores.items()
            },
            "estimate": Estimate(
                samples=requests, sum_p=round(accuracy * requests * MILLION), spread=spread
            ),
            "golden": Golden(runs=1, samples=20, labelled=20, correct=19),
            "drift": {
                number: (*_dense(requests // 11, np.ones(BINS)), 0, 0)
                for number in range(FEATURES)
            },
            "slo_misses": int(_RANDOM.poisson(5)),
        }  # fmt: skip


def _dense(total: int, weights: NDArray[np.float64]) -> list[int]:
    return [int(n) for n in _RANDOM.multinomial(total, weights / weights.sum())]


def _counts(total: int, weights: NDArray[np.float64]) -> dict[int, int]:
    return {place: n for place, n in enumerate(_dense(total, weights)) if n}
