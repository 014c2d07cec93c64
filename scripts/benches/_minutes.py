"""What a detector and its machine tell of themselves, minute after minute, at random.

A window has 6,000 requests on 10 classes, a tenth of them labelled, with confidence, confusion,
calibration, estimated accuracy and 8 features in 20 bins: latency of a log-normal shape with a
slow mode, classes and features that wander.
"""

from typing import Any

import numpy as np

from agent.control import Window
from wire.ids import digest_of
from wire.telemetry import MILLION, Health, Histogram

DEVICE = "camera-0042"
BOOT = "9f3c1a2b4d5e6f70"
REQUESTS, LABELLED, CLASSES, FEATURES, BINS = 6000, 600, 10, 8, 20
DAY = 24 * 60


class Minutes:
    """What a model and its machine do, at random."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(5)
        self._classes = self._draw.dirichlet(np.ones(CLASSES) * 20)
        self._bins = self._draw.dirichlet(np.ones(BINS) * 400, FEATURES)
        self._mistaken_for = self._draw.dirichlet(np.ones(CLASSES) * 0.5, CLASSES)
        """Most classes are mistaken for a few others."""
        self._minutes = 0
        self._flash = self._received = self._sent = 3_842_382

    def minute(self, now: int) -> tuple[Window, Health]:
        """Return a window and a report."""
        self._minutes += 1
        return self._window(now), self._health(now)

    def _window(self, now: int) -> Window:
        draw = self._draw
        latency = np.exp(draw.normal(np.log(4200), 0.22, REQUESTS))
        slow = draw.random(REQUESTS) < 0.02
        latency[slow] *= draw.uniform(2, 6, slow.sum())
        classes = draw.choice(CLASSES, REQUESTS, p=draw.dirichlet(self._classes * 3000))
        top = 1 - draw.beta(1, 12, REQUESTS) * 0.9
        asked = draw.choice(REQUESTS, LABELLED, replace=False)
        right = draw.random(LABELLED) < top[asked]
        mistaken = [draw.choice(CLASSES, p=self._mistaken_for[each]) for each in classes[asked]]
        true = np.where(right, classes[asked], mistaken)
        calibration: dict[int, tuple[int, int, int]] = {}
        for score, hit in zip(top[asked], true == classes[asked], strict=True):
            place = min(19, int(score * 20))
            count, total, hits = calibration.get(place, (0, 0, 0))
            calibration[place] = (count + 1, total + round(score * MILLION), hits + int(hit))
        million = round(float(top.sum()) * MILLION)
        counts: dict[str, Any] = {
            "requests": REQUESTS,
            "errors": int(draw.poisson(1)),
            "latency": _counted(Histogram.bin_of(value) for value in latency),
            "predicted": _counted(classes),
            "confidence": _counted(np.minimum(top * 20, 19).astype(int)),
            "confidence_sum": million,
            "labelled": LABELLED,
            "correct": int((true == classes[asked]).sum()),
            "confusion": _counted(f"{a},{b}" for a, b in zip(true, classes[asked], strict=True)),
            "calibration": calibration,
            "estimate": {
                "samples": REQUESTS,
                "sum_p": million,
                "spread": round(float((top * (1 - top)).sum()) * MILLION),
            },
            "drift": {
                number: (
                    *draw.multinomial(REQUESTS - 3, draw.dirichlet(shape * 3000)).tolist(),
                    0,
                    3,
                )
                for number, shape in enumerate(self._bins)
            },
            "slo_misses": int((latency > 20_000).sum()),
        }
        if self._minutes % DAY == 7:
            counts["golden"] = {"runs": 1, "samples": 20, "labelled": 20, "correct": 20}
        return Window("detector", 7, digest_of(b"detector"), "onnx-int8", now - 60, now, counts)

    def _health(self, now: int) -> Health:
        draw = self._draw
        self._flash += int(draw.integers(1500, 2500))
        self._received += int(draw.integers(5000, 90_000))
        self._sent += int(draw.integers(5000, 90_000))
        return Health(
            device=DEVICE, boot=BOOT, seq=1, at=now,
            uptime_s=86_400 + 60 * self._minutes,
            cpu_percent=round(float(draw.normal(12, 2)), 1),
            load_1m=round(float(draw.gamma(4, 0.1)), 2),
            memory_total_bytes=4_009_754_624,
            memory_available_bytes=2_147_483_648 + 4096 * int(draw.integers(0, 20_000)),
            disk_free_bytes=8_589_934_592 - 4096 * int(draw.integers(0, 20_000)),
            temperature_c=round(float(draw.normal(48, 1.5)), 1),
            agent_cpu_percent=round(float(draw.gamma(4, 0.1)), 2),
            agent_rss_bytes=31_002_624 + 4096 * int(draw.integers(0, 50)),
            engine_cpu_percent=round(float(draw.normal(31, 3)), 2),
            engine_rss_bytes=70_135_808 + 4096 * int(draw.integers(0, 50)),
            outbox_waiting=1, transfer_bytes=44_023_230, flash_bytes_written=self._flash,
            kernel_boot="5c6a4d0e-0c1b-4e0a-9f0e-8f43b6c6a1d2",
            pressure={"cpu": round(float(draw.gamma(2, 0.8)), 2), "memory": 0.0,
                      "io": round(float(draw.gamma(1, 0.1)), 2)},
            swap_used_bytes=1_048_576, disk_total_bytes=31_268_536_320, throttled=False,
            network_received_bytes=self._received, network_sent_bytes=self._sent,
            clock_synchronised=True, agent_pss_bytes=29_442_048 + 1024 * int(draw.integers(0, 99)),
            engine_pss_bytes=62_342_144 + 1024 * int(draw.integers(0, 99)), agent_starts=3,
            broker_rtt_ms=round(float(draw.gamma(4, 4)), 1),
            outbox_bytes=int(draw.integers(2000, 60_000)),
        )  # fmt: skip


def _counted(values: Any) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for value in values:
        key = value if isinstance(value, str) else int(value)
        counts[key] = counts.get(key, 0) + 1
    return counts
