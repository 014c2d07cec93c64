"""Champion and challenger on the same inputs: who was right where they differ."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from agent.control import Tally
from agent.engine.meter import Metered

SHOWN = 16
"""Disagreements kept for people to look at."""


class Outcome:
    """What became of one request: the class of each row, and what is learnt of it later."""

    __slots__ = ("classes", "comparison", "id", "labels", "rivals")

    def __init__(self, id: str, classes: tuple[int, ...]) -> None:
        self.id = id
        self.classes = classes
        """Empty where the task has no classes."""
        self.labels: tuple[int, ...] | None = None
        self.rivals: tuple[int, ...] | None = None
        """The challenger's classes."""
        self.comparison: Comparison | None = None
        """The comparison that `rivals` belongs to."""

    @property
    def rows(self) -> int:
        """How many pairs this request can make."""
        return len(self.classes) or 1


@dataclass(slots=True)
class _Counts:
    """Every row of a request counts, so that pairs + dropped + errors is what was offered."""

    pairs: int = 0
    disagreements: int = 0
    labelled: int = 0
    worse: int = 0
    better: int = 0
    dropped: int = 0
    errors: int = 0

    def values(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


class Comparison:
    """The running tally of one challenger against the champion."""

    def __init__(self, model: str, challenger: str) -> None:
        self.model = model
        self.challenger = challenger
        self.counts = _Counts()
        self.ended = False
        self.champion: Metered | None = None
        """Counts what the champion takes meanwhile."""
        self.challenger_cost = (0, 0)
        """Rows, and microseconds of processor time, as the challenger said last."""
        self._reported = _Counts()
        self._shown: deque[tuple[Outcome, int]] = deque(maxlen=SHOWN)

    def answered(self, outcome: Outcome, rivals: tuple[int, ...]) -> None:
        """Pair the challenger's classes with the champion's."""
        if len(rivals) != len(outcome.classes):
            self.counts.errors += outcome.rows
            return
        outcome.rivals = rivals
        outcome.comparison = self
        for row, (ours, theirs) in enumerate(zip(outcome.classes, rivals, strict=True)):
            self.counts.pairs += 1
            if ours != theirs:
                self.counts.disagreements += 1
                self._shown.append((outcome, row))
        if outcome.labels is not None:
            self.labelled(outcome)

    def answered_alike(self, alike: bool) -> None:
        """Pair two answers that have no classes."""
        self.counts.pairs += 1
        self.counts.disagreements += not alike

    def labelled(self, outcome: Outcome) -> None:
        """Join the labels of a request that both have answered."""
        assert outcome.labels is not None and outcome.rivals is not None
        for true, ours, theirs in zip(outcome.labels, outcome.classes, outcome.rivals, strict=True):
            self.counts.labelled += 1
            self.counts.worse += ours == true != theirs
            self.counts.better += theirs == true != ours

    def tally(self) -> Tally:
        """Return the whole of it."""
        rows, cpu_us = self.challenger_cost
        return Tally(
            self.model,
            self.challenger,
            **self.counts.values(),
            champion_rows=self.champion.rows if self.champion else 0,
            champion_cpu_us=self.champion.cpu_us if self.champion else 0,
            challenger_rows=rows,
            challenger_cpu_us=cpu_us,
        )

    def increments(self) -> dict[str, Any] | None:
        """Return what was added since the last time, or None if nothing was."""
        now, before = self.counts.values(), self._reported.values()
        added = {name: count - before[name] for name, count in now.items()}
        self._reported = _Counts(**now)
        return {"challenger": self.challenger, **added} if any(added.values()) else None

    def disagreements(self) -> list[dict[str, Any]]:
        """Return the latest disagreements, oldest first."""
        return [
            {
                "id": outcome.id,
                "row": row,
                "champion": outcome.classes[row],
                "challenger": outcome.rivals[row] if outcome.rivals else None,
                "label": outcome.labels[row] if outcome.labels else None,
            }
            for outcome, row in self._shown
        ]
