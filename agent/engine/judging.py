"""What makes an answer right, for each kind of task, and which of two answers was better.

A verdict is the challenger's: a win when it was right where the champion was not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agent.engine.runtimes import Array
from agent.engine.tasks.detection import Box, overlap

Verdict = Literal["win", "loss", "tie"]
IOU = 0.5


def compare(champion: float, challenger: float) -> Verdict:
    """Return the verdict on two shares of what was right."""
    if champion == challenger:
        return "tie"
    return "win" if challenger > champion else "loss"


class ClassJudge:
    """Classes, of pictures or of the frames of a sound: the same or not."""

    def outcome(self, champion: int, challenger: int, label: int) -> Verdict:
        """Return which of two classes was right."""
        return compare(champion == label, challenger == label)


class ValueJudge:
    """Numbers: all of an answer's within a tolerance of the true ones."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance

    def within(self, answer: Array, label: Array) -> int:
        """Return how many numbers are right; NaN never is."""
        return int(np.count_nonzero(np.abs(answer - label) <= self._tolerance))

    def outcome(self, champion: Array, challenger: Array, label: Array) -> Verdict:
        """Return which of two answers was right."""
        every = label.size
        return compare(
            self.within(champion, label) == every, self.within(challenger, label) == every
        )


@dataclass(frozen=True, slots=True)
class Matches:
    """Found boxes beside true ones."""

    matched: int = 0
    missed: int = 0
    """True ones that were not found."""
    spurious: int = 0
    """Found ones that are not true."""

    @property
    def f1(self) -> float:
        """Twice the matched ones by all found and true ones; 1 where there are none at all."""
        every = 2 * self.matched + self.missed + self.spurious
        return 2 * self.matched / every if every else 1.0


class BoxJudge:
    """Detections: each, best first, matches the true box of its class that it overlaps most.

    Source: Everingham et al. 2010, "The Pascal Visual Object Classes challenge", 4.2.
    """

    def __init__(self, iou: float = IOU) -> None:
        self._iou = iou

    def match(self, found: Sequence[Box], true: Sequence[Box]) -> Matches:
        """Match one picture's boxes; no true one counts twice."""
        left = np.array([box[1:] for box in true], np.float64).reshape(-1, 2, 2)
        classes = np.array([box[0] for box in true], np.int64)
        free = np.ones(len(true), bool)
        matched = 0
        for box in found:
            if not free.any():
                break
            shares = overlap(np.array(box[1:], np.float64).reshape(2, 2), left)
            shares = np.where(free & (classes == box[0]), shares, -1.0)
            best = int(shares.argmax())
            if shares[best] >= self._iou:
                free[best] = False
                matched += 1
        return Matches(matched, len(true) - matched, len(found) - matched)

    def outcome(
        self, champion: Sequence[Box], challenger: Sequence[Box], label: Sequence[Box]
    ) -> Verdict:
        """Return which of two found the true boxes better, by F1."""
        return compare(self.match(champion, label).f1, self.match(challenger, label).f1)
