"""Champion and challenger on the same inputs: who was right where they differ."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.control import Tally
from agent.engine.judging import IOU, BoxJudge, ClassJudge, ValueJudge, Verdict
from agent.engine.meter import Metered
from agent.engine.runtimes import Array
from agent.engine.tasks.detection import Box

SHOWN = 16
"""Disagreements kept for people to look at."""


Boxes = Sequence[Sequence[Box]]
"""Of each picture of a request, best first."""


@dataclass(slots=True)
class Sight:
    """The boxes of a request: the champion's, and what is learnt of them later."""

    found: Boxes
    true: Boxes | None = None
    rivals: Boxes | None = None

    @property
    def count(self) -> int:
        """How many the champion found."""
        return sum(map(len, self.found))


@dataclass(slots=True)
class Numbers:
    """The numbers of a request, FP64 (n), and what is learnt of them later."""

    answer: Array
    true: Array | None = None
    rivals: Array | None = None


class Outcome:
    """What became of one request: the class of each row, and what is learnt of it later."""

    __slots__ = (
        "accepts", "classes", "comparison", "id", "judged", "labels", "numbers", "rivals", "sight",
        "tops",
    )  # fmt: skip

    def __init__(self, id: str, classes: tuple[int, ...], tops: Sequence[float] = ()) -> None:
        self.id = id
        self.classes = classes
        """Empty where the task has no classes."""
        self.tops = tops
        """The score of each class, 0 to 1."""
        self.labels: tuple[int, ...] | None = None
        self.rivals: tuple[int, ...] | None = None
        """The challenger's classes."""
        self.comparison: Comparison | None = None
        """The comparison that `rivals` belongs to."""
        self.judged = False
        """Whether that comparison counted the truth: by labels or by boxes, whichever came."""
        self.accepts: Sequence[tuple[int, int]] = ()
        """Of a stream that says yes or no: each yes that began here, its first and last frame."""
        self.sight: Sight | None = None
        self.numbers: Numbers | None = None

    @property
    def weight(self) -> int:
        """What it takes to remember: a row and a box are one each."""
        return len(self.classes) + (self.sight.count if self.sight is not None else 0)

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

    def __init__(
        self, model: str, challenger: str, *, iou: float = IOU, tolerance: float | None = None
    ) -> None:
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
        self._classes = ClassJudge()
        self._boxes = BoxJudge(iou)
        self._values = None if tolerance is None else ValueJudge(tolerance)

    def answered(
        self, outcome: Outcome, rivals: tuple[int, ...], boxes: Boxes | None = None
    ) -> None:
        """Pair the challenger's classes, and boxes where there are any, with the champion's."""
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
        sight = outcome.sight
        if sight is not None and boxes is not None and len(boxes) == len(sight.found):
            sight.rivals = boxes
        self.labelled(outcome)

    def answered_alike(self, outcome: Outcome, alike: bool, rivals: Array | None = None) -> None:
        """Pair two answers that have no classes; `rivals` are the challenger's numbers."""
        self.counts.pairs += 1
        self.counts.disagreements += not alike
        numbers = outcome.numbers
        if numbers is not None and rivals is not None and rivals.size == numbers.answer.size:
            outcome.comparison = self
            numbers.rivals = rivals
            self.labelled(outcome)

    def labelled(self, outcome: Outcome) -> None:
        """Judge a request that both have answered, once, as far as the truth is known."""
        if outcome.judged or outcome.comparison is not self:
            return
        sight, numbers = outcome.sight, outcome.numbers
        if outcome.labels is not None and outcome.rivals is not None:
            for true, ours, theirs in zip(
                outcome.labels, outcome.classes, outcome.rivals, strict=True
            ):
                self._judge(outcome, self._classes.outcome(ours, theirs, true))
        elif sight is not None and sight.true is not None and sight.rivals is not None:
            for boxes in zip(sight.found, sight.rivals, sight.true, strict=True):
                self._judge(outcome, self._boxes.outcome(*boxes))
        elif (
            self._values is not None
            and numbers is not None
            and numbers.true is not None
            and numbers.rivals is not None
        ):
            verdict = self._values.outcome(numbers.answer, numbers.rivals, numbers.true)
            self._judge(outcome, verdict)

    def _judge(self, outcome: Outcome, verdict: Verdict) -> None:
        outcome.judged = True
        self.counts.labelled += 1
        self.counts.worse += verdict == "loss"
        self.counts.better += verdict == "win"

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
