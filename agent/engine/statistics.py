"""How many requests a model has answered since its engine began, and where their time went."""

import time
from dataclasses import dataclass, field
from typing import Any

MAX_BATCH_SIZES = 64
"""Batch sizes that are told apart; the totals count them all."""


@dataclass(slots=True)
class _Spent:
    """How often something happened, and how long it took altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass(slots=True)
class Course:
    """When a request reached each of its stations, by `time.perf_counter`.

    Between them: it is read, it waits, the model runs, the answer is written.
    """

    came_at: float
    read_at: float
    began_at: float
    ended_at: float
    written_at: float


@dataclass(slots=True)
class Statistics:
    """Totals of one model, as the protocol's statistics extension shapes them."""

    last_ms: int = 0
    """Unix time of the last request."""
    rows: int = 0
    success: _Spent = field(default_factory=_Spent)
    fail: _Spent = field(default_factory=_Spent)
    queue: _Spent = field(default_factory=_Spent)
    compute_input: _Spent = field(default_factory=_Spent)
    compute_infer: _Spent = field(default_factory=_Spent)
    compute_output: _Spent = field(default_factory=_Spent)
    batches: dict[int, tuple[_Spent, _Spent, _Spent]] = field(default_factory=dict)
    """Rows in a request -> reading, running, writing."""

    def answered(self, course: Course, rows: int) -> None:
        """Count an answer to a request of so many rows."""
        self.last_ms = time.time_ns() // 1_000_000
        self.rows += rows
        self.success.add(course.written_at - course.came_at)
        self.queue.add(course.began_at - course.read_at)
        reading = course.read_at - course.came_at
        running = course.ended_at - course.began_at
        writing = course.written_at - course.ended_at
        self.compute_input.add(reading)
        self.compute_infer.add(running)
        self.compute_output.add(writing)
        batch = self.batches.get(rows)
        if batch is None:
            if len(self.batches) == MAX_BATCH_SIZES:
                return
            batch = self.batches[rows] = (_Spent(), _Spent(), _Spent())
        batch[0].add(reading)
        batch[1].add(running)
        batch[2].add(writing)

    def failed(self, seconds: float) -> None:
        """Count a request that was understood and got no answer."""
        self.last_ms = time.time_ns() // 1_000_000
        self.fail.add(seconds)

    def as_json(self, name: str, version: int) -> dict[str, Any]:
        """Return the model's entry in an answer."""
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.success.count,
            "inference_stats": {
                "success": self.success.as_json(),
                "fail": self.fail.as_json(),
                "queue": self.queue.as_json(),
                "compute_input": self.compute_input.as_json(),
                "compute_infer": self.compute_infer.as_json(),
                "compute_output": self.compute_output.as_json(),
                "cache_hit": _Spent().as_json(),
                "cache_miss": _Spent().as_json(),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": reading.as_json(),
                    "compute_infer": running.as_json(),
                    "compute_output": writing.as_json(),
                }
                for rows, (reading, running, writing) in sorted(self.batches.items())
            ],
        }
