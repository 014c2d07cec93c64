"""How many requests a model has answered since its engine began, and where their time went."""

import time
from dataclasses import dataclass, field
from typing import Any

MAX_BATCH_SIZES = 64
"""Batch sizes that are told apart; the totals count them all."""


MAX_UNCOUNTED = 32
"""Answers that wait to be counted: many at a time cost less than each on its own."""

Stations = tuple[float, float, float, float, float]
"""When a request came, was read, began to run, ended that, and was answered, by
`time.perf_counter`."""


@dataclass(slots=True)
class _Spent:
    """How often something happened, and how long it took altogether."""

    count: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass(slots=True)
class _Answers:
    """Answers to requests of one size, and how many seconds each station took of them all."""

    count: int = 0
    total: float = 0.0
    waiting: float = 0.0
    reading: float = 0.0
    running: float = 0.0
    writing: float = 0.0

    def spent(self, station: str) -> _Spent:
        return _Spent(self.count, getattr(self, station))


@dataclass(slots=True)
class Statistics:
    """Totals of one model, as the protocol's statistics extension shapes them."""

    _last_at: float = 0.0
    """Of the last request, by `time.perf_counter`; 0: there was none."""
    fail: _Spent = field(default_factory=_Spent)
    batches: dict[int, _Answers] = field(default_factory=dict)
    """By the number of rows in a request."""
    others: _Answers = field(default_factory=_Answers)
    """Those of further sizes."""
    rows: int = 0
    _uncounted: list[tuple[int, Stations]] = field(default_factory=list)

    def answered(
        self,
        rows: int,
        stations: Stations,
    ) -> None:
        """Count an answer to a request of so many rows."""
        self._uncounted.append((rows, stations))
        if len(self._uncounted) == MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        """Catch up: to be done before anything is told."""
        for rows, (came_at, read_at, began_at, ended_at, written_at) in self._uncounted:
            self.rows += rows
            answers = self.batches.get(rows) or self._batch(rows)
            answers.count += 1
            answers.total += written_at - came_at
            answers.reading += read_at - came_at
            answers.waiting += began_at - read_at
            answers.running += ended_at - began_at
            answers.writing += written_at - ended_at
            self._last_at = max(self._last_at, written_at)
        self._uncounted.clear()

    def _batch(self, rows: int) -> _Answers:
        if len(self.batches) == MAX_BATCH_SIZES:
            return self.others
        answers = self.batches[rows] = _Answers()
        return answers

    def failed(self, seconds: float) -> None:
        """Count a request that was understood and got no answer."""
        self._last_at = time.perf_counter()
        self.fail.count += 1
        self.fail.seconds += seconds

    def as_json(self, name: str, version: int) -> dict[str, Any]:
        """Return the model's entry in an answer."""
        self._count()
        ago_s = time.perf_counter() - self._last_at
        last_ms = round((time.time() - ago_s) * 1000) if self._last_at else 0
        return {
            "name": name,
            "version": str(version),
            "last_inference": last_ms,
            "inference_count": self.rows,
            "execution_count": self._spent("total").count,
            "inference_stats": {
                "success": self._spent("total").as_json(),
                "fail": self.fail.as_json(),
                "queue": self._spent("waiting").as_json(),
                "compute_input": self._spent("reading").as_json(),
                "compute_infer": self._spent("running").as_json(),
                "compute_output": self._spent("writing").as_json(),
                "cache_hit": _Spent().as_json(),
                "cache_miss": _Spent().as_json(),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": answers.spent("reading").as_json(),
                    "compute_infer": answers.spent("running").as_json(),
                    "compute_output": answers.spent("writing").as_json(),
                }
                for rows, answers in sorted(self.batches.items())
            ],
        }

    def _spent(self, station: str) -> _Spent:
        """Return what all answers together took at a station."""
        parts = [answers.spent(station) for answers in (*self.batches.values(), self.others)]
        return _Spent(sum(part.count for part in parts), sum(part.seconds for part in parts))
